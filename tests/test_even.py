"""Runs of one line that keep different counts: a number in the code that is the size of each of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import speedup
from speedup.kinds import Kind
from speedup.testing import Masks, check_equal, mask_indices, randomize


class Heads(nn.Module):
    """Heads in a loop, with their width in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.ReLU()) for _ in range(3))
        self.width, self.last = 12, nn.Linear(36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = []
        for head in self.heads:
            made.append(head(x).view(x.shape[0], self.width, -1).mean(-1))
        result: torch.Tensor = self.last(torch.cat(made, 1))
        return result


class Blocks(nn.Module):
    """Blocks in a loop, with their width as a number in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.ups = nn.ModuleList(nn.Conv2d(3, 12, 1) for _ in range(3))
        self.downs = nn.ModuleList(nn.Linear(12, 3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for up, down in zip(self.ups, self.downs, strict=True):
            hidden = up(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 12).relu()
            x = x + down(hidden).transpose(1, 2).reshape(x.shape)
        return x


class Parts(nn.Module):
    """Tensors that are made in a loop and split by numbers that are written out."""

    def __init__(self) -> None:
        super().__init__()
        self.ins = nn.ModuleList(nn.Conv2d(3, 24, 1) for _ in range(3))
        self.outs = nn.ModuleList(nn.Conv2d(12, 4, 1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = []
        for first, last in zip(self.ins, self.outs, strict=True):
            a, b = first(x).split([12, 12], 1)
            made.append(last(a * torch.sigmoid(b)))
        return torch.cat(made, 1)


def masked(net: nn.Module, dropped: list[list[int]], layers: str, more: int = 0) -> Masks:
    """Weights alone: the biases stay, and are constants behind what goes."""
    found: dict[str, list[int]] = {}
    for number, indices in enumerate(dropped):
        name = layers.format(number)
        found[f"{name}.weight"] = [*indices, *(i + more for i in indices)] if more else indices
    return mask_indices(net, found)


@pytest.mark.parametrize(
    "dropped", [[[0, 3], [5, 6, 7, 11], [1, 4, 8]], [[2], [], [7, 8, 9]], [[0, 1], [2, 3], [4, 5]]]
)
@pytest.mark.parametrize(
    ("net", "layers", "more"), [(Heads, "heads.{}.0", 0), (Blocks, "ups.{}", 0), (Parts, "ins.{}", 12)]
)
def test_all_runs_keep_as_many_as_the_widest(
    net: type[nn.Module], layers: str, more: int, dropped: list[list[int]]
) -> None:
    """In place of all: the one number that the code has for them becomes that of the widest run."""
    model = randomize(net()).double()
    inputs = torch.randn(2, 3, 4, 4).double()
    masks = masked(model, dropped, layers, more)
    check_equal(model, inputs, masks, [torch.randn(3, 3, 6, 4).double()])
    small = copy.deepcopy(model)
    plan = speedup.plan(small, inputs, masks)
    plan.apply()
    width = 12 - min(map(len, dropped))
    widths = [small.get_submodule(layers.format(n)).weight.shape[0] for n in range(3)]
    assert widths == [width * (2 if more else 1)] * 3
    uneven = len({len(d) for d in dropped}) > 1
    assert any(s.kind is Kind.RUNS for s in plan.report.stays) == uneven
    assert ("every run of the line" in plan.explain()) == uneven
