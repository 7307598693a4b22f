"""Networks of torchvision with random weights under unaligned masks, in float64: equal, and smaller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from speedup.testing import Result, check_equal, mask_indices
from tests.graphs import Masks, filter_masks, randomize

Build = Callable[..., nn.Module]
VISION = torchvision.models
SLOW = pytest.mark.slow

# Name, image size, and the share of parameters that may stay when half of all filters are masked, unaligned: a little
# above what stays today, so that a rule which keeps more than it must is noticed.
NETWORKS: list[Any] = [
    pytest.param("resnet18", 32, 0.45, id="resnet18"),
    pytest.param("mobilenet_v3_small", 32, 0.42, id="mobilenet_v3_small"),
    pytest.param("shufflenet_v2_x0_5", 32, 0.46, id="shufflenet_v2_x0_5"),
    pytest.param("densenet121", 32, 0.27, id="densenet121"),
    pytest.param("regnet_x_400mf", 32, 0.77, id="regnet_x_400mf"),
    pytest.param("squeezenet1_1", 64, 0.26, id="squeezenet1_1"),
    pytest.param("googlenet", 64, 0.26, id="googlenet", marks=SLOW),
    pytest.param("efficientnet_b0", 64, 0.6, id="efficientnet_b0", marks=SLOW),
    pytest.param("convnext_tiny", 64, 0.56, id="convnext_tiny", marks=SLOW),
    pytest.param("vit_b_16", 64, 0.7, id="vit_b_16", marks=SLOW),
    pytest.param("swin_t", 64, 0.72, id="swin_t", marks=SLOW),
    pytest.param("vgg11_bn", 64, 0.26, id="vgg11_bn", marks=SLOW),
]


def make(name: str, **options: Any) -> nn.Module:
    if name == "vit_b_16":
        options["image_size"] = 64
    if name == "googlenet":
        options = {"aux_logits": False, "init_weights": False, **options}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomize(torchvision.models.get_model(name, weights=None, num_classes=10, **options).eval().double())


def check(model: nn.Module, masks: Masks, size: int, fixed: bool = False) -> Result:
    others = [torch.randn(1, 3, size, size)]
    if not fixed:
        others.append(torch.randn(1, 3, size + 32, size))
    return check_equal(model, torch.randn(2, 3, size, size), masks, others)


def test_googlenet_with_its_auxiliary_heads_trains_on() -> None:
    model = make("googlenet", aux_logits=True)
    result = check(model, filter_masks(model, seed=1), 64)
    assert result.plan.report.uncalled == [] and result.kept <= 0.26
    small = result.model.train()
    assert [out.shape for out in small(torch.randn(2, 3, 64, 64, dtype=torch.float64))] == 3 * [(2, 10)]


@pytest.mark.parametrize(("name", "size", "share"), NETWORKS)
def test_half_of_all_filters_masked_at_random(name: str, size: int, share: float) -> None:
    model = make(name)
    result = check(model, filter_masks(model, seed=1), size, fixed=name.startswith("vit"))
    assert result.kept <= share, f"{name} keeps {result.kept:.3f}"
    assert result.plan.report.macs[1] <= result.plan.report.macs[0]


def aligned_resnet_masks(model: nn.Module, share: float) -> Masks:
    """The same channels in every layer that writes to one residual stream: the masks of dependency-graph pruning."""
    dropped: dict[str, tuple[int, ...]] = {}

    def drop(conv: str, norm: str, of: str) -> None:
        size = model.get_parameter(f"{conv}.weight").shape[0]
        g = torch.Generator().manual_seed(sum(map(ord, of)))
        rows = tuple(torch.randperm(size, generator=g)[: int(size * share)].tolist())
        dropped.update({f"{conv}.weight": rows, f"{norm}.weight": rows, f"{norm}.bias": rows})

    drop("conv1", "bn1", "layer1")
    for name, module in model.named_modules():
        if type(module).__name__ in ("BasicBlock", "Bottleneck"):
            stage = name.split(".")[0]
            last = 2 if type(module).__name__ == "BasicBlock" else 3
            for number in range(1, last):
                drop(f"{name}.conv{number}", f"{name}.bn{number}", f"{name}.{number}")
            drop(f"{name}.conv{last}", f"{name}.bn{last}", stage)
            if getattr(module, "downsample", None) is not None:
                drop(f"{name}.downsample.0", f"{name}.downsample.1", stage)
    masks: Masks = {n: dict(e) for n, e in mask_indices(model, dropped).items()}
    return masks


def test_resnet18_with_masks_aligned_over_its_residual_streams_is_as_small_as_can_be() -> None:
    model = make("resnet18")
    masks = aligned_resnet_masks(model, 0.5)
    result = check(model, masks, 64)
    full, half = make("resnet18"), 0
    for name, p in full.named_parameters():
        rows = 1 if name.startswith("fc") or not p.ndim else 2
        columns = 1 if p.ndim < 2 or name == "conv1.weight" else 2
        half += p.numel() // rows // columns
    assert round(result.kept * sum(p.numel() for p in full.parameters())) == half


def every_second(model: nn.Module) -> Masks:
    """Every second index of everything but BatchNorms, whose shifts have to be folded."""
    masks: Masks = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        for parameter, tensor in module.named_parameters(recurse=False):
            if "relative" in parameter or parameter == "logit_scale":
                continue
            linear = isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention)
            axis = 0 if linear else max(range(tensor.ndim), key=lambda a: tensor.shape[a])
            line = torch.arange(tensor.shape[axis]) % 2 == 0
            shape = [-1 if a == axis else 1 for a in range(tensor.ndim)]
            masks.setdefault(name, {})[parameter] = line.reshape(shape).expand_as(tensor)
    return masks


def swin(block: Any) -> nn.Module:
    from torchvision.models.swin_transformer import (
        PatchMerging,
        PatchMergingV2,
        SwinTransformer,
        SwinTransformerBlockV2,
    )

    merging = PatchMergingV2 if block is SwinTransformerBlockV2 else PatchMerging
    options: dict[str, Any] = {"num_classes": 4, "block": block, "downsample_layer": merging}
    return SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], **options)


SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], float]] = {
    "swin": (lambda: swin(VISION.swin_transformer.SwinTransformerBlock), (32, 48), 0.28),
    "swin v2": (lambda: swin(VISION.swin_transformer.SwinTransformerBlockV2), (32, 48), 0.27),
    "vit": (lambda: VISION.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=4), (32, 32), 0.34),
    "maxvit": (
        lambda: VISION.MaxVit((64, 64), 16, 2, [16, 32], [1, 1], 8, 0.0, num_classes=4),
        (64, 64),
        0.28,
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_transformers_for_images(name: str) -> None:
    build, other, share = SMALL[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomize(build().eval().double())
    size = other[0]
    inputs = [torch.randn(2, 3, size, size), torch.randn(1, 3, *other)]
    result = check_equal(model, inputs[0], every_second(model), inputs[1:])
    assert result.kept <= share, f"{name} keeps {result.kept:.3f}\n{result.plan.explain()}"
    check_equal(model, inputs[0], filter_masks(model, seed=1), inputs[1:])


def test_two_networks_in_one_do_not_disturb_each_other() -> None:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = make("squeezenet1_1"), make("shufflenet_v2_x0_5")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.one(x).softmax(1) + self.two(x).softmax(1)
            return result

    model = Ensemble().eval()
    masks = filter_masks(model.one, seed=2)
    result = check(model, {f"one.{n}": e for n, e in masks.items()}, 64)
    small: Any = result.model
    before = sum(p.numel() for p in model.two.parameters())
    assert sum(p.numel() for p in small.two.parameters()) == before
    assert sum(p.numel() for p in small.one.parameters()) < 0.6 * sum(p.numel() for p in model.one.parameters())


@SLOW
@pytest.mark.parametrize("name", ["fcn_resnet50", "lraspp_mobilenet_v3_large"])
def test_segmentation(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VISION.get_model(name, weights=None, weights_backbone=None, num_classes=5).eval().double()
    model = randomize(model)
    result = check(model, filter_masks(model, seed=3), 64)
    assert result.kept < 0.75


@SLOW
def test_a_detection_model_takes_a_list_of_images_and_stays_right() -> None:
    """Boxes are chosen by thresholds and sorting: only what lies before that is expected to shrink."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        name = "fasterrcnn_mobilenet_v3_large_320_fpn"
        model = VISION.get_model(name, weights=None, weights_backbone=None, num_classes=5).eval().double()
    model = randomize(model)
    masks = {f"backbone.{n}": e for n, e in filter_masks(model.backbone, p=0.3, seed=3).items()}  # type: ignore[arg-type]
    result = check_equal(model, ([torch.rand(3, 96, 128, dtype=torch.float64)],), masks, tolerance=1e-6)
    assert result.kept < 0.96
