"""Norms that divide by a deviation: channels that are 0 go and are counted all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from speedup.testing import Result, check_equal, mask_indices, random_masks, randomize


def deviation(x: torch.Tensor, groups: int, eps: float, squares: bool = False) -> torch.Tensor:
    grouped = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    over = (2, 3, 4)
    spread = grouped.square().mean(over, True) if squares else grouped.var(over, unbiased=False, keepdim=True)
    return spread.add(eps).sqrt().expand(grouped.shape).reshape(x.shape)


class Evo(nn.Module):
    """With a gate of its own (S0)."""

    def __init__(self, width: int, groups: int = 2) -> None:
        super().__init__()
        self.groups, self.eps = groups, 1e-3
        self.weight, self.bias, self.v = (nn.Parameter(torch.ones(width)) for _ in "wbv")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias, v = (p.view(1, -1, 1, 1) for p in (self.weight, self.bias, self.v))
        return x * (x * v).sigmoid() / deviation(x, self.groups, self.eps) * weight + bias


class Activated(nn.Module):
    """With an activation, over the mean of squares (S2)."""

    def __init__(self, width: int, groups: int = 2) -> None:
        super().__init__()
        self.groups, self.eps, self.act = groups, 1e-3, nn.SiLU(inplace=True)
        self.weight, self.bias = (nn.Parameter(torch.ones(width)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (p.view(1, -1, 1, 1) for p in (self.weight, self.bias))
        return self.act(x.clone()) / deviation(x, self.groups, self.eps, True) * weight + bias


class Simple(nn.Module):
    """Over all channels of a position, divided by one less."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)
        return (x * torch.rsqrt(x.var(-1, keepdim=True) + self.eps) * self.weight).permute(0, 3, 1, 2)


class Less(Evo):
    """Something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) - x.mean((1, 2, 3), keepdim=True)


NORMS: dict[str, Callable[[int], nn.Module]] = {"evo": Evo, "activated": Activated, "simple": Simple}


def net(norm: Callable[[int], nn.Module], bias: bool = False) -> nn.Sequential:
    made = nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias), norm(8), nn.Conv2d(8, 4, 1))
    randomize(made)
    return made


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


def checked(model: nn.Module, masks: dict[str, dict[str, torch.Tensor]]) -> Result:
    return check_equal(model, image(2, 3, 6, 6), masks, [image(1, 3, 7, 5), image(3, 3, 4, 8)])


@pytest.mark.parametrize("name", NORMS)
def test_channels_that_are_zero_go(name: str) -> None:
    model = net(NORMS[name])
    result = checked(model, mask_indices(model, {"0.weight": [0, 3, 5, 6]}))
    assert (result.shape("0.weight")[0], result.shape("1.weight"), result.shape("2.weight")[1]) == (4, (4,), 4)
    assert result.plan.report.barriers == []


def test_other_constants_are_counted() -> None:
    model = net(Evo, bias=True)
    assert checked(model, mask_indices(model, {"0.weight": [0, 3, 5, 6]})).shape("0.weight")[0] == 8


def test_whole_groups_go() -> None:
    model = net(Evo)
    result = checked(model, mask_indices(model, {"0.weight": [0, 1, 2, 3]}))
    assert (result.shape("0.weight")[0], result.model.get_submodule("1").groups) == (4, 1)


@pytest.mark.parametrize("kind", ["filters", "columns", "fine", "biases", "mixed"])
@pytest.mark.parametrize("name", NORMS)
def test_all_kinds_of_masks_stay_equal(name: str, kind: str) -> None:
    for seed in range(3):
        model = net(NORMS[name], bias=seed == 0)
        checked(model, random_masks(model, seed, kind))


def test_a_second_argument_is_another_formula() -> None:
    """Written out in plain calls, a gated norm is known by its parts, and stays so."""

    class Gated(Evo):
        def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(x if gate is None else x * gate)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(3, 8, 3), Gated(8)
            randomize(self)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.norm(self.a(x), self.b(x))
            return made.sum(1)

    model = Both()
    result = checked(model, mask_indices(model, {"a.weight": [0, 3, 5, 6]}))
    assert not any("Gated" in barrier for barrier in result.plan.report.barriers)


def test_another_formula_is_not_taken_for_it() -> None:
    model = net(Less)
    assert checked(model, mask_indices(model, {"0.weight": [0, 3, 5, 6]})).shape("0.weight")[0] == 8


@pytest.mark.parametrize("norm", [Evo(16, 8), nn.GroupNorm(8, 16)], ids=["evo", "group_norm"])
def test_groups_keep_equal_counts(norm: nn.Module) -> None:
    """Of 8 pairs one goes, and none keeps half: what is left is read as pairs again."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), norm, nn.Conv2d(16, 4, 1))
    randomize(model)
    dropped = [1, 2, 4, 9, 13, 14, 15]
    masks = mask_indices(model, {"0.weight": dropped, "1.weight": dropped, "1.bias": dropped})
    assert checked(model, masks).shape("0.weight")[0] == 14
