"""The fused function: what goes of head dimensions and heads, and the scale that stays."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.testing import KINDS, Result, check_equal, mask_indices, random_masks, randomize

B, S, WIDTH = 2, 6, 5


class Heads(nn.Module):
    """Projections, heads, attention, one projection."""

    def __init__(self, heads: int = 3, size: int = 4, groups: int = 1, **options: Any) -> None:
        super().__init__()
        self.query_heads, self.heads, self.options = heads * groups, heads, options
        self.q = nn.Linear(WIDTH, heads * groups * size)
        self.k, self.v = nn.Linear(WIDTH, heads * size), nn.Linear(WIDTH, heads * size)
        self.o = nn.Linear(heads * groups * size, WIDTH)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, **self.options)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (self.query_heads, -1)).transpose(1, 2)
        k = self.k(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        v = self.v(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.o(self.attend(q, k, v, mask).transpose(1, 2).flatten(2))


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(len(shape)))


def rows(size: int, *where: tuple[int, int]) -> list[int]:
    """Indices of (head, dimension)."""
    return [h * size + d for h, d in where]


def dropped(*names: str, where: list[int], biases: bool = True) -> dict[str, list[int]]:
    return {f"{n}.{p}": where for n in names for p in (("weight", "bias") if biases else ("weight",))}


def checked(model: nn.Module, masked: dict[str, list[int]], inputs: Any = None, others: Any = None) -> Result:
    model = randomize(model, 0)
    inputs = tokens(B, S) if inputs is None else inputs
    return check_equal(
        model, inputs, mask_indices(model, masked), [tokens(1, 3), tokens(3, 9)] if others is None else others
    )


EACH = rows(4, (0, 1), (1, 3), (2, 0))
HEAD = rows(4, *((1, d) for d in range(4)))


@pytest.mark.parametrize("biases", [True, False])
def test_dimensions_of_the_value_go_per_head(biases: bool) -> None:
    result = checked(Heads(), dropped("v", where=EACH, biases=biases))
    assert result.shape("v.weight") == (9, WIDTH) and result.shape("o.weight") == (WIDTH, 9)
    assert result.shape("q.weight") == result.shape("k.weight") == (12, WIDTH)


@pytest.mark.parametrize("names", ["q", "k", "qk"])
def test_dimensions_of_query_and_key_go_together_and_the_scale_stays(names: str) -> None:
    result = checked(Heads(), dropped(*names, where=EACH))
    assert result.shape("q.weight") == result.shape("k.weight") == (9, WIDTH)
    assert result.shape("v.weight") == (12, WIDTH)
    assert any("scale=0.5" in r.what for r in result.plan.report.repaired)


def test_a_key_that_is_constant_is_not_seen_by_the_softmax() -> None:
    result = checked(Heads(), dropped("k", where=EACH, biases=False))
    assert result.shape("q.weight") == result.shape("k.weight") == (9, WIDTH)


def test_a_query_that_is_constant_stays() -> None:
    result = checked(Heads(), dropped("q", where=EACH, biases=False))
    assert result.kept == 1.0


@pytest.mark.parametrize("biases", [True, False])
def test_a_head_goes_with_its_values(biases: bool) -> None:
    result = checked(Heads(), dropped("v", where=HEAD, biases=biases))
    assert {result.shape(f"{n}.weight") for n in "qkv"} == {(8, WIDTH)}
    assert result.shape("o.weight") == (WIDTH, 8)


def test_a_head_goes_that_nobody_reads() -> None:
    model = randomize(Heads())
    masks = mask_indices(model, {"o.weight": HEAD}, axis=1)
    result = check_equal(model, tokens(B, S), masks, [tokens(1, 3)])
    assert {result.shape(f"{n}.weight") for n in "qkv"} == {(8, WIDTH)}


@pytest.mark.parametrize("options", [{"is_causal": True}, {"scale": 0.3}])
def test_options(options: dict[str, Any]) -> None:
    result = checked(Heads(**options), dropped("q", "k", "v", where=EACH))
    assert {result.shape(f"{n}.weight") for n in "qkv"} == {(9, WIDTH)}


class SizedScale(Heads):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=1 / math.sqrt(q.size(-1)))


class NoScale(Heads):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=None)


class Deep(Heads):
    """The call stands in a function of a function: nothing can be added to it."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return _outer(q, k, v)


def _outer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return _inner(q, k, v)


def _inner(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("net", [SizedScale, NoScale])
def test_a_scale_that_is_written_otherwise(net: type[Heads]) -> None:
    result = checked(net(), dropped("q", "k", where=EACH))
    assert result.shape("q.weight") == (9, WIDTH)


def test_a_call_out_of_reach_keeps_the_dimensions_that_its_scale_counts() -> None:
    result = checked(Deep(), dropped("q", "k", "v", where=EACH))
    assert result.shape("q.weight") == result.shape("k.weight") == (12, WIDTH)
    assert result.shape("v.weight") == (9, WIDTH)


def test_blocks_of_one_class_get_the_scale_at_once() -> None:
    model = randomize(nn.Sequential(*(Heads() for _ in range(3))))
    masks = mask_indices(model, {f"{i}.{n}": w for i in range(3) for n, w in dropped("q", "k", where=EACH).items()})
    result = check_equal(model, tokens(B, S), masks, [tokens(1, 3)])
    assert [result.shape(f"{i}.k.weight") for i in range(3)] == [(9, WIDTH)] * 3
    assert type(result.model[0]) is type(result.model[2])


# -- masks ------------------------------------------------------------------------------------------------------------


def mask(kind: str, batch: int, length: int) -> torch.Tensor:
    """Some rows attend to nothing."""
    generator = torch.Generator().manual_seed(0)
    allowed = torch.rand(*(batch, 1)[: 2 if "batch" in kind else 0], length, length, generator=generator) > 0.5
    allowed[..., 1, :] = False
    return allowed if "bool" in kind else torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)


