"""Movement rules: facts and keep sets follow the entries, whatever the op does with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from speedup import Bools, Movement, Node, Registry, default_registry, kept_shape
from speedup.errors import CheckError, RuleError
from speedup.graph import Graph
from speedup.testing import Result, check_equal, mask_indices, randomize
from speedup.trace import sandbox, trace


class Call(nn.Module):
    """Calls a function that no torch function stands behind: the tests' rules claim subclasses of it."""

    function: Callable[..., Any]

    def forward(self, *tensors: torch.Tensor) -> Any:
        return type(self).function(*tensors)


def call(function: Callable[..., Any]) -> type[Call]:
    return type("Called", (Call,), {"function": staticmethod(function)})


def graph_of(module: nn.Module, rule: Movement, *tensors: torch.Tensor) -> Graph:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *given: torch.Tensor) -> Any:
            return self.inner(*given)

    model = Outer()
    with sandbox(model):
        return trace(model, tensors, {}, Registry.from_rules(rule))


MOVES: dict[str, Callable[[torch.Tensor], Any]] = {
    "permute": lambda x: x.permute(2, 0, 1),
    "view": lambda x: x.reshape(x.shape[0] * x.shape[1], x.shape[2]),
    "split": lambda x: x.reshape(3, 2, 2, 5),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: torch.roll(x, (1, 2), (1, 2)),
    "slice": lambda x: x[:, 1:, ::2],
    "index": lambda x: x[:, [2, 0, 2]],
    "chunk": lambda x: x.chunk(2, 2),
    "repeat": lambda x: x.repeat(1, 2, 1),
    "expand": lambda x: x[:, None].expand(-1, 3, -1, -1),
    "stack of parts": lambda x: torch.stack([x[:, 0], x[:, 2]], 2),
    "cat with itself": lambda x: torch.cat([x, x.flip(0)], 0),
    "diagonal": lambda x: torch.diagonal(x, dim1=1, dim2=2),
    "scalar": lambda x: x[1, 2, 3],
}


