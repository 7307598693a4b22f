"""Local response normalisation: a channel goes, and its neighbours keep their places."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speedup.testing import check_equal, mask_indices, random_masks, randomize


def network(size: int = 3) -> nn.Module:
    norm = nn.LocalResponseNorm(size, alpha=0.7, beta=0.6, k=0.4)
    return randomize(nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), norm, nn.Conv2d(12, 5, 3)))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_channels_that_are_zero_go(size: int) -> None:
    model, gone = network(size), [0, 3, 4, 7, 11]
    masks = mask_indices(model, {"0.weight": gone, "0.bias": gone})
    result = check_equal(model, torch.randn(2, 3, 8, 8), masks, [torch.randn(1, 3, 6, 9)])
    assert (result.shape("0.weight"), result.shape("3.weight")) == ((7, 3, 3, 3), (5, 7, 3, 3))


def test_what_is_read_by_its_neighbours_stays() -> None:
    """Nobody reads channel 5 behind the norm, but 4 and 6 are divided by it."""
    model = network()
    result = check_equal(model, torch.randn(2, 3, 8, 8), mask_indices(model, {"3.weight": [5]}, axis=1))
    assert result.shape("0.weight")[0] == 12


@pytest.mark.parametrize("kind", ["filters", "filters+biases", "columns", "whole", "mixed"])
def test_all_kinds_of_masks_stay_equal(kind: str) -> None:
    model = network()
    for seed in range(3):
        check_equal(model, torch.randn(2, 3, 8, 8), random_masks(model, seed, kind), [torch.randn(1, 3, 6, 9)])
