"""Numbers that a layer makes of its own tensors alone: the older spectral norm, whose hooks compute the weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm

from speedup.testing import check_equal, mask_indices, randomize

GONE = [0, 3, 4]


class Net(nn.Module):
    def __init__(self, dim: int | None = None, transposed: bool = False) -> None:
        super().__init__()
        make = nn.ConvTranspose1d if transposed else nn.Conv1d
        self.a, self.b = (spectral_norm(m, dim=dim) for m in (make(3, 8, 3, padding=1), make(8, 6, 3)))
        self.c = nn.Conv1d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.c(self.b(self.a(x).relu()).sigmoid())
        return result


def sound(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]))


def built(model: nn.Module, train: bool) -> nn.Module:
    """With vectors that fit the weights, as after training; or with random ones."""
    randomize(model, 0)
    if train:
        model.train()
        with torch.no_grad():
            for _ in range(20):
                model(sound(2, 3, 10))
    with torch.no_grad():
        model.eval()(sound(2, 3, 10))  # the weight that it computes hangs on no graph, so that it can be copied
    return model


def checked(model: nn.Module, masks: Any) -> Any:
    return check_equal(model, sound(2, 3, 10), masks, [sound(3, 3, 17)])


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dim", [None, 1])
def test_filters_go_and_the_columns_that_read_them(dim: int | None, train: bool) -> None:
    """The columns are not 0: without them the number is another one."""
    model = built(Net(dim), train)
    result = checked(model, mask_indices(model, {"a.weight_orig": GONE, "a.bias": GONE}))
    assert result.shape("a.weight_orig") == (5, 3, 3) and result.shape("b.weight_orig") == (6, 5, 3)
    rows, columns = ((6,), (15,)) if dim is None else ((5,), (18,))
    assert result.shape("b.weight_u") == rows and result.shape("b.weight_v") == columns


def test_transposed_convolutions() -> None:
    model = built(Net(transposed=True), True)
    masks = mask_indices(model, {"a.weight_orig": GONE}, axis=1)
    masks["a"].update(mask_indices(model, {"a.bias": GONE})["a"])
    assert checked(model, masks).shape("b.weight_orig") == (5, 6, 3)


def test_filters_that_nobody_reads_go_though_the_number_counts_them() -> None:
    model = built(Net(), True)
    result = checked(model, mask_indices(model, {"c.weight": [1, 2]}, axis=1))
    assert result.shape("b.weight_orig") == (4, 8, 3)


def test_nothing_goes_where_what_is_left_tells_nothing() -> None:
    model = built(Net(), True)
    with torch.no_grad():
        model.get_buffer("b.weight_v").view(8, 3)[[1, 2, 5, 6, 7]] = 0
    result = checked(model, mask_indices(model, {"a.weight_orig": GONE, "a.bias": GONE}))
    assert result.shape("b.weight_orig") == (6, 8, 3)


def test_a_vector_that_is_read_elsewhere_is_left_alone() -> None:
    class Read(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.b.get_buffer("weight_v").sum()

    model = built(Read(), True)
    result = checked(model, mask_indices(model, {"a.weight_orig": GONE, "a.bias": GONE}))
    assert result.shape("b.weight_orig") == (6, 8, 3)
