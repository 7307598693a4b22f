"""Convolutions over the channels: a channel goes, and its neighbours keep their places."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import speedup
from speedup.testing import check_equal, mask_indices, masked_copy, random_masks, randomize


class Gated(nn.Module):
    """Convolution, the gates of ECA, convolution."""

    def __init__(self, norm: bool, kernel: int = 3, bias: bool = False, dilation: int = 1) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 5, 1)
        self.norm = nn.BatchNorm2d(12) if norm else nn.Identity()
        self.conv = nn.Conv1d(1, 1, kernel, padding=(kernel - 1) * dilation // 2, bias=bias, dilation=dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.a(x))
        y = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1))
        return self.b(x * y.sigmoid().view(x.shape[0], -1, 1, 1).expand_as(x))


GONE = [0, 3, 4, 7, 11]
KERNELS = [(3, False, 1), (5, True, 1), (3, True, 2)]


@pytest.mark.parametrize(("kernel", "bias", "dilation"), KERNELS)
def test_channels_that_are_zero_go(kernel: int, bias: bool, dilation: int) -> None:
    model = randomize(Gated(False, kernel, bias, dilation))
    masks = mask_indices(model, {"a.weight": GONE, "a.bias": GONE})
    result = check_equal(model, torch.randn(2, 3, 8, 8), masks, [torch.randn(1, 3, 6, 9)])
    assert (result.shape("a.weight"), result.shape("b.weight")) == ((7, 3, 3, 3), (5, 7, 1, 1))
    assert result.shape("conv.weight") == (1, 1, kernel)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["filters", "filters+biases", "columns", "biases", "whole", "mixed"])
@pytest.mark.parametrize("norm", [False, True])
def test_all_kinds_of_masks_stay_equal(norm: bool, kind: str, seed: int) -> None:
    """A channel that is constant for a norm's shift is gated by its neighbours: it stays."""
    model = randomize(Gated(norm), seed)
    check_equal(model, torch.randn(2, 3, 8, 8), random_masks(model, seed, kind), [torch.randn(1, 3, 6, 9)])


class Read(nn.Module):
    """The gates alone: some are not read, and some channels are constants other than 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.conv, self.b = nn.Linear(4, 9), nn.Conv1d(1, 1, 3, padding=1), nn.Linear(9, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.conv(self.a(x)[:, None])[:, 0])


def test_constants_stand_between_what_is_left() -> None:
    """Filters 2 to 4 are constant, and gates 2 and 3 are read by nobody: gate 4 is, and its neighbours read 3."""
    model = randomize(Read())
    masks = mask_indices(model, {"a.weight": [2, 3, 4]}) | mask_indices(model, {"b.weight": [2, 3]}, axis=1)
    result = check_equal(model, torch.randn(5, 4), masks, [torch.randn(2, 4)])
    assert (result.shape("a.weight"), result.shape("b.weight")) == ((7, 4), (2, 7))


def test_a_sequence_is_no_line_of_channels() -> None:
    """Its length is that of the input."""
    model = randomize(nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(1, 4, 3), nn.Conv1d(4, 1, 1)))
    masks = mask_indices(model, {"1.weight": [0, 2], "1.bias": [0, 2]})
    result = check_equal(model, torch.randn(2, 1, 9), masks, [torch.randn(3, 1, 14)])
    assert result.shape("1.weight") == (2, 1, 3)


def test_it_is_planned_without_weights() -> None:
    """Where the weights are not at hand, places and zeros between them are known all the same."""
    model, x = randomize(Gated(False)).eval(), torch.randn(2, 3, 8, 8)
    masks = mask_indices(model, {"a.weight": GONE, "a.bias": GONE})
    expected = masked_copy(model, masks)(x)
    plan = speedup.plan(copy.deepcopy(model).to("meta"), x.to("meta"), masks)
    small: Any = plan.apply(model)
    assert small.a.weight.shape[0] == 7 and torch.allclose(small(x), expected, atol=1e-5)