@pytest.mark.parametrize("move", MOVES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_gather_is_the_op_itself_and_scatter_its_inverse(move: str, seed: int) -> None:
    kind = call(MOVES[move])
    rule = Movement(name="moved", modules=(kind,))
    x = torch.arange(60.0, dtype=torch.float64).reshape(3, 4, 5)
    (node,) = graph_of(kind(), rule, x).nodes
    assert node.rule is rule, node.note
    rng = np.random.default_rng(seed)
    # A fact varies along some axes only; the op itself, run on the fact, says where it goes.
    shape = tuple(s if rng.random() < 0.6 else 1 for s in x.shape)
    fact = rng.random(shape) < 0.5
    wanted = _outputs(MOVES[move](torch.from_numpy(np.broadcast_to(fact, x.shape).copy())))
    moved = rule.gather(node, [fact], False)
    for array, tensor in zip(moved, wanted, strict=True):
        assert np.array_equal(np.broadcast_to(array, tensor.shape), tensor.numpy())
    marks = [_along_some(rng, t.shape, 0.3) for t in wanted]
    back = np.broadcast_to(rule.scatter(node, marks)[0], x.shape)
    asked = np.zeros(x.numel(), dtype=bool)
    for tensor, mark in zip(_outputs(MOVES[move](x)), marks, strict=True):
        asked[tensor.numpy()[np.broadcast_to(mark, tensor.shape)].astype(int)] = True
    assert np.array_equal(back, asked.reshape(x.shape))


def _along_some(rng: np.random.Generator, shape: Sequence[int], share: float) -> Bools:
    """Entries at random, mostly the same along all axes but one."""
    axes = rng.permutation(len(shape))[: rng.choice([0, 1, 1, 1, 2, 3])]
    return rng.random([n if axis in axes else 1 for axis, n in enumerate(shape)]) < share


def _outputs(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


JOINS: dict[str, Callable[..., Any]] = {
    "cat": lambda a, b: torch.cat([b, a[:, :2], b[:, 1:]], 1),
    "cat of all": lambda a, b: torch.cat([a, b], 1),
    "cat of what is turned": lambda a, b: torch.cat([a.permute(2, 1, 0), b.permute(2, 1, 0).flip(1)], 1),
    "cat of what is turned otherwise": lambda a, b: torch.cat([a[:, :1].permute(0, 2, 1), b[:, :, :1]], 1),
    "row by row": lambda a, b: torch.stack([a[0], b[1, :3]]),
    "one alone": lambda a, b: b[:, a.shape[1] :],
    "in both": lambda a, b: (torch.cat([a, b], 1), b[:, [0, 0, 3]]),
    "filled": lambda a, b: torch.cat([a, torch.ones(2, 2, 4), b], 1),
    "filled line": lambda a, b: torch.cat([a[0, 0], torch.ones(2), b[0, 0]]),
}


@pytest.mark.parametrize("join", JOINS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_several_operands_are_told_apart(join: str, seed: int) -> None:
    kind = call(JOINS[join])
    rule = Movement(name="joined", modules=(kind,), fills="filled" in join)
    operands = torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)
    (node,) = graph_of(kind(), rule, *operands).nodes
    rng = np.random.default_rng(seed)

    facts = [_along_some(rng, x.shape, 0.5) for x in operands]
    wide = [torch.from_numpy(np.broadcast_to(f, x.shape).copy()) for f, x in zip(facts, operands, strict=True)]
    fillers = [t.numpy() != 0 for t in _outputs(kind.function(*operands))]
    for filler in (False, True):
        moved = rule.gather(node, facts, filler)
        for array, wanted, filled in zip(moved, _outputs(kind.function(*wide)), fillers, strict=True):
            assert np.array_equal(np.broadcast_to(array, wanted.shape), np.where(filled, filler, wanted.numpy()))
    numbered = [n + torch.arange(x.numel()).reshape(x.shape) for n, x in zip((2.0, 100.0), operands, strict=True)]
    outputs = _outputs(kind.function(*numbered))
    marks = [_along_some(rng, t.shape, 0.3) for t in outputs]
    marked = {int(n) for t, m in zip(outputs, marks, strict=True) for n in t.numpy()[np.broadcast_to(m, t.shape)]}
    for x, back in zip(numbered, rule.scatter(node, marks), strict=True):
        assert np.array_equal(np.broadcast_to(back, x.shape), np.isin(x.numpy(), [*marked]))


def test_filled_entries_are_constants_with_the_value_of_the_filler() -> None:
    """Padding with 2.5: behind it, entries of the border are known and entries inside are not."""
    kind = call(lambda x: torch.nn.functional.pad(x, (1, 2), value=2.5))
    rule = Movement(name="padded", modules=(kind,), fills=True)
    (node,) = graph_of(kind(), rule, torch.randn(2, 3)).nodes
    (origin,) = rule.origins(node)
    filled = np.broadcast_to(origin.source == -1, (2, 6))
    assert filled.tolist() == [[True, False, False, False, True, True]] * 2
    assert np.broadcast_to(origin.fill, (2, 6))[filled].tolist() == [2.5] * 6


# -- through the front door -------------------------------------------------------------------------------------------


def between(kind: type[nn.Module], rule: Movement, inner: int, dropped: dict[str, tuple[int, ...]]) -> Result:
    model = randomize(nn.Sequential(nn.Linear(4, 8), kind(), nn.Linear(inner, 3)))
    rules = Registry.from_rules(*default_registry().rules, rule)
    return check_equal(model, torch.randn(2, 4), mask_indices(model, dropped), [torch.randn(5, 4)], registry=rules)


BOTH = {"0.weight": (1, 4, 6), "0.bias": (1, 4, 6)}


def test_a_movement_that_needs_no_sizes_is_one_line() -> None:
    kind = call(lambda x: x.flip(1))
    result = between(kind, Movement(name="flip", modules=(kind,)), 8, BOTH)
    assert result.shape("0.weight") == (5, 4) and result.shape("2.weight") == (3, 5)


def test_repeated_channels_go_with_all_their_copies() -> None:
    kind = call(lambda x: x.repeat(1, 2))
    result = between(kind, Movement(name="repeat", modules=(kind,)), 16, BOTH)
    assert result.shape("0.weight") == (5, 4) and result.shape("2.weight") == (3, 10)


def test_a_channel_of_which_one_copy_is_read_stays() -> None:
    kind = call(lambda x: torch.cat([x, x.flip(1)], 1))
    model = randomize(nn.Sequential(nn.Linear(4, 8), kind(), nn.Linear(16, 3)))
    rules = Registry.from_rules(*default_registry().rules, Movement(name="cat", modules=(kind,)))
    # The copies of channel j stand at j and 15 - j: of 0 and 7 both are unread, of 1 and 2 one is.
    masks = mask_indices(model, {"2.weight": (0, 15, 7, 8, 1, 13)}, axis=1)
    result = check_equal(model, torch.randn(2, 4), masks, registry=rules)
    assert result.shape("0.weight") == (6, 4) and result.shape("2.weight") == (3, 12)


def test_a_literal_inside_a_movement_that_the_small_call_cannot_follow_is_locked() -> None:
    kind = call(lambda x: torch.cat([x, x[:, :4]], 1))
    model = randomize(nn.Sequential(nn.Linear(4, 8), kind(), nn.Linear(12, 3)))
    rules = Registry.from_rules(*default_registry().rules, Movement(name="cat", modules=(kind,)))
    masks = mask_indices(model, {"2.weight": (0, 8, 7)}, axis=1)
    assert check_equal(model, torch.randn(2, 4), masks, registry=rules).shape("0.weight") == (8, 4)


class Halves(nn.Module):
    """Swaps the halves, whose size it holds as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.half = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, self.half :], x[:, : self.half]], 1)


class HalvesRule(Movement):
    name = "halves"
    modules = (Halves,)

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        value = node.operands[0]
        assert value is not None
        return {"half": kept_shape(keep[0], value.shape)[1] // 2}

    def parts(self, node: Node) -> Mapping[int, tuple[int, int]]:
        return {0: (1, 2)}


def test_resize_and_parts_make_an_attribute_follow() -> None:
    result = between(Halves, HalvesRule(), 8, {"0.weight": (0, 5), "0.bias": (0, 5)})
    assert result.shape("0.weight") == (6, 4) and result.model[1].half == 3  # type: ignore[index]
    result = between(Halves, HalvesRule(), 8, {"0.weight": (0, 1, 5), "0.bias": (0, 1, 5)})
    assert result.shape("0.weight") == (6, 4), "3 of one half and 2 of the other are 3 and 3"


def test_without_resize_the_entries_stand_in_another_order() -> None:
    result = between(Halves, Movement(name="stiff", modules=(Halves,)), 8, {"0.weight": (0, 5), "0.bias": (0, 5)})
    assert result.shape("0.weight") == (6, 4) and result.model[1].half == 4  # type: ignore[index]


class Last(nn.Module):
    """Takes the last half, whose start it holds as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.start = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.start :]


def test_without_resize_the_call_is_locked_and_right() -> None:
    result = between(Last, Movement(name="stiff", modules=(Last,)), 4, {"0.weight": (0, 5), "0.bias": (0, 5)})
    assert result.shape("0.weight") == (8, 4)
    assert "stiff" in str(result.plan) or "cannot take fewer indices" in result.plan.explain("0")


def test_a_wrong_resize_is_never_committed() -> None:
    class Wrong(Movement):
        def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
            return {"start": 1}

    try:
        result = between(Last, Wrong(name="wrong", modules=(Last,)), 4, {"0.weight": (0, 5), "0.bias": (0, 5)})
    except CheckError:
        return
    assert result.shape("0.weight") == (8, 4) and result.model[1].start == 4  # type: ignore[index]


@pytest.mark.parametrize("function", ["resize", "parts", "moving"])
def test_an_exception_in_a_movement_rule_is_named(function: str) -> None:
    def fail(*_: Any) -> Any:
        raise LookupError("broken on purpose")

    fail.__name__ = function
    rule = type("Broken", (HalvesRule,), {"name": "broken halves", function: fail})()
    with pytest.raises(RuleError, match="broken halves"):
        between(Halves, rule, 8, {"0.weight": (0, 5), "0.bias": (0, 5)})


def test_a_call_that_moves_no_tensor_is_a_barrier() -> None:
    kind = call(lambda x: x.shape[0])
    rule = Movement(name="none", modules=(kind,))
    graph = graph_of(kind(), rule, torch.randn(2, 3))
    assert all(n.rule is None for n in graph.nodes)


def test_a_movement_steered_by_computed_indices_is_a_barrier_with_a_note() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one(x)
            counts = y[0].isfinite().long()
            result: torch.Tensor = self.two(y.repeat_interleave(counts, 1) + y.index_select(1, y[0].argsort()))
            return result

    model = randomize(Model())
    result = check_equal(model, torch.randn(2, 4), mask_indices(model, {"one.weight": (1, 2), "one.bias": (1, 2)}))
    assert result.shape("one.weight") == (8, 4)
    assert any("repeat_interleave" in b for b in result.plan.report.barriers)


class Table(nn.Module):
    """Adds as many rows of a table as there are positions, and reads parts of another parameter."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table, self.halves = nn.Parameter(torch.zeros(rows, 6)), nn.Parameter(torch.zeros(12, 6))
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        x = x + self.table.unsqueeze(0)[:, : x.shape[1]]
        x = x + 0.1 * self.halves.sum(0)
        result: torch.Tensor = self.down(x * self.halves[:6].mean(0) + self.halves[6:].mean(0))
        return result


def test_rows_that_only_a_longer_input_takes_stay() -> None:
    model = randomize(Table(11))
    masks = mask_indices(model, {"up.weight": (1, 2), "up.bias": (1, 2)})
    for position in ("table", "halves"):
        masks.setdefault("", {}).update(mask_indices(model, {position: (1, 2)}, axis=1)[""])
    result = check_equal(model, torch.randn(2, 5, 4), masks, [torch.randn(3, 11, 4), torch.randn(1, 1, 4)])
    assert result.shape("table") == (11, 4), "all rows, of the channels that are left"
    assert result.shape("halves") == (12, 4)


def test_rows_of_a_parameter_that_nothing_keeps_go_with_what_is_taken() -> None:
    class Slim(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.down = nn.Parameter(torch.zeros(9, 4)), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.down(nn.functional.linear(x, self.weight[:6]))
            return result

    model = randomize(Slim())
    result = check_equal(model, torch.randn(2, 4), mask_indices(model, {"weight": (0, 1)}))
    assert result.shape("down.weight") == (3, 4)


def test_a_parameter_without_entries_is_moved() -> None:
    class LowRank(nn.Module):
        """With a correction of a rank that may be 0."""

        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.factor = nn.Linear(5, 8), nn.Linear(8, 3), nn.Parameter(torch.zeros(8, 0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.sigmoid(self.up(x))
            result: torch.Tensor = self.down(y + y @ self.factor @ self.factor.t())
            return result

    model = randomize(LowRank())
    result = check_equal(model, torch.randn(2, 5), mask_indices(model, {"up.weight": (0, 1), "up.bias": (0, 1)}))
    assert result.shape("factor")[1] == 0
