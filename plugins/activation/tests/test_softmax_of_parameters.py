"""Weights that a softmax makes of parameters, as in the search for architectures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import check_equal, mask_indices, random_masks, randomize


class Mixed(nn.Module):
    """A weighted sum of branches, one of which gives other constants than 0."""

    def __init__(self, softmax: nn.Module | None) -> None:
        super().__init__()
        self.stem, self.alpha, self.out = nn.Conv2d(3, 8, 1), nn.Parameter(torch.randn(3)), nn.Conv2d(8, 4, 1)
        self.ops = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1), nn.Identity(), nn.BatchNorm2d(8)])
        self.softmax = softmax

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        weights = F.softmax(self.alpha, -1) if self.softmax is None else self.softmax(self.alpha)
        return self.out(sum(w * op(x) for w, op in zip(weights, self.ops, strict=True)))


@pytest.mark.parametrize("softmax", [None, nn.Softmax(0), nn.LogSoftmax(0), nn.Softmin(-1)])
def test_branches_that_it_weighs_lose_channels(softmax: nn.Module | None) -> None:
    model = randomize(Mixed(softmax))
    masks = mask_indices(model, {n: [0, 3, 6] for n in ("stem.weight", "stem.bias", "ops.0.weight", "ops.0.bias")})
    result = check_equal(model, torch.randn(2, 3, 6, 6), masks, [torch.randn(1, 3, 8, 5)])
    assert result.shape("out.weight") == (4, 5, 1, 1)


class OverChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.table, self.out = nn.Conv2d(3, 8, 1), nn.Parameter(torch.randn(1, 8, 1, 1)), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.softmax(self.stem(x), 1) + F.softmax(self.table, 1) * self.stem(x))


@pytest.mark.parametrize("kind", ["filters", "filters+biases", "whole", "mixed"])
def test_what_is_partly_constant_is_not_known(kind: str) -> None:
    model = randomize(OverChannels())
    for seed in range(3):
        check_equal(model, torch.randn(2, 3, 6, 6), random_masks(model, seed, kind), [torch.randn(1, 3, 8, 5)])
