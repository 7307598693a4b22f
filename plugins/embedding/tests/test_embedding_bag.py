"""Embedding bags under masks. A bag may be empty, and then gives 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import KINDS, check_equal, mask_indices, random_masks, randomize

GONE = [1, 3, 4, 6]
BAGS = torch.tensor([[0, 5, 2], [7, 1, 0]])
FLAT = (torch.tensor([0, 5, 2, 7, 1]), torch.tensor([0, 2, 2, 4]))
WEIGHTS = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


class Bags(nn.Module):
    """A bag of 9 rows and 10 columns, or something else that gives these columns, and a linear layer."""

    def __init__(self, bag: nn.Module | None = None, body: Callable[..., torch.Tensor] | None = None) -> None:
        super().__init__()
        self.bag, self.body = bag, body
        self.table, self.norm, self.only = nn.Parameter(torch.zeros(9, 10)), nn.LayerNorm(10), nn.Linear(2, 10)
        self.read = nn.Linear(10, 3)
        randomize(self)

    def forward(self, *arguments: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        if self.body is not None:
            return self.read(self.body(self, *arguments))
        assert self.bag is not None
        return self.read(self.bag(*arguments, **named))


def masked(model: nn.Module, name: str) -> dict[str, Any]:
    return mask_indices(model, {name: GONE}, axis=1)


OPTIONS: list[dict[str, Any]] = [
    *({"mode": mode} for mode in ("sum", "mean", "max")),
    *({"mode": mode, "padding_idx": 0} for mode in ("sum", "mean", "max")),
    *({"mode": mode, "include_last_offset": True} for mode in ("sum", "mean", "max")),
    {"mode": "sum", "scale_grad_by_freq": True},
    {"mode": "mean", "sparse": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_masked_columns_go(options: dict[str, Any]) -> None:
    model = Bags(nn.EmbeddingBag(9, 10, **options))
    empty = (torch.tensor([], dtype=torch.long), torch.tensor([0, 0]))
    result = check_equal(model, FLAT, masked(model, "bag.weight"), [(BAGS,), empty])
    assert result.shape("bag.weight") == (9, 6) and result.shape("read.weight") == (3, 6)
    assert type(result.model.bag) is nn.EmbeddingBag and result.model.bag.embedding_dim == 6


def test_weights_of_samples() -> None:
    model = Bags(nn.EmbeddingBag(9, 10, mode="sum"))
    named = {"input": BAGS, "per_sample_weights": WEIGHTS}
    result = check_equal(model, named, masked(model, "bag.weight"), [{"input": BAGS, "per_sample_weights": -WEIGHTS}])
    assert result.shape("bag.weight") == (9, 6)


def test_columns_that_nobody_reads_go() -> None:
    model = Bags(nn.EmbeddingBag(9, 10))
    assert check_equal(model, FLAT, masked(model, "read.weight")).shape("bag.weight") == (9, 6)


def test_a_renormalised_table_stays() -> None:
    model = Bags(nn.EmbeddingBag(9, 10, max_norm=0.5))
    result = check_equal(model, FLAT, masked(model, "bag.weight"))
    assert result.shape("bag.weight") == (9, 10) and "max_norm" in str(result.plan.report.barriers)


# What comes out of a column that is the same in all rows, but not 0: these are the biases of a masked linear layer.
CONSTANTS: dict[str, tuple[Callable[..., torch.Tensor], bool]] = {
    "mean of full bags": (lambda t, i: F.embedding_bag(i, t), True),
    "max of full bags": (lambda t, i: F.embedding_bag(i, t, mode="max"), True),
    "sum of full bags": (lambda t, i: F.embedding_bag(i, t, mode="sum"), False),
    "mean of full bags with padding": (lambda t, i: F.embedding_bag(i, t, padding_idx=1), False),
    "max of full bags with padding": (lambda t, i: F.embedding_bag(i, t, mode="max", padding_idx=1), False),
    "mean of any bags": (lambda t, i: F.embedding_bag(i.flatten(), t, i[:, 0] * 0), False),
    "max of any bags": (lambda t, i: F.embedding_bag(i.flatten(), t, i[:, 0] * 0, mode="max"), False),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(name: str) -> None:
    reduce, passes = CONSTANTS[name]
    model = Bags(body=lambda m, x, ids: reduce(m.only(x), ids))
    inputs, others = (torch.randn(4, 2), BAGS % 4), [(torch.randn(9, 2), BAGS), (torch.randn(5, 2), BAGS * 0 + 1)]
    result = check_equal(model, inputs, mask_indices(model, {"only.weight": GONE}), others)
    assert result.shape("only.weight") == ((6, 2) if passes else (10, 2))
    with_biases = mask_indices(model, {"only.weight": GONE, "only.bias": GONE})
    assert check_equal(model, inputs, with_biases, others).shape("only.weight") == (6, 2)


@pytest.mark.parametrize(("mode", "width"), [("mean", 7), ("max", 10), ("sum", 10)])
def test_behind_a_norm(mode: str, width: int) -> None:
    """Masked columns are multiples of the same unknown in each row: so is their mean, but not their maximum."""
    model = Bags(body=lambda m, ids: F.embedding_bag(ids, m.norm(m.table[ids[0] * 0 + torch.arange(3)]), mode=mode))
    result = check_equal(model, BAGS % 3, masked(model, "table"), [BAGS % 2])
    assert result.shape("table") == (9, width)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*masked whole")
def test_random_masks(kind: str) -> None:
    for seed, mode in enumerate(("sum", "mean", "max")):
        model = randomize(Bags(nn.EmbeddingBag(9, 10, mode=mode, padding_idx=seed)), seed)
        check_equal(model, FLAT, random_masks(model, seed, kind), [(BAGS,)])
