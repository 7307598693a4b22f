"""Facts that were inferred before are taken over where nothing about a call has changed since.

A rule answers from the call and from what is known of its operands and outputs, and from nothing else. So where both
are what they were, the answer is what it was, and the rule is not asked again:

- of the same run, when fewer constants are believed than before (``speedup.sizes``);
- of a run at another size, where the same line makes the call with the same arguments, of tensors of which the same is
  known: a fact holds at every size. Calls that move data are asked again, and those that sum over as many entries as
  the size says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from speedup.arrays import Bools, Floats
from speedup.facts import Affine, same_affine
from speedup.graph import Graph
from speedup.node import Line, Node, Value

if TYPE_CHECKING:
    from speedup.known import Facts


class Again:
    """What can be taken over from one inference for another one.

    Args:
        facts: of the inference that is under way.
        before: those of the one before, which has come to its end.
    """

    def __init__(self, facts: Facts, before: Facts) -> None:
        self._facts, self._before = facts, before
        self._here = facts.graph is before.graph
        self._calls = None if self._here else counterparts(facts.graph, before.graph)
        self._same: dict[tuple[Value, Value], bool] = {}
        self._unused: dict[Value, Bools] = {}

    def constants(self, node: Node) -> bool:
        """Take over what is known of the outputs of a call; whether it could be."""
        old = self._counterpart(node)
        if old is None or not self._alike(node.operands, old.operands):
            return False
        pairs = list(zip(node.outputs, old.outputs, strict=True))
        if any(not self._is_believed_as_before(*pair) or not self._fits(*pair) for pair in pairs):
            return False
        for value, other in pairs:
            if other in self._before.constants:
                self._facts.constants[value] = self._before.constants[other]
            if other in self._before.affine:
                self._facts.affine[value] = self._before.affine[other]
        return True

    def claims(self, node: Node) -> list[Value] | None:
        """Take over what is unused of the operands of a call: those of which it is more; None if it cannot be."""
        old = self._counterpart(node) if self._before.settled else None
        if old is None or not self._alike(node.values, old.values):
            return None
        before, claims, given = self._before, self._facts.claims, self._before.claims
        for value, other in zip(node.outputs, old.outputs, strict=True):
            if other not in self._unused:
                self._unused[other] = before.unused(other)
            if not np.array_equal(self._facts.unused(value), self._unused[other]):
                return None
        found = []
        for number, (own, its) in enumerate(zip(node.operands, old.operands, strict=True)):
            claim = given.get((its, old, number)) if its is not None else None
            if own is None or claim is None:
                continue
            if not _broadcasts(claim, own):
                return None
            found.append((own, number, claim))
        grown = [(v, number, claim) for v, number, claim in found if claims.get((v, node, number)) is not claim]
        for value, number, claim in grown:
            claims[value, node, number] = claim
        return [value for value, _, _ in grown]

    def _counterpart(self, node: Node) -> Node | None:
        return node if self._calls is None else self._calls.get(node)

    def _alike(self, values: Sequence[Value | None], others: Sequence[Value | None]) -> bool:
        """Whether the same is known of values as was of others."""
        return all(
            v is None or o is None or self._is_known_as_before(v, o) for v, o in zip(values, others, strict=True)
        )

    def _is_known_as_before(self, value: Value, other: Value) -> bool:
        key = value, other
        if key not in self._same:
            known = self._facts.constants.get(value) if value.tensor is None else None
            was = self._before.constants.get(other) if value.tensor is None else None
            same = known is was or (
                known is not None and was is not None and _equal((known.mask, known.value), (was.mask, was.value))
            )
            same = same and _same_affine(self._facts.affine.get(value), self._before.affine.get(other))
            same = same and (value.tensor is None or self._is_believed_as_before(value, other))
            self._same[key] = same and self._fits(value, other)
        return self._same[key]

    def _is_believed_as_before(self, value: Value, other: Value) -> bool:
        """Whether the same of what rules say is taken for constant as was before."""
        now, before = self._facts.denied.get(value), self._before.denied.get(other)
        if now is None or before is None:
            # What was not believed at one size is known of none.
            return now is before or (now is None and not self._here and value.tensor is None)
        return now is before or np.array_equal(now, before)

    def _fits(self, value: Value, other: Value) -> bool:
        """Whether what was known of a value can be said of one of another size."""
        if self._here or value.shape == other.shape:
            return True
        known, combined = self._before.constants.get(other), self._before.affine.get(other)
        arrays = [] if known is None else [known.mask, known.value]
        arrays += [] if combined is None else [combined.mask, combined.offset, *combined.terms]
        return all(_broadcasts(a, value) for a in arrays)


def counterparts(graph: Graph, other: Graph) -> dict[Node, Node]:
    """The calls of one run that are made in the same way as those of another one, which answer to it."""
    there = _by_line(other)
    found = {}
    for line, nodes in _by_line(graph).items():
        others = there.get(line, [])
        if len(others) == len(nodes):
            pairs = zip(nodes, others, strict=True)
            found.update({a: b for a, b in pairs if _made_alike(a, b, graph.from_input, other.from_input)})
    return found


def _by_line(graph: Graph) -> Mapping[Line, Sequence[Node]]:
    found: dict[Line, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        found[node.line].append(node)
    return found


def _made_alike(a: Node, b: Node, from_input: Collection[Value], also: Collection[Value]) -> bool:
    """Whether two calls are the same but for sizes that nothing is summed over.

    Args:
        from_input, also: the values of both runs that depend on the input.
    """
    rule = a.rule
    if rule is None or rule is not b.rule or rule.counts or not (rule.moves or rule.has_signature):
        return False
    if any(v.tensor is None for v in a.others):  # what they hold may follow the size, as the indices of positions do
        return False
    shown = a.op is b.op, a.operand_names, a.attributes, a.writes, a.rows, a.calls
    if shown != (True, b.operand_names, b.attributes, b.writes, b.rows, b.calls) or not a.is_given(b):
        return False

    def alike(value: Value | None, other: Value | None) -> bool:
        if value is None or other is None:
            return value is other
        if value.tensor is not other.tensor or value.next is not None or other.next is not None:
            return False
        if 0 in value.shape or 0 in other.shape:
            return False
        own = value.ndim, value.dtype, value.kind, value in from_input
        return own == (other.ndim, other.dtype, other.kind, other in also)

    for values, others in ((a.tensors, b.tensors), (a.operands, b.operands), (a.outputs, b.outputs)):
        if len(values) != len(others) or not all(map(alike, values, others)):
            return False
    if not rule.has_signature:
        return True
    here, there = a.layout, b.layout
    if (here.operands, here.contracted, here.mixed) != (there.operands, there.contracted, there.mixed):
        return False
    return all(here.sizes[n] == there.sizes[n] for n in here.contracted)


def _broadcasts(array: Bools | Floats, value: Value) -> bool:
    return array.ndim == value.ndim and all(s in (1, n) for s, n in zip(array.shape, value.shape, strict=True))


def _equal(one: Sequence[Bools | Floats], other: Sequence[Bools | Floats]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a.shape == b.shape for a, b in pairs) and all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs
    )


def _same_affine(one: Affine | None, other: Affine | None) -> bool:
    return one is other or (one is not None and other is not None and same_affine(one, other))
