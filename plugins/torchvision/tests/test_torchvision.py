"""Operators of torchvision: what goes, and what stays."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import check_equal, mask_indices, randomize

ops = pytest.importorskip("torchvision.ops", reason="torchvision is no dependency: pip install torchvision")


def image(size: int = 8, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, size, size + 1, generator=torch.Generator().manual_seed(size)).double()


class Deformed(nn.Module):
    """A deformable convolution with its offsets, and a plain one behind it."""

    def __init__(self, modulated: bool = False, groups: int = 1, offset_groups: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.offset = nn.Conv2d(8, 18 * offset_groups, 3, padding=padding)
        self.scale = nn.Conv2d(8, 9 * offset_groups, 3, padding=padding) if modulated else None
        self.deform = ops.DeformConv2d(8, 6, 3, padding=padding, groups=groups)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.softplus(self.conv(x))  # what is masked is 0.69 behind it, and another number beyond the border
        scale = None if self.scale is None else torch.sigmoid(self.scale(x))
        result: torch.Tensor = self.head(self.deform(x, self.offset(x), scale))
        return result


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_deformable_convolution_loses_channels(modulated: bool, padding: int) -> None:
    """Those that are a constant are folded into one that stays, as the border is sampled too."""
    net = randomize(Deformed(modulated, padding=padding))
    masks = mask_indices(
        net,
        {"conv.weight": [0, 3, 4], "conv.bias": [0, 3, 4], "deform.weight": [1, 2], "deform.bias": [1, 2]},
    )
    small = check_equal(net, image(), masks, [image(6, 3), image(12, 1)]).model
    assert small.deform.weight.shape == (4, 6, 3, 3)  # one of the three is the carrier
    assert (small.deform.in_channels, small.deform.out_channels) == (6, 4)


def test_groups_of_a_deformable_convolution() -> None:
    net = randomize(Deformed(groups=2))
    masks = mask_indices(net, {n: [0, 1, 3] for n in ("deform.weight", "deform.bias")} | {"conv.weight": [0, 4]})
    masks |= mask_indices(net, {"conv.bias": [0, 4]})
    small = check_equal(net, image(), masks, [image(6, 3)]).model
    assert (small.deform.weight.shape, small.head.in_channels) == ((4, 4, 3, 3), 4)  # each group keeps as many


@pytest.mark.parametrize("modulated", [False, True])
def test_groups_of_offsets_keep_the_same_positions(modulated: bool) -> None:
    """Of two groups with four channels each: the constants of 1 are folded into 3, in each group for itself."""
    net = randomize(Deformed(modulated, offset_groups=2))
    names = {"conv.weight": [0, 1, 3, 5, 7], "conv.bias": [1, 3, 5, 7], "deform.weight": [1], "deform.bias": [1]}
    masks = mask_indices(net, names)
    small = check_equal(net, image(), masks, [image(6, 3), image(12, 1)]).model
    assert small.deform.weight.shape == (5, 6, 3, 3)
    assert (small.deform.in_channels, small.deform.out_channels, small.conv.out_channels) == (6, 5, 6)


def test_groups_of_offsets_without_what_nobody_reads() -> None:
    net = randomize(Deformed(offset_groups=2))
    masks = mask_indices(net, {"conv.weight": [0, 2, 4, 6], "conv.bias": [0, 2, 4, 6]})
    net.conv.bias.data[2], net.conv.bias.data[6] = 7.0, 7.0
    reading = mask_indices(net, {"deform.weight": [1, 5], "offset.weight": [1, 5]}, axis=1)
    small = check_equal(net, image(), masks | reading, [image(6, 3)]).model
    assert small.deform.weight.shape == (6, 4, 3, 3)  # a carrier in each group for the two that are constants


def test_groups_of_channels_with_groups_of_offsets_are_a_barrier() -> None:
    net = randomize(Deformed(groups=2, offset_groups=2))
    masks = mask_indices(net, {"conv.weight": [0, 4], "conv.bias": [0, 4]})
    result = check_equal(net, image(), masks, [image(6, 3)])
    assert result.model.conv.out_channels == 8
    assert "several groups of channels, and of offsets" in " ".join(result.plan.explain().split())


def test_the_function_with_weights_of_another_module() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.offset = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 18, 3, padding=1)
            self.kernel, self.head = nn.Parameter(torch.randn(6, 8, 3, 3)), nn.Conv2d(6, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = ops.deform_conv2d(F.relu(self.conv(x)), self.offset(x), self.kernel, padding=1)
            result: torch.Tensor = self.head(y)
            return result

    net = randomize(Net())
    masks = mask_indices(net, {"conv.weight": [0, 4], "conv.bias": [0, 4], "kernel": [2]})
    small = check_equal(net, image(), masks, [image(6, 3)]).model
    assert small.kernel.shape == (5, 6, 3, 3)


class Detector(nn.Module):
    """Regions whose number is for the data to say, pooled from two levels as in Faster R-CNN."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.pool = ops.MultiScaleRoIAlign(["fine", "coarse"], 3, 2, canonical_scale=6, canonical_level=1)
        self.fc, self.head, self.threshold = nn.Linear(8 * 9, 7), nn.Linear(7, 4), threshold

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.fine(x)
        maps = {"fine": fine, "coarse": self.coarse(fine)}
        boxes = []
        for each in x:
            found = each.flatten()[:12].reshape(3, 4)
            found = found[found.sum(1).abs() > self.threshold].sigmoid() * 4
            boxes.append(torch.cat([found[:, :2], found[:, :2] + found[:, 2:] + 0.5], 1))
        pooled = self.pool(maps, boxes, [tuple(x.shape[-2:])] * len(x))
        result: torch.Tensor = self.head(F.relu(self.fc(pooled.flatten(1))))
        return result


