"""Entries chosen by a condition that is data: what is the same constant either way goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from speedup.testing import KINDS, check_equal, mask_indices, random_masks, randomize


class Net(nn.Module):
    """Tokens, of which a condition hides some, and a layer that reads their channels."""

    def __init__(self, body: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.o(self.body(self.a(x), self.b(x), x.sum(-1, keepdim=True) > 0))
        return result


ZEROS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "masked_fill": lambda a, b, c: a.masked_fill(c, 0.0),
    "masked_fill_ of names": lambda a, b, c: a.masked_fill_(mask=c, value=0),
    "torch.masked_fill of a tensor": lambda a, b, c: torch.masked_fill(a, c, torch.zeros((), dtype=a.dtype)),
    "torch.where": lambda a, b, c: torch.where(c, a, b),
    "a number in where": lambda a, b, c: torch.where(c, 0.0, a),
    "names in where": lambda a, b, c: torch.where(c, input=a, other=b),
    "the method": lambda a, b, c: a.where(c, b),
    "a condition for each channel": lambda a, b, c: torch.where(a > b, a, b),
    "a condition that is expanded": lambda a, b, c: a.masked_fill(c.expand_as(a), 0),
    "zeros of the same shape": lambda a, b, c: torch.where(c, a, torch.zeros_like(a)),
}
CONSTANTS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], int]] = {
    "the same number": (lambda a, b, c: torch.where(c, a.relu(), a.relu()), 5),
    "another number": (lambda a, b, c: a.masked_fill(c, 1.0), 8),
    "more and less": (lambda a, b, c: torch.where(c, a, 2 * a), 8),
}


def inputs() -> list[Tensor]:
    return [torch.randn(2, 5, 4), torch.randn(3, 7, 4)]


@pytest.mark.parametrize("name", ZEROS)
def test_zeros_either_way_go(name: str) -> None:
    model = randomize(Net(ZEROS[name]))
    gone = {f"{layer}.{kind}": [1, 4, 6] for layer in "ab" for kind in ("weight", "bias")}
    result = check_equal(model, inputs()[0], mask_indices(model, gone), inputs()[1:])
    assert result.shape("a.weight") == (5, 4) and result.shape("o.weight") == (3, 5)


@pytest.mark.parametrize("name", CONSTANTS)
def test_other_constants_go_where_they_are_equal(name: str) -> None:
    body, left = CONSTANTS[name]
    model = randomize(Net(body))
    result = check_equal(model, inputs()[0], mask_indices(model, {"a.weight": [1, 4, 6]}), inputs()[1:])
    assert result.shape("o.weight") == (3, left)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ZEROS)
def test_all_masks_stay_exact(name: str, kind: str) -> None:
    model = randomize(Net(ZEROS[name]), 1)
    check_equal(model, inputs()[0], random_masks(model, 1, kind), inputs()[1:])


def test_the_condition_is_not_read_where_it_does_not_matter() -> None:
    model = randomize(Net(lambda a, b, c: torch.where(b > 0, a, 0.0)))
    gone = {"a.weight": [1, 4, 6], "a.bias": [1, 4, 6]}
    result = check_equal(model, inputs()[0], mask_indices(model, gone), inputs()[1:])
    assert result.shape("b.weight") == (5, 4)
