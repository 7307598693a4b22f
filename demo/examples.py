"""The four examples: train a network, make masks by one criterion, speed the model up, and measure both models.

Nothing is trained further once the masks are made. Only the BatchNorm statistics of the masked network are measured
anew on training images; without that it would guess, and agreeing with it would mean nothing.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from demo import bench, criteria, data, masking, networks, train
from demo.bench import Latency, Size
from demo.data import Digits
from demo.masking import Masks
from demo.train import Recipe
from speedup import ModelSpeedup

#: The layers of VGG-16 that l1filter and apoz prune: the first convolution and the last five but one.
VGG16_LAYERS = tuple(f"features.{index}" for index in (0, 24, 27, 30, 34, 37))
_VGG_COUNTS = (1, 2, 4, 8, 16, 32)
_VGG16_RECIPE = Recipe(images=960, rate=1.5e-3)
_APOZ_IMAGES = 256


@dataclass(frozen=True)
class Example:
    """One published example: a network, a criterion, and the counts of forward passes that were published."""

    name: str
    title: str
    network: str
    channels: int
    image_size: int
    counts: tuple[int, ...]
    recipe: Recipe
    make_masks: Callable[[nn.Module, Digits], Masks]


@dataclass(frozen=True)
class Settings:
    """What a run may change. `share` scales the amount of training; `counts` replaces the published counts."""

    seed: int = 0
    bench_seconds: float = 40.0
    share: float = 1.0
    counts: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Result:
    """What one example measured. `difference` is the largest of |masked - small|, `scale` the largest |masked|."""

    name: str
    title: str
    input_shape: tuple[int, ...]
    sparsity: float
    latency: list[Latency]
    before: Size
    after: Size
    accuracy_dense: float
    accuracy_masked: float
    accuracy_small: float
    test_images: int
    different_predictions: int
    difference: float
    scale: float
    train_seconds: float
    speedup_seconds: float


class Runner:
    """Runs examples one after the other; examples with the same network and training share one trained network."""

    def __init__(self, settings: Settings, say: Callable[[str], None] = lambda text: None) -> None:
        self.settings = settings
        self._say = say
        self._trained: dict[tuple[str, Recipe], tuple[nn.Module, float]] = {}
        self._data: dict[tuple[int, int], Digits] = {}

    def run(self, example: Example) -> tuple[Result, nn.Module]:
        """The measurements of one example, and its small model."""
        started = time.perf_counter()
        digits = self._digits(example)
        recipe = self._recipe(example)
        dense, accuracy_dense = self._dense(example, recipe, digits)
        self._say(f"{example.name}: masking")
        masks = example.make_masks(dense, digits)
        masked = masking.masked_copy(dense, masks)
        train.calibrate(masked, digits.train_images)
        train_seconds = time.perf_counter() - started

        self._say(f"{example.name}: speeding up")
        small, speedup_seconds = _speed_up(masked, masks, digits.test_images[:2])

        self._say(f"{example.name}: measuring")
        scores_masked, scores_small = (train.predict(model, digits.test_images) for model in (masked, small))
        shape = (64, example.channels, example.image_size, example.image_size)
        latency = bench.latencies(
            masked, small, digits.train_images[:64], self.settings.counts or example.counts, self.settings.bench_seconds
        )
        result = Result(
            name=example.name,
            title=example.title,
            input_shape=shape,
            sparsity=masking.sparsity(masks),
            latency=latency,
            before=bench.size(masked, digits.test_images[:1]),
            after=bench.size(small, digits.test_images[:1]),
            accuracy_dense=accuracy_dense,
            accuracy_masked=train.accuracy(scores_masked, digits.test_labels),
            accuracy_small=train.accuracy(scores_small, digits.test_labels),
            test_images=len(digits.test_labels),
            different_predictions=int((scores_masked.argmax(1) != scores_small.argmax(1)).sum()),
            difference=float((scores_masked - scores_small).abs().max()),
            scale=float(scores_masked.abs().max()),
            train_seconds=train_seconds,
            speedup_seconds=speedup_seconds,
        )
        return result, small

    def _recipe(self, example: Example) -> Recipe:
        return replace(example.recipe, images=round(example.recipe.images * self.settings.share))

    def _digits(self, example: Example) -> Digits:
        key = (example.image_size, example.channels)
        if key not in self._data:
            self._data[key] = data.load(*key)
        return self._data[key]

    def _dense(self, example: Example, recipe: Recipe, digits: Digits) -> tuple[nn.Module, float]:
        """The trained network and its accuracy on the test images."""
        key = (example.network, recipe)
        if key not in self._trained:
            self._say(f"{example.name}: training {example.network}")
            network = networks.build(example.network, self.settings.seed)
            train.train(network, digits.train_images, digits.train_labels, recipe, self.settings.seed)
            accuracy = train.accuracy(train.predict(network, digits.test_images), digits.test_labels)
            self._trained[key] = (network, accuracy)
        return self._trained[key]


def _speed_up(model: nn.Module, masks: Masks, dummy_input: Tensor) -> tuple[nn.Module, float]:
    """The real job, from a mask file; the seconds cover reading the file and making the small model."""
    with tempfile.TemporaryDirectory() as folder:
        masks_file = str(Path(folder) / "masks.pt")
        torch.save(masks, masks_file)
        small = copy.deepcopy(model)
        started = time.perf_counter()
        small = ModelSpeedup(small, dummy_input, masks_file).speedup_model()
        return small, time.perf_counter() - started


def _slim(model: nn.Module, digits: Digits) -> Masks:
    return criteria.slim(model, 0.7)


def _l1filter(model: nn.Module, digits: Digits) -> Masks:
    return criteria.l1filter(model, VGG16_LAYERS, 0.5)


def _apoz(model: nn.Module, digits: Digits) -> Masks:
    activations = {name: f"features.{int(name.partition('.')[2]) + 2}" for name in VGG16_LAYERS}
    return criteria.apoz(model, activations, digits.train_images[:_APOZ_IMAGES].split(64), 0.5)


def _fpgm(model: nn.Module, digits: Digits) -> Masks:
    return criteria.fpgm(model, sparsity=0.5)


EXAMPLES: Sequence[Example] = (
    Example(
        "slim", "slim (VGG-19)", "vgg19", 3, 32, _VGG_COUNTS,
        Recipe(images=1200, batch=12, rate=1.5e-3, l1=0.66), _slim,
    ),
    Example("l1filter", "l1filter (VGG-16)", "vgg16", 3, 32, _VGG_COUNTS, _VGG16_RECIPE, _l1filter),
    Example("apoz", "APoZ (VGG-16)", "vgg16", 3, 32, _VGG_COUNTS, _VGG16_RECIPE, _apoz),
    Example(
        "fpgm", "fpgm (naive net)", "naive", 1, 28, (1, 2, 4, 40, 400),
        Recipe(images=3 * data.TRAIN_IMAGES, batch=32), _fpgm,
    ),
)  # fmt: skip