@pytest.mark.parametrize("threshold", [0.0, 1.0, 1e3], ids=["all", "some", "none"])
def test_regions_pass_channels_that_are_zero(threshold: float) -> None:
    """Also where the dummy input has none."""
    net = randomize(Detector(threshold))
    masks = mask_indices(net, {n: [0, 3, 4] for n in ("fine.weight", "fine.bias", "coarse.weight", "coarse.bias")})
    others = [image(9, 3) * 3, image(12, 1) * 1e3, image(7, 2) * 1e4]
    small = check_equal(net, image(), masks, others).model
    assert small.coarse.out_channels == 5 and small.fc.in_features == 5 * 9
    assert {len(net.eval().double()(x)) for x in others} != {0}


class BySide(nn.Module):
    """As R-FCN: each part of a region is pooled from channels of its own, 9 for each of 4 classes."""

    def __init__(self, pool: str, places: bool = False) -> None:
        super().__init__()
        self.conv, self.head, self.pool, self.places = nn.Conv2d(3, 36, 3, padding=1), nn.Linear(36, 5), pool, places

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = float(x.shape[-1])
        boxes = torch.tensor([[n, 0.5, 1.0, side - 1, 5.0] for n in range(len(x))], dtype=x.dtype)
        extra = (2,) if self.pool == "ps_roi_align" else ()
        y, places = getattr(torch.ops.torchvision, self.pool)(self.conv(x), boxes, 1.0, 3, 3, *extra)
        result: torch.Tensor = self.head(y.flatten(1))
        return result + places.sum() if self.places else result


@pytest.mark.parametrize("pool", ["ps_roi_align", "ps_roi_pool"])
def test_parts_of_regions_with_channels_of_their_own(pool: str) -> None:
    """Those of one class go together: of 1 and 3 all, of 2 some."""
    gone = [*range(9, 18), *range(27, 36), 18, 19]
    net = randomize(BySide(pool))
    small = check_equal(
        net, image(), mask_indices(net, dict.fromkeys(["conv.weight", "conv.bias"], gone)), [image(9, 3)]
    )
    assert (small.shape("conv.weight")[0], small.shape("head.weight")[1]) == (18, 18)
    net = randomize(BySide(pool, places=True))
    small = check_equal(
        net, image(), mask_indices(net, dict.fromkeys(["conv.weight", "conv.bias"], gone)), [image(9, 3)]
    )
    assert small.shape("conv.weight")[0] == 36


def test_constants_that_are_not_zero_stay_before_regions() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 9, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            size = float(x.shape[-1])
            boxes = [torch.tensor([[-2.0, -1.0, size + 3, 4.0]], dtype=x.dtype)] * len(x)
            result: torch.Tensor = self.head(ops.roi_align(torch.cos(self.conv(x)), boxes, 3).flatten(1))
            return result

    net = randomize(Net())
    masks = mask_indices(net, {"conv.weight": [0, 3, 4], "conv.bias": [0, 3, 4]})
    assert check_equal(net, image(), masks, [image(12, 3)]).model.conv.out_channels == 8


def test_torchvision_is_not_loaded() -> None:
    code = "import sys, speedup; speedup.Registry.load(); print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