class One(Heads):
    """A single head, not split off."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.o(self.attend(self.q(x), self.k(x), self.v(x), mask))


KINDS_OF_MASK = ["bool", "float", "bool batch", "float batch"]


@pytest.mark.parametrize("kind", KINDS_OF_MASK)
def test_rows_that_attend_to_nothing(kind: str) -> None:
    inputs, others = (tokens(B, S), mask(kind, B, S)), [(tokens(1, 3), mask(kind, 1, 3))]
    result = checked(Heads(), dropped("v", where=EACH), inputs, others)
    assert result.shape("v.weight") == (9, WIDTH)
    # A constant that is not 0 is one only in rows that attend to something.
    result = checked(Heads(), dropped("v", where=EACH, biases=False), inputs, others)
    assert result.shape("v.weight") == (12, WIDTH)


@pytest.mark.parametrize("kind", KINDS_OF_MASK[:2])
def test_one_constant_carries_whether_a_row_attends_to_anything(kind: str) -> None:
    inputs, others = (tokens(B, S), mask(kind, B, S)), [(tokens(1, 3), mask(kind, 1, 3))]
    result = checked(One(heads=1), dropped("v", where=[0, 2, 3], biases=False), inputs, others)
    assert result.shape("v.weight") == (2, WIDTH)


class Table(Heads):
    """With a table of biases per head, as in Swin."""

    def __init__(self, open_rows: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(3, 9, 9))
        causal = torch.ones(9, 9, dtype=torch.bool).tril()
        self.register_buffer("allowed", causal if open_rows else causal.tril(-1))
        self.allowed: torch.Tensor

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        n = q.shape[2]
        mask = self.table[:, :n, :n].masked_fill(~self.allowed[:n, :n], -torch.inf)
        return F.scaled_dot_product_attention(q, k, v, mask)


@pytest.mark.parametrize("open_rows", [True, False])
def test_tables_of_biases_lose_heads(open_rows: bool) -> None:
    result = checked(Table(open_rows), dropped("v", where=sorted({*HEAD, *EACH})))
    assert result.shape("table") == (2, 9, 9)
    assert result.shape("v.weight") == (6, WIDTH)


# -- grouped queries --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_mask", [True, False])
def test_grouped_queries_lose_heads_of_keys_with_all_their_queries(with_mask: bool) -> None:
    inputs: Any = tokens(B, S)
    if with_mask:
        inputs = (inputs, mask("bool batch", B, S))
    model = Heads(groups=2, enable_gqa=True)
    result = checked(model, dropped("v", where=HEAD), inputs, [])
    assert result.shape("q.weight") == (16, WIDTH) and result.shape("k.weight") == (8, WIDTH)


def test_grouped_queries_lose_as_many_of_every_group() -> None:
    model = randomize(Heads(groups=2, enable_gqa=True))
    unread = rows(4, *((h, d) for h in (0, 3, 4) for d in range(4)))
    result = check_equal(model, tokens(B, S), mask_indices(model, {"o.weight": unread}, axis=1), [tokens(1, 3)])
    assert result.shape("q.weight") == (12, WIDTH) and result.shape("k.weight") == (12, WIDTH)
    some = unread[:8]
    result = check_equal(model, tokens(B, S), mask_indices(model, {"o.weight": some}, axis=1), [tokens(1, 3)])
    assert result.shape("q.weight") == (24, WIDTH)
    dims = mask_indices(model, {"q.weight": rows(4, *((h, 1) for h in range(6)))})
    dims |= mask_indices(model, {"k.weight": rows(4, *((h, 1) for h in range(3)))})
    result = check_equal(model, tokens(B, S), dims, [tokens(1, 3)])
    assert result.shape("q.weight") == (18, WIDTH) and result.shape("k.weight") == (9, WIDTH)


# -- all kinds of masks -----------------------------------------------------------------------------------------------

NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": Heads,
    "causal": lambda: Heads(is_causal=True),
    "grouped": lambda: Heads(groups=2, enable_gqa=True),
    "one key": lambda: Heads(heads=1, groups=3, enable_gqa=True),
    "table": lambda: Table(False),
    "two": lambda: nn.Sequential(Heads(), nn.LayerNorm(WIDTH), Heads(heads=2)),
    "norms": lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.LayerNorm(8), Direct(), nn.Linear(8, 2)),
}


class Direct(nn.Module):
    """No projections: what the norm gives is query, key and value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x * 2, x, is_causal=True)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETS)
def test_all_kinds_of_masks_stay_equal(name: str, kind: str, seed: int) -> None:
    model = randomize(NETS[name](), seed)
    check_equal(model, tokens(B, S), random_masks(model, seed, kind), [tokens(1, 3), tokens(3, 9)])


def test_dropout_outside_of_training_is_a_barrier() -> None:
    model = randomize(Heads(dropout_p=0.5))
    plan = speedup.plan(model.eval(), tokens(B, S), mask_indices(model, dropped("v", where=EACH)))
    assert [b.note for b in plan.graph.barriers if "dropout" in b.note]


def test_the_small_model_is_copied_and_trained() -> None:
    result = checked(Heads(), dropped("q", "k", "v", where=EACH))
    small = copy.deepcopy(result.model).train()
    small(tokens(B, S).double()).sum().backward()
    assert small.q.weight.grad is not None and small.q.weight.grad.shape == (9, WIDTH)
