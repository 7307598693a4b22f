"""Inference: facts spread through the graph to a fixpoint.

Constants flow forward and unused entries backward; a worklist ordered by time reaches the fixpoint in about one sweep
each way. What is found is kept in ``speedup.known``.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from speedup.again import Again
from speedup.arrays import Bools, Floats, everything, nothing, unfit, zeros
from speedup.ask import ask, culprit
from speedup.errors import RuleError
from speedup.facts import Affine, Constant, Fact, Unused
from speedup.graph import Graph
from speedup.known import Facts, NodeFacts
from speedup.node import Node, Value
from speedup.rule import Rule, says_nothing

_BOOL, _FLOAT = np.dtype(bool), np.dtype(np.float64)


class _Seeing(NodeFacts):
    """The facts at a node as they would be with the contents of some more tensors at hand: where, not which numbers."""

    def __init__(self, facts: Facts, node: Node, seen: Iterable[Value]) -> None:
        super().__init__(facts, node)
        self._seen = frozenset(seen)

    def is_weight(self, k: int) -> bool:
        return self._values[k] in self._seen or super().is_weight(k)

    def mask(self, k: int) -> Bools:
        return everything(self._at(k).ndim) if self._at(k) in self._seen else super().mask(k)

    def value(self, k: int) -> Floats:
        return np.where(self.zero(k), 0.0, 1.0) if self._at(k) in self._seen else super().value(k)


def unseen(facts: Facts, value: Value, entries: Bools) -> list[str]:
    """The tensors without which it cannot be told that some entries of a value are constant; none if they are not."""
    node = value.producer
    if node is None or node.rule is None:
        return []
    blind = [v for v in node.operands if v is not None and v in facts.blind]

    def constant_with(seen: Iterable[Value]) -> bool:
        found = _returned(node, "infer_from_input", _Seeing(facts, node, seen))
        fact = next((f for v, _, f in found if v is value), None)
        return fact is not None and not bool((entries & ~_numbered(fact)).any())

    if not blind or not constant_with(blind):
        return []
    return [v.label for v in blind if not constant_with(b for b in blind if b is not v)]


def _numbered(fact: Fact) -> Bools:
    """Where a fact has numbers: what is made of contents that are not at hand has none."""
    found: Bools = np.logical_and.reduce(np.broadcast_arrays(fact.mask, *(np.isfinite(n) for n in fact.numbers)))
    return found


def infer(
    graph: Graph,
    masks: Mapping[str, torch.Tensor],
    denied: Mapping[Value, Bools] | None = None,
    before: Facts | None = None,
    backwards: bool = True,
) -> Facts:
    """Spread the facts to the fixpoint.

    Args:
        masks: bool tensors by qualified parameter name, True = keep.
        denied: entries that are not to be taken for constants, whatever rules say (see ``speedup.sizes``).
        before: what was inferred with the same masks of this run, or of one at another size, which is taken over where
            it is the same (see ``speedup.again``).
        backwards: whether to find out what is unused, too.

    Raises:
        RuleError: a rule raised, returned something that is no fact, or took a fact back.
    """
    facts = Facts(graph, masks, denied, before)
    again = Again(facts, before) if before is not None else None
    seen = {n: NodeFacts(facts, n) for n in graph.nodes if n.rule is not None}

    def forward(node: Node) -> Iterable[Node]:
        if again is not None and again.constants(node):
            known = [v for v in node.outputs if v in facts.constants or v in facts.affine]
            return [n for v in known for n, _ in v.uses if n.rule is not None]
        kind: Any = type(node.rule)
        near: list[Node] = []
        for function in _functions(kind, "infer_from_input"):
            for value, _, fact in _returned(node, function, seen[node]):
                grown = isinstance(fact, Constant) and facts.add_constant(node, value, fact)
                grown = grown or (isinstance(fact, Affine) and facts.add_affine(node, value, fact))
                if grown:
                    near += [n for n, _ in value.uses if n.rule is not None]
        return near

    def backward(node: Node) -> Iterable[Node]:
        kind: Any = type(node.rule)
        grown = again.claims(node) if again is not None else None
        if grown is None:
            grown = [
                value
                for function in _functions(kind, "infer_from_output")
                for value, number, fact in _returned(node, function, seen[node])
                if isinstance(fact, Unused) and facts.add_unused(node, number, value, fact)
            ]
        makers = [v.producer for value in grown for v in (value, *graph.instead.get(value, ()))]
        return [n for n in makers if n is not None and n.rule is not None]

    _fixpoint(seen, forward, 1)
    if only := _not_of_all(facts):
        already = denied or {}
        less = {**already, **{v: e | already.get(v, nothing(v.ndim)) for v, e in only.items()}}
        return infer(graph, masks, less, facts, backwards)
    if not backwards:
        return facts
    _fixpoint(seen, backward, -1)
    # The least that the next call can read of what this one leaves; its own next call reads as much.
    while more := _read_next(facts):
        facts.awaited |= more
        facts.claims.clear()
        _fixpoint(seen, backward, -1)
    facts.settled = True
    return facts


def _not_of_all(facts: Facts) -> dict[Value, Bools]:
    """What is known of a value, and not of those that may stand in its place, in the next call too."""
    found: dict[Value, Bools] = {}
    for value, others in facts.graph.instead.items():
        known = facts.known(value)
        for other in others:
            mask, numbers = facts.mask(other), facts.value(other)
            if unfit(mask, value.shape) or unfit(numbers, value.shape):
                mask, numbers = nothing(value.ndim), zeros(value.ndim)
            entries = known & ~(mask & facts.mask(value) & (numbers == facts.value(value)))
            if entries.any():
                found[value] = entries | found.get(value, nothing(value.ndim))
    for value in facts.graph.replaced:
        later = value.next
        entries = facts.mask(value)
        if facts.graph.lasts and later is not None and value.is_replaced_alike:
            entries = entries & ~(facts.mask(later) & (facts.value(later) == facts.value(value)))
        if entries.any():
            found[value] = entries | found.get(value, nothing(value.ndim))
    return found


def _read_next(facts: Facts) -> dict[Value, Bools]:
    """What the next call reads of what this one leaves, as far as it was not known."""
    found: dict[Value, Bools] = {}
    for value in facts.graph.replaced:
        if value.next is None or not value.is_replaced_alike:
            continue
        read, known = ~facts.unused(value), facts.awaited.get(value.next, nothing(value.ndim))
        if (read & ~known).any():
            found[value.next] = read | known | found.get(value.next, nothing(value.ndim))
    return found


@functools.lru_cache(maxsize=1024)
def _functions(kind: Any, function: str) -> tuple[str, ...]:
    """What to ask a rule for one direction. What weights alone say is part of what is derived from all operands."""
    derived = kind.infer_from_weight is Rule.infer_from_weight and getattr(kind, function) is getattr(Rule, function)
    return (function,) if derived or kind.infer_from_weight is says_nothing else ("infer_from_weight", function)


def _fixpoint(nodes: Iterable[Node], step: Callable[[Node], Iterable[Node]], direction: int) -> None:
    """Run ``step`` on every node, and again on those it names, until nothing is left to do.

    Args:
        direction: of two nodes that wait, whether the earlier (1) or the later one (-1) comes first.
    """
    waiting = {direction * n.index: n for n in nodes}
    heap = sorted(waiting)  # is a heap
    while heap:
        node = waiting.pop(heapq.heappop(heap))
        for other in step(node):
            at = direction * other.index
            if at not in waiting:
                waiting[at] = other
                heapq.heappush(heap, at)


def _returned(node: Node, function: str, seen: NodeFacts) -> list[tuple[Value, int, Fact]]:
    """Call one function of a rule; its facts, resolved to values (with the number of the operand, -1 for outputs)."""
    found = ask(node, function, seen)
    if type(found) is not dict and not isinstance(found, Mapping):
        raise RuleError(f"{culprit(node)}: {function} returned {found!r}, not a dict of facts")
    resolved: list[tuple[Value, int, Fact]] = []
    for name, fact in found.items():
        names: Sequence[str] = ()
        values: Sequence[Value | None] = ()
        if isinstance(fact, Unused):
            names, values = node.operand_names, node.operands
        elif isinstance(fact, (Constant, Affine)):
            names, values = node.output_names, node.outputs
        number = names.index(name) if name in names else -1
        value = values[number] if number >= 0 else None
        if value is None:
            raise RuleError(
                f"{culprit(node)}: {function} returned {fact!r} for {name!r}; return Constant or Affine for outputs "
                f"and Unused for operands ({', '.join(node.operand_names)})"
            )
        _check_types(node, function, name, fact)
        resolved.append((value, number if values is node.operands else -1, fact))
    return resolved


def _check_types(node: Node, function: str, name: str, fact: Fact) -> None:
    """Masks are bool arrays, and values arrays of real numbers.

    Raises:
        RuleError: they are not.
    """
    if type(fact.mask) is np.ndarray and fact.mask.dtype is _BOOL:
        if type(fact) is Unused:
            return
        if type(fact) is Constant and type(fact.value) is np.ndarray and fact.value.dtype is _FLOAT:
            return
    what, kinds, wanted = "mask", "b", "a numpy array of bool"
    for array in (fact.mask, *fact.numbers):
        is_array = isinstance(array, (np.ndarray, np.generic))
        if not is_array or array.dtype.kind not in kinds:
            kind = array.dtype if is_array else type(array).__name__
            raise RuleError(f"{culprit(node)}: {function} returned a {what} of {kind} for {name!r}, not {wanted}")
        what, kinds, wanted = "value", "fiu", "a numpy array of float64"
