"""Facts that are taken over from an inference before: what they say is what the rules would say again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speedup import Affine, Node, NodeFacts, Registry, Rule, default_registry
from speedup.arrays import everything
from speedup.graph import Graph
from speedup.infer import infer
from speedup.known import Facts
from speedup.masks import normalize_masks
from speedup.node import Value
from speedup.testing import mask_indices, randomize
from speedup.trace import sandbox, trace


class Net(nn.Module):
    """Two branches; of the second one the number of rows decides how much is padded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(4, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.c = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.a(x))
        z = self.norm(y + self.b(y).transpose(1, 2).transpose(1, 2))
        if x.shape[1] % 4:
            z = F.pad(z, (0, 0, 0, 4 - x.shape[1] % 4))
        result: torch.Tensor = self.c(z).sum(1)
        return result


MASKED = {"a.weight": (1, 5), "a.bias": (1,), "b.weight": (1, 5)}


def runs(model: nn.Module, *sizes: int, rules: Registry | None = None) -> tuple[list[Graph], Any]:
    named = dict(model.named_parameters())
    keep = normalize_masks(model, mask_indices(model, {n: gone for n, gone in MASKED.items() if n in named}))
    with sandbox(model, keep):
        given = [torch.ones(2, size, 4, dtype=torch.float64) for size in sizes]
        return [trace(model, (x,), {}, rules or default_registry()) for x in given], keep


def net() -> Net:
    return randomize(Net()).double().eval()


def same(one: Facts, other: Facts, value: Value) -> bool:
    """Whether two inferences say the same of a value."""
    masks = [np.broadcast_to(f.mask(value), value.shape) for f in (one, other)]
    numbers = [np.where(m, f.value(value), 0) for m, f in zip(masks, (one, other), strict=True)]
    known = [np.broadcast_to(f.known(value), value.shape) for f in (one, other)]
    unused = [np.broadcast_to(f.unused(value), value.shape) for f in (one, other)]
    return all(np.array_equal(*pair) for pair in (masks, known, unused)) and np.allclose(*numbers)


def test_with_less_believed_the_same_follows_as_from_the_beginning() -> None:
    (graph,), keep = runs(net(), 8)
    before = infer(graph, keep)
    for value in [v for v in graph.values if before.known(v).any() and v.tensor is None]:
        denied = {value: everything(value.ndim)}
        again, anew = infer(graph, keep, denied, before), infer(graph, keep, denied)
        assert not again.known(value).any()
        assert all(same(again, anew, v) for v in graph.values)


def test_a_constant_of_a_parameter_that_is_not_believed_is_not_taken_over() -> None:
    (graph,), keep = runs(net(), 8)
    before = infer(graph, keep)
    weight = next(v for v in graph.sources if v.names == ("a.weight",))
    denied = {weight: everything(2)}
    again, anew = infer(graph, keep, denied, before), infer(graph, keep, denied)
    assert all(same(again, anew, v) for v in graph.values)
    made = graph.nodes[0].outputs[0]
    assert before.mask(made).any()
    assert not again.mask(made).any()


def test_of_a_run_at_another_size_the_same_is_known_as_from_the_beginning() -> None:
    (graph, larger, padded), keep = runs(net(), 8, 12, 7)
    before = infer(graph, keep)
    for other in (larger, padded):
        again, anew = infer(other, keep, before=before), infer(other, keep)
        assert any(again.known(v).any() for v in other.values if v.tensor is None)
        assert all(same(again, anew, v) for v in other.values)


def test_what_is_not_believed_at_one_size_is_not_believed_at_another_one() -> None:
    (graph, larger), keep = runs(net(), 8, 12)
    usual, other = (g.nodes[0].outputs[0] for g in (graph, larger))
    before = infer(graph, keep, {usual: everything(usual.ndim)})
    assert infer(larger, keep).known(other).any()
    assert not infer(larger, keep, before=before).known(other).any()


class Asked(Rule):
    """Counts how often it is asked; every channel alone."""

    functions = (torch.tanh,)
    call = "input"
    axes = "* -> *"
    times = 0

    def infer_from_input(self, node: Node, facts: NodeFacts) -> Any:
        self.times += 1
        return super().infer_from_input(node, facts)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.tanh(self.b(torch.tanh(self.a(x))))
        return result


def test_only_the_calls_are_asked_again_of_which_something_else_is_known() -> None:
    rule = Asked()
    rules = Registry.from_rules(rule, *(r for r in default_registry().rules if torch.tanh not in r.functions))
    (graph, other), keep = runs(randomize(Twice()).double().eval(), 8, 12, rules=rules)
    before = infer(graph, keep)
    rule.times = 0
    infer(graph, keep, before=before)
    infer(other, keep, before=before)
    assert rule.times == 0
    for number in (0, 2):  # behind each linear layer one call reads what is not believed any more
        made = graph.nodes[number].outputs[0]
        assert before.known(made).any()
        rule.times = 0
        infer(graph, keep, {made: everything(made.ndim)}, before)
        assert rule.times == 1


class Counted(nn.Module):
    """A sum over as many entries as there are rows, of which the same is known at each size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        rows = torch.ones(2, 1, x.shape[1], dtype=x.dtype)
        result: torch.Tensor = self.c(torch.matmul(rows, y))
        return result


def test_a_sum_over_another_number_of_entries_is_asked_for_again() -> None:
    (graph, other), keep = runs(randomize(Counted()).double().eval(), 8, 12)
    before = infer(graph, keep)
    again, anew = infer(other, keep, before=before), infer(other, keep)
    assert all(same(again, anew, v) for v in other.values)


class Hot(Rule):
    """Two channels that are combinations of one unknown, which is 0 or 1 or any number."""

    functions = (torch.sin,)
    call = "input"
    axes = "* -> *"
    one_hot = True

    def infer_from_input(self, node: Node, facts: NodeFacts) -> Any:
        along = np.arange(8).reshape(1, 1, 8)
        return {"output": Affine(2, along < 2, (along + 1.0,), along * 0.5, one_hot=self.one_hot)}


class Waves(Twice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.tanh(torch.sin(self.a(x)))
        return result


def test_unknowns_that_may_be_any_number_are_not_those_that_are_0_or_1() -> None:
    """An activation makes a combination of the latter only, from the same numbers."""
    rule, hot = Asked(), Hot()
    others = (r for r in default_registry().rules if {torch.tanh, torch.sin}.isdisjoint(r.functions))
    (graph,), keep = runs(randomize(Waves()).double().eval(), 8, rules=Registry.from_rules(rule, hot, *others))
    before = infer(graph, keep)
    made, out = graph.nodes[0].outputs[0], graph.nodes[2].outputs[0]
    assert before.known(made).any()
    assert before.affine[out].one_hot
    hot.one_hot, rule.times = False, 0
    again = infer(graph, keep, {made: everything(made.ndim)}, before)
    assert rule.times and (out not in again.affine or not again.affine[out].one_hot)
