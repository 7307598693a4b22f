"""Spectral normalisation: a vector that takes up what the weight lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import speedup
from speedup.testing import check_equal, mask_indices, randomize

GONE = [0, 3, 4]
WEIGHT = "parametrizations.weight.original"


class Net(nn.Module):
    def __init__(self, dim: int | None = None, transposed: bool = False) -> None:
        super().__init__()
        make = nn.ConvTranspose1d if transposed else nn.Conv1d
        layers = make(3, 8, 3, padding=1), make(8, 6, 3), nn.Conv1d(6, 4, 1)
        self.a, self.b, self.c = (parametrizations.spectral_norm(layer, dim=dim) for layer in layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x).relu()).sigmoid())


def sound(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]))


def trained(model: nn.Module) -> nn.Module:
    """With vectors that fit the weights, as after training."""
    randomize(model, 0).train()
    for _ in range(20):
        model(sound(2, 3, 10))
    return model.eval()


def checked(model: nn.Module, masks: Any) -> Any:
    return check_equal(model, sound(2, 3, 10), masks, [sound(3, 3, 17)])


def without(model: nn.Module) -> Any:
    """Masks of some filters with their biases."""
    return mask_indices(model, {f"a.{WEIGHT}": GONE, "a.bias": GONE})


@pytest.mark.parametrize("dim", [None, 1, 2])
@pytest.mark.parametrize("make", [trained, lambda m: randomize(m, 0)], ids=["trained", "random vectors"])
def test_filters_go_and_the_columns_that_read_them(make: Any, dim: int | None) -> None:
    """The columns are not 0: without them the product is another one."""
    model = make(Net(dim))
    result = checked(model, without(model))
    assert result.shape(f"a.{WEIGHT}") == (5, 3, 3) and result.shape(f"b.{WEIGHT}") == (6, 5, 3)
    sizes = {0: ((5,), (9,)), 1: ((3,), (15,)), 2: ((3,), (15,))}[dim or 0]
    assert tuple(result.shape(f"a.parametrizations.weight.0._{n}") for n in "uv") == sizes


def test_transposed_convolutions() -> None:
    model = trained(Net(transposed=True))
    masks = {**mask_indices(model, {f"a.{WEIGHT}": GONE}, axis=1), **mask_indices(model, {"a.bias": GONE})}
    result = checked(model, masks)
    assert result.shape(f"a.{WEIGHT}") == (3, 5, 3) and result.shape(f"b.{WEIGHT}") == (5, 6, 3)


def test_single_entries() -> None:
    model = trained(Net())
    entries = (torch.rand(6, 8, 3, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    entries[:, [1, 2]] = 0
    masks = {"b.parametrizations.weight": {"original": entries}}
    assert checked(model, masks).shape(f"b.{WEIGHT}") == (6, 6, 3)


def test_nothing_goes_where_the_rest_says_nothing() -> None:
    """What is left of the product is 0, and the weight would be divided by it."""
    model = trained(Net())
    kept = [i for i in range(8) if i not in GONE]
    with torch.no_grad():
        model.b.parametrizations.weight[0]._v.view(8, 3)[kept] = 0
    result = checked(model, without(model))
    assert result.shape(f"b.{WEIGHT}") == (6, 8, 3)


def test_a_vector_stays_whole() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 4, 1)
            self.weight = nn.Parameter(torch.ones(8))
            parametrizations.spectral_norm(self)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x) * self.weight[:, None])

    model = randomize(Scale(), 0)
    result = checked(model, mask_indices(model, {"a.weight": GONE, "a.bias": GONE}))
    assert result.shape(WEIGHT) == (8,)


def test_a_small_model_trains_on() -> None:
    model = trained(Net()).double()
    small = speedup.ModelSpeedup(model, sound(2, 3, 10).double(), without(model)).speedup_model().train()
    assert small.a.weight.shape == (5, 3, 3)
    for _ in range(50):
        small(sound(2, 3, 10).double())
    norms = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2) for layer in (small.a, small.b, small.c)]
    assert torch.allclose(torch.stack(norms), torch.ones(3, dtype=torch.float64), atol=1e-2)


@pytest.mark.parametrize("transposed", [False, True])
def test_channels_can_be_chosen(transposed: bool) -> None:
    model = trained(Net(transposed=transposed))
    result = checked(model, speedup.prune_masks(model, sound(2, 3, 10)))
    small = (3, 4, 3) if transposed else (4, 3, 3)
    assert result.shape(f"a.{WEIGHT}") == small and result.shape(f"b.{WEIGHT}")[not transposed] == 4
