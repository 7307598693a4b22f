"""Norms that are called several times: the smaller module counts the zeros of every call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import speedup
from speedup.testing import Result, check_equal, mask_indices, masked_copy, randomize


class Plain(nn.Module):
    """An RMS norm without parameters, which does not know how wide its inputs are."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Shared(nn.Module):
    """One norm behind two layers."""

    def __init__(self, norm: nn.Module, widths: tuple[int, int] = (12, 12)) -> None:
        super().__init__()
        self.a, self.b = (nn.Linear(4, width) for width in widths)
        self.n = norm
        self.o, self.p = (nn.Linear(width, 3) for width in widths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.o(self.n(self.a(x))) + self.p(self.n(self.b(x)))
        return result


NORMS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and how many channels of 3 stay to carry the others
    "layer": (lambda: nn.LayerNorm(12), 1),
    "layer without parameters": (lambda: nn.LayerNorm(12, elementwise_affine=False), 1),
    "RMS": (lambda: nn.RMSNorm(12), 0),
    "RMS without parameters": (lambda: nn.RMSNorm(12, elementwise_affine=False), 0),
    "of another library": (Plain, 0),
}
BARE = [name for name in NORMS if "without" in name or "library" in name]


def checked(norm: nn.Module, a: list[int], b: list[int], biases: bool = True) -> Result:
    model = randomize(Shared(norm))
    masked: dict[str, list[int]] = {"a.weight": a, "b.weight": b}
    if biases:
        masked |= {"a.bias": a, "b.bias": b}
    return check_equal(model, torch.randn(2, 5, 4), mask_indices(model, masked), [torch.randn(3, 7, 4)])


@pytest.mark.parametrize("name", NORMS)
def test_zeros_go_from_all_calls(name: str) -> None:
    make, carriers = NORMS[name]
    result = checked(make(), [1, 4, 7], [1, 4, 7])
    assert result.shape("a.weight") == result.shape("b.weight") == (9 + carriers, 4)


@pytest.mark.parametrize("name", NORMS)
def test_calls_lose_other_channels_where_no_weight_ties_them(name: str) -> None:
    make, carriers = NORMS[name]
    result = checked(make(), [1, 4, 7], [1, 4, 8, 9, 10])
    one, two = result.shape("a.weight")[0], result.shape("b.weight")[0]
    # Where a weight ties the calls, what one of them keeps carries what the other loses.
    assert (one, two) == ((9 + carriers, 7 + carriers) if name in BARE else (10, 10))


@pytest.mark.parametrize("name", NORMS)
def test_other_constants_differ_from_call_to_call_and_stay(name: str) -> None:
    result = checked(NORMS[name][0](), [1, 4, 7], [1, 4, 7], biases=False)
    assert result.shape("a.weight") == result.shape("b.weight") == (12, 4)


def test_a_group_norm_loses_zeros_that_it_scales_by_zero() -> None:
    model = randomize(SharedImages())
    gone = [1, 3, 8, 9]
    masked = {name: gone for name in ("a.weight", "a.bias", "b.weight", "b.bias", "n.weight", "n.bias")}
    images = [torch.randn(2, 3, 4, 5), torch.randn(1, 3, 6, 6)]
    result = check_equal(model, images[0], mask_indices(model, masked), images[1:])
    assert result.shape("a.weight")[0] == result.shape("b.weight")[0] == 8


class SharedImages(nn.Module):
    """A group norm for the maps of two sizes, as in the head of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 12, 2, stride=2)
        self.n, self.o = nn.GroupNorm(2, 12), nn.Conv2d(12, 3, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.o(self.n(self.a(x)).relu()), self.o(self.n(self.b(x)).relu())


def test_a_norm_without_parameters_stays_whole_where_widths_differ() -> None:
    model = randomize(Shared(Plain(), (12, 8)))
    masked = {"a.weight": [1, 4], "a.bias": [1, 4], "b.weight": [1, 4], "b.bias": [1, 4]}
    result = check_equal(model, torch.randn(2, 5, 4), mask_indices(model, masked), [torch.randn(3, 7, 4)])
    assert (result.shape("a.weight"), result.shape("b.weight")) == ((12, 4), (8, 4))


def test_a_norm_whose_weight_another_module_has_too_stays_whole() -> None:
    model = randomize(Shared(nn.LayerNorm(12)))
    model.o = nn.Sequential(other := nn.LayerNorm(12), model.o).double()
    other.weight = model.n.weight  # type: ignore[union-attr]
    masked = {"a.weight": [1, 4], "a.bias": [1, 4], "b.weight": [1, 4], "b.bias": [1, 4]}
    result = check_equal(model, torch.randn(2, 5, 4), mask_indices(model, masked), [torch.randn(3, 7, 4)])
    assert result.shape("a.weight") == (12, 4)


@pytest.mark.parametrize("name", NORMS)
def test_more_rounds_and_a_file(name: str, tmp_path: Path) -> None:
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    model: Any = randomize(Shared(NORMS[name][0]())).double().eval()
    for number, (a, b) in enumerate((([1, 4, 7], [1, 4, 8]), ([0, 2], [0, 2, 3]))):
        masks = mask_indices(model, {"a.weight": a, "a.bias": a, "b.weight": b, "b.bias": b})
        wanted, fresh = masked_copy(model, masks)(x), copy.deepcopy(model)
        plan = speedup.plan(model, x, masks)
        plan.apply(model)
        assert torch.allclose(model(x), wanted, rtol=1e-9)
        if not number:
            speedup.save(model, tmp_path / "small")
            assert torch.allclose(speedup.load(fresh, tmp_path / "small")(x), wanted, rtol=1e-9)
    assert model.a.out_features <= 9 + NORMS[name][1]
