"""Weight normalisation: a length that takes up what its direction lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import speedup
from speedup.testing import check_equal, mask_indices, randomize

GONE = [0, 3, 4]
LENGTH, DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"


class Net(nn.Module):
    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.a, self.b, self.c = wrap(nn.Conv1d(3, 8, 3, padding=1)), wrap(nn.Conv1d(8, 6, 3)), nn.Conv1d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x).relu()).sigmoid())


class Joined(Net):
    """Every filter of b is added to something that is no constant, and stays."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c((self.b(self.a(x).relu()) + x.mean(1, keepdim=True)[..., 1:-1]).sigmoid())


def sound(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]))


def checked(model: nn.Module, masked: dict[str, list[int]]) -> Any:
    return check_equal(randomize(model, 0), sound(2, 3, 10), mask_indices(model, masked), [sound(3, 3, 17)])


@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_filters_that_are_zero_go_and_their_columns_with_them(dim: int | None) -> None:
    """A filter is 0 where its direction is 0, or its length, if it has one of its own."""
    model = Net(lambda layer: parametrizations.weight_norm(layer, dim=dim))
    masked = {f"a.{LENGTH if dim == 0 else DIRECTION}": GONE, "a.bias": GONE}
    result = checked(model, masked)
    assert result.shape(f"a.{DIRECTION}") == (5, 3, 3) and result.shape(f"b.{DIRECTION}") == (6, 5, 3)


def test_what_goes_need_not_be_zero() -> None:
    """Nobody reads what the last layer does not read."""
    model = Net(lambda layer: parametrizations.weight_norm(layer, dim=2))
    result = check_equal(
        randomize(model, 0), sound(2, 3, 10), mask_indices(model, {"c.weight": [1, 5]}, axis=1), [sound(3, 3, 17)]
    )
    assert result.shape(f"b.{DIRECTION}") == (4, 8, 3)


def test_the_old_form_with_a_hook() -> None:
    with torch.no_grad():  # else it cannot be copied
        model = Net(nn.utils.weight_norm)  # type: ignore[arg-type]
    result = checked(model, {"a.weight_g": GONE, "a.bias": GONE})
    assert result.shape("a.weight_v") == (5, 3, 3) and result.shape("b.weight_v") == (6, 5, 3)


def test_no_norm_becomes_zero() -> None:
    """All that would be left of the first filter of b is 0, and its weight not defined."""
    model = randomize(Joined(parametrizations.weight_norm), 0)
    masks = mask_indices(model, {f"a.{LENGTH}": GONE, "a.bias": GONE})
    kept = [i for i in range(8) if i not in GONE]
    direction = torch.ones(6, 8, 3)
    direction[0, kept] = 0
    masks["b.parametrizations.weight"] = {"original1": direction}
    result = check_equal(model, sound(2, 3, 10), masks, [sound(3, 3, 17)])
    assert result.shape(f"b.{DIRECTION}")[1] > 5


def test_a_length_that_two_layers_share_takes_up_nothing() -> None:
    model = Net(parametrizations.weight_norm)
    twin = parametrizations.weight_norm(nn.Conv1d(6, 6, 1))
    twin.parametrizations.weight.original0 = model.b.parametrizations.weight.original0
    model.c = nn.Sequential(twin, nn.Conv1d(6, 4, 1))
    result = checked(model, {f"a.{LENGTH}": GONE, "a.bias": GONE})
    assert result.shape(f"b.{DIRECTION}") == (6, 8, 3)


@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_channels_are_chosen_by_their_length_where_they_have_one(dim: int | None) -> None:
    """A direction that is masked whole has no norm, and one that lacks a column another one."""
    model = randomize(Net(lambda layer: parametrizations.weight_norm(layer, dim=dim)), 0)
    masks = speedup.prune_masks(model, sound(2, 3, 10))
    assert (f"a.{LENGTH}" in masks, f"a.{DIRECTION}" in masks) == (dim == 0, dim != 0)
    result = check_equal(model, sound(2, 3, 10), masks, [sound(3, 3, 17)])
    assert result.shape(f"a.{DIRECTION}") == (4, 3, 3) and result.shape(f"b.{DIRECTION}") == (3, 4, 3)


def test_channels_of_transposed_layers_are_columns() -> None:
    layers = nn.ConvTranspose1d(3, 8, 3), nn.ReLU(), nn.ConvTranspose1d(8, 2, 3)
    model = randomize(nn.Sequential(*(parametrizations.weight_norm(m) if hasattr(m, "weight") else m for m in layers)))
    result = check_equal(model, sound(2, 3, 10), speedup.prune_masks(model, sound(2, 3, 10)), [sound(3, 3, 17)])
    assert result.shape(f"0.{DIRECTION}") == (3, 4, 3) and result.shape(f"2.{DIRECTION}") == (4, 2, 3)
