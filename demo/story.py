"""From a dense network to a small one that was trained on, on scikit-learn's handwritten digits.

    python -m demo.story                   # prints a table in Markdown
    python -m demo.story --share 0.05      # a look at it, in little time

1. train a ResNet-10 (torchvision's, with one block in each stage) on the digits;
2. drop 80 % of the channels of every group, by their L1 norm (``speedup.prune_masks``);
3. make the model small (``speedup.plan``): the same answers as the masked one;
4. train the small model on, with a fraction of the work of training the masked one.
"""

import argparse
import copy
import time
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import speedup
from demo import bench, data, train
from demo.data import Digits
from demo.train import Recipe
from speedup.pruning.target import seconds
from speedup.testing import masked_copy

SPARSITY = 0.8
_DENSE = Recipe(images=8 * data.TRAIN_IMAGES, batch=32, rate=2e-3)
_ON = Recipe(images=12 * data.TRAIN_IMAGES, batch=32, rate=2e-3)


@dataclass(frozen=True)
class Stage:
    """One line of the story; `seconds` is for one pass of 64 images, `training` for the training that came before."""

    name: str
    accuracy: float
    parameters: int
    macs: int
    seconds: float
    training: float


def tell(share: float = 1.0, seed: int = 0, size: int = 32, passes: int = 15) -> list[Stage]:
    """Live through the story; `share` scales the amount of training, on images of `size`, timed in so many `passes`."""
    digits = data.load(size, 3)
    torch.manual_seed(seed)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    dense = _stage("dense", model, digits, passes, _trained(model, digits, _DENSE, share, seed))

    example = digits.test_images[:2]
    masks = speedup.prune_masks(model, example, "l1", sparsity=SPARSITY)
    masked = masked_copy(model, masks)
    before = _stage("masked", masked, digits, passes)
    small = speedup.plan(copy.deepcopy(model), example, masks).apply(verify=True)
    after = _stage("small", small, digits, passes)
    on = _stage("small, trained on", small, digits, passes, _trained(small, digits, _ON, share, seed + 1))
    return [dense, before, after, on]


def table(stages: list[Stage]) -> str:
    """The story as Markdown."""
    rows = ["| model | accuracy | parameters | MACs per image | s per pass of 64 | s of training |"]
    rows.append("|---|---:|---:|---:|---:|---:|")
    for s in stages:
        trained = f"{s.training:.0f}" if s.training else ""
        sizes = f"{s.parameters:,} | {s.macs:,}"
        rows.append(f"| {s.name} | {100 * s.accuracy:.1f} % | {sizes} | {s.seconds:.4f} | {trained} |")
    return "\n".join(rows)


def _trained(model: nn.Module, digits: Digits, recipe: Recipe, share: float, seed: int) -> float:
    started = time.perf_counter()
    images = max(int(recipe.images * share), 2 * recipe.batch)
    shorter = Recipe(images=images, batch=recipe.batch, rate=recipe.rate)
    train.train(model, digits.train_images, digits.train_labels, shorter, seed)
    return time.perf_counter() - started


def _stage(name: str, model: nn.Module, digits: Digits, passes: int, training: float = 0.0) -> Stage:
    model.eval()
    size = bench.size(model, digits.test_images[:1])
    accuracy = train.accuracy(train.predict(model, digits.test_images), digits.test_labels)
    once = seconds(model, digits.train_images[:64], passes)
    return Stage(name, accuracy, size.parameters, size.macs, once, training)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the training (default: all of it)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, seed {options.seed}\n")
    print(table(tell(options.share, options.seed)))


if __name__ == "__main__":
    main()
