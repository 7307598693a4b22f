"""Constants under zero padding: of the filters that read nothing else as many stay as there are kinds of places."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup import Value
from speedup.testing import check_equal, mask_indices, randomize

CONV = {1: nn.Conv1d, 2: nn.Conv2d}
LIVE, GONE = 6, 24
SIZES = (1, 2, 3, 8, 11)


def image(d: int, *sizes: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(sum(sizes))
    return torch.randn(2, 3, *(sizes if len(sizes) == d else sizes * d), generator=g, dtype=torch.float64)


class Mobile(nn.Module):
    """An expansion, a depthwise convolution, a projection; the first filters of the expansion are masked."""

    def __init__(self, d: int, act: nn.Module, **arguments: object) -> None:
        super().__init__()
        wide = LIVE + GONE
        self.expand, self.project = CONV[d](3, wide, 1), CONV[d](wide, 4, 1)
        self.depthwise = CONV[d](wide, wide, groups=wide, **arguments)
        self.norm, self.act = (nn.BatchNorm1d if d == 1 else nn.BatchNorm2d)(wide), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(self.act(self.norm(self.depthwise(self.expand(x)))))


def left(model: nn.Module, d: int, least: int = 1) -> int:
    masks = mask_indices(model, {"expand.weight": range(GONE)})
    others = [image(d, n) for n in SIZES if n >= least] + ([image(2, least, 7), image(2, 6, least)] if d == 2 else [])
    return check_equal(model, image(d, 9), masks, others).shape("expand.weight")[0]


PADDED = {
    # kinds of places along an axis, one less is what needs a carrier: what is the same everywhere goes into the bias
    "1d": (1, dict(kernel_size=3, padding=1), 4 - 1),
    "2d": (2, dict(kernel_size=3, padding=1), 4 * 4 - 1),
    "same": (2, dict(kernel_size=2, padding="same"), 2 * 2 - 1),
    "stride": (2, dict(kernel_size=3, padding=1, stride=2), 4 * 4 - 1),
    "stride, one end": (1, dict(kernel_size=4, padding=2, stride=2), 2 * 3 - 1),
    "dilation": (1, dict(kernel_size=3, padding=2, dilation=2), 4 - 1),
    "one axis": (2, dict(kernel_size=3, padding=(0, 1)), 4 - 1),
    "wide": (1, dict(kernel_size=7, padding=3), 16 - 1),
}


@pytest.mark.parametrize("name", PADDED)
def test_as_many_stay_as_there_are_kinds_of_places(name: str) -> None:
    d, arguments, carriers = PADDED[name]
    model = randomize(Mobile(d, nn.SiLU(), **arguments))
    assert left(model, d, 3 if name == "one axis" else 1) == LIVE + carriers


@pytest.mark.parametrize("act", [nn.ReLU6(), nn.Hardswish(), nn.Sequential(nn.Identity(), nn.GELU()), nn.Identity()])
def test_whatever_activation_follows(act: nn.Module) -> None:
    assert left(randomize(Mobile(2, act, kernel_size=3, padding=1)), 2) <= LIVE + 15


def test_too_many_kinds_of_places_stay_all() -> None:
    assert left(randomize(Mobile(2, nn.SiLU(), kernel_size=5, padding=2)), 2) == LIVE + GONE


def test_channels_go_last() -> None:
    """The feed-forward part of SegFormer and PVT."""

    class Mixed(Mobile):
        def __init__(self) -> None:
            super().__init__(2, nn.GELU(), kernel_size=3, padding=1)
            self.project = nn.Linear(LIVE + GONE, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.depthwise(self.expand(x)).flatten(2).transpose(1, 2)
            return self.project(self.act(x))

    assert left(randomize(Mixed()), 2) == LIVE + 15


def test_two_of_them_side_by_side() -> None:
    """A ghost module: what the depthwise convolution makes stands beside what it read."""

    class Ghost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand, self.depthwise = nn.Conv1d(3, 30, 1), nn.Conv1d(30, 30, 3, padding=1, groups=30)
            self.project = nn.Conv1d(60, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.expand(x)
            return self.project(F.silu(torch.cat([x, self.depthwise(x)], 1)))

    assert left(randomize(Ghost()), 1) == LIVE + 3


def test_filters_of_a_dense_convolution_that_read_constants_only() -> None:
    """Its other columns are masked."""
    model = randomize(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 30, 3, padding=1), nn.Tanh(), nn.Conv2d(30, 4, 1)))
    masks = mask_indices(model, {"0.weight": range(4)})
    weight = torch.ones(30, 8, 3, 3)
    weight[:GONE, 4:] = 0
    masks["1"] = {"weight": weight}
    result = check_equal(model, image(2, 9), masks, [image(2, n) for n in SIZES])
    assert result.shape("1.weight")[0] == LIVE + 15


def test_a_gate_that_depends_on_the_input_keeps_them() -> None:
    class Gated(Mobile):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.act(self.depthwise(self.expand(x)))
            return self.project(x * x.mean((2, 3), keepdim=True).sigmoid().flip(1))

    assert left(randomize(Gated(2, nn.SiLU(), kernel_size=3, padding=1)), 2) == LIVE + GONE


def test_a_weight_is_not_read_whole_where_every_filter_reads_what_nobody_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[tuple[int, ...]] = []
    contents = Value.contents

    def noted(value: Value) -> torch.Tensor:
        read.append(value.shape)
        return contents(value)

    monkeypatch.setattr(Value, "contents", noted)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1)).double()
    keep = torch.arange(8) % 2 == 0
    masks = {"0.weight": keep.view(-1, 1, 1, 1).expand(8, 3, 3, 3)}  # biases stay: constants behind the first layer

    speedup.plan(model, torch.randn(1, 3, 6, 6).double(), masks)

    assert not [shape for shape in read if len(shape) == 4]
