"""Norms over all channels and positions together, as separation of speakers has them (Conv-TasNet)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import speedup
from speedup.testing import check_equal, mask_indices, masked_copy, randomize

GONE = [0, 1, 5, 9]


class Plain(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2), keepdim=True)
        var = ((x - mean) ** 2).mean((1, 2), keepdim=True)
        return self.weight * (x - mean) / torch.sqrt(var + 1e-8) + self.bias


class Greek(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)
        var = torch.pow(x - mean, 2).mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)
        return self.gamma * (x - mean) / torch.pow(var + 1e-8, 0.5) + self.beta


def net(norm: nn.Module) -> nn.Module:
    return randomize(nn.Sequential(nn.Conv1d(3, 12, 1), copy.deepcopy(norm), nn.Conv1d(12, 4, 3)), 0)


def widths(norm: nn.Module, *gone: dict[str, list[int]]) -> list[int]:
    """What is left after rounds of pruning, each of which is compared with the masked model."""
    small: nn.Module = net(norm).double().eval()
    found = []
    for each in gone:
        masks = mask_indices(small, each)
        masked = masked_copy(small, masks)
        small = speedup.plan(small, torch.randn(2, 3, 9, dtype=torch.float64), masks).apply()
        other = torch.randn(3, 3, 6, dtype=torch.float64)
        torch.testing.assert_close(small(other), masked(other), rtol=1e-9, atol=1e-9)
        found.append(small.get_parameter("2.weight").shape[1])
    return found


NORMS = [Plain(12, 1), Plain(1, 12, 1), Greek(1, 12, 1)]


@pytest.mark.parametrize("norm", NORMS, ids=["two axes", "three axes", "greek"])
@pytest.mark.parametrize("zeros", [False, True])
def test_what_went_is_counted(norm: nn.Module, zeros: bool) -> None:
    """As by torch's norm of one group, also in a second round."""
    names = ["0.weight", *(["0.bias"] if zeros else [])]
    rounds = [{name: gone for name in names} for gone in (GONE, [2, 3])]
    found = widths(norm, *rounds)
    assert found == widths(nn.GroupNorm(1, 12), *rounds) and found[0] == 10 - zeros


@pytest.mark.parametrize("norm", NORMS, ids=["two axes", "three axes", "greek"])
def test_masks_of_the_norm_itself(norm: nn.Module) -> None:
    model = net(norm)
    masks = mask_indices(model, {"0.weight": GONE, "0.bias": GONE})
    for name, parameter in norm.named_parameters():
        axis = max(range(parameter.ndim), key=lambda a: parameter.shape[a])
        masks |= {"1": masks.get("1", {}) | mask_indices(model, {f"1.{name}": GONE}, axis)["1"]}
    result = check_equal(model, torch.randn(2, 3, 9), masks, [torch.randn(3, 3, 5)])
    assert result.shape("2.weight") == (4, 8, 3)
