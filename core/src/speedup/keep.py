"""Keep sets: the smallest kept entries for which every tensor is dense again and every call well-formed.

A second, growing fixpoint on top of the facts. It starts from what must stay (an entry that is read and not constant)
and lets every rule add what its call needs. Every addition is noted with its reason, so that ``explain`` can lead the
user from an index that stayed to the call that made it stay.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from speedup.ask import ask
from speedup.facts import Bools, Floats, along, any_of, everything, nothing
from speedup.graph import Graph, Node, Value
from speedup.infer import Facts, NodeFacts
from speedup.kinds import Kind
from speedup.order import Orders, in_order
from speedup.regular import cut


@dataclass(frozen=True, eq=False)
class Event:
    """One addition to a keep set: which entries, why, at which call, and because of which other value."""

    added: Bools
    why: str
    node: Node | None
    cause: Value | None
    order: int
    kind: Kind = Kind.RULE


@dataclass(frozen=True, eq=False)
class Lock:
    """An order to keep a value whole along ``axes`` (all of them when None), or to keep these ``entries`` of it."""

    value: int
    axes: tuple[int, ...] | None
    why: str
    entries: Bools | None = None
    kind: Kind = Kind.SIZE


class KeepSets:
    """The keep set of every value, with the reasons.

    Attributes:
        orders: of the values whose entries do not stand as they stood before, by axis.
    """

    def __init__(self, graph: Graph, facts: Facts, drop: bool = False) -> None:
        self.graph = graph
        self.facts = facts
        self.drop = drop
        self.sets: dict[Value, Bools] = {}
        self.rigid: dict[Value, list[bool]] = {}
        self.events: dict[Value, list[Event]] = {}
        self.orders: dict[Value, Orders] = {}
        self.patient = False
        self._count = 0

    def grow(
        self,
        value: Value,
        mask: Bools,
        why: str,
        node: Node | None = None,
        cause: Value | None = None,
        kind: Kind = Kind.RULE,
    ) -> bool:
        """Add entries to a keep set; True when any was new."""
        fixed = tuple(a for a, r in enumerate(self.rigid[value]) if r)
        if fixed:
            mask = any_of(mask, fixed)
        old = self.sets[value]
        added = mask & ~old
        if not added.any():
            return False
        new = old | mask
        if new.all():
            new = everything(value.ndim)
        self.sets[value] = new
        self._count += 1
        self.events[value].append(Event(added, why, node, cause, self._count, kind))
        return True

    def of(self, value: Value) -> Bools:
        return self.sets[value]

    def orders_of(self, node: Node) -> list[Orders]:
        """The orders of a node's operands and outputs, see ``speedup.order``."""
        return [self.orders.get(v, {}) for v in node.values if v is not None]

    def cut(self, value: Value, tensor: torch.Tensor) -> torch.Tensor:
        """What is kept of a value's tensor, as it stands in the small model."""
        return in_order(cut(tensor, self.sets[value]), self.orders.get(value, {}))

    def holds(self, lock: Lock) -> bool:
        """Whether a lock would change nothing."""
        keep = self.sets[self.graph.values[lock.value]]
        if lock.axes is not None:
            return all(bool(along(keep, a).all()) for a in lock.axes)
        return bool(keep.all() if lock.entries is None else (keep | ~lock.entries).all())


class NodeKeep:
    """The keep sets at one node, by operand number (operands, then outputs); what a rule's ``constrain`` sees.

    Attributes:
        sets: bool arrays that broadcast to the operands' shapes.
        facts: the facts at the node.
        rigid: per operand and axis, whether it can never lose an index.
        derived: operand numbers of weights that this call alone reads: their sets follow from the others.
        patient: whether a line that keeps nothing may still get something from elsewhere, and should wait for it.
        drop: whether removed constants are left out instead of folded.
    """

    def __init__(self, keeps: KeepSets, node: Node) -> None:
        self._keeps = keeps
        self._node = node
        self.facts = NodeFacts(keeps.facts, node)
        self.rigid = [keeps.rigid[v] if v is not None else [] for v in node.values]
        assert node.rule is not None
        self.derived: set[int] = ask(node, "derived")
        self.patient = keeps.patient
        self.drop = keeps.drop
        self.changed: set[Value] = set()

    @property
    def sets(self) -> Sequence[Bools]:
        """What is kept of each operand, then of each output, so far."""
        return [self._keeps.sets[v] if v is not None else nothing(0) for v in self._node.values]

    def grow(self, k: int, mask: Bools, why: str, cause: int, kind: Kind = Kind.RULE) -> bool:
        """Add the entries of ``mask`` to the set of operand ``k``, for a reason that users read.

        Args:
            k: number of an operand or output.
            mask: bool, broadcasts to its shape.
            why: the reason, such as "every group keeps the same count"; ``explain`` shows it.
            cause: number of the operand that asks for them, ``k`` itself if none does.
            kind: what sort of reason it is, by which reports give advice.

        Returns:
            whether any of them is new.
        """
        value = self._node.values[k]
        assert value is not None
        source = self._node.values[cause]
        grown = self._keeps.grow(value, mask, why, self._node, source if source is not value else None, kind)
        if grown:
            self.changed.add(value)
        return grown

    def rank(self, k: int) -> Floats:
        """How well each entry of operand ``k`` serves as a carrier: its absolute constant, 0 where it has none."""
        if self.facts.is_weight(k):
            return np.zeros((1,) * len(self.rigid[k]))
        useful = self.facts.mask(k) & ~self.facts.unused(k)
        return np.where(useful, np.abs(self.facts.value(k)), 0.0)


def keep_sets(graph: Graph, facts: Facts, locks: Iterable[Lock] = (), drop: bool = False) -> KeepSets:
    """Find the smallest keep sets.

    Args:
        locks: values that must stay whole along some axes.
        drop: whether removed constants are left out instead of folded.

    Raises:
        RuleError: a rule raised.
    """
    keeps = KeepSets(graph, facts, drop)
    keeps.rigid = rigid_axes(graph)
    for value in graph.values:
        keeps.sets[value] = nothing(value.ndim)
        keeps.events[value] = []
    for value in graph.values:
        _require_whole(keeps, value)
        _require_needed(keeps, value)
    nodes = {n.index: n for n in graph.nodes if n.rule is not None}
    by_number = {v.number: v for v in graph.values}
    held = [(by_number[lock.value], lock) for lock in locks]
    for value, lock in held:
        if lock.axes is None:
            wanted = everything(value.ndim) if lock.entries is None else lock.entries
            keeps.grow(value, wanted, lock.why, value.producer, None, lock.kind)
    keeps.patient = True
    _settle(keeps, nodes)
    keeps.patient = False
    # Only now is it known which lines are empty: one entry each, and again to the fixpoint.
    for value, lock in held:
        if lock.axes is not None:
            _fill(keeps, value, lock.axes, lock.why, lock.kind)
    for value in graph.values:
        if not value.is_source and not keeps.sets[value].any():
            _fill(keeps, value, (), "a tensor keeps at least one index", Kind.LEAST)
    _settle(keeps, nodes)
    _derive_weights(keeps)
    return keeps


def rigid_axes(graph: Graph) -> dict[Value, list[bool]]:
    """An axis is rigid when it can never lose an index: the inputs' axes are, and what follows from them."""
    rigid = {value: [not value.is_source] * value.ndim for value in graph.values}
    for node in graph.nodes:
        if node.rule is not None:
            found = ask(node, "rigid", [rigid[v] if v is not None else [] for v in node.operands])
            for value, flags in zip(node.outputs, found, strict=True):
                rigid[value] = list(flags)
    return rigid


def bare_keep_sets(graph: Graph) -> KeepSets:
    """What must stay whatever the masks are: keep sets in which no call has been asked what it needs."""
    keeps = KeepSets(graph, Facts(graph, {}))
    keeps.rigid = rigid_axes(graph)
    for value in graph.values:
        keeps.sets[value] = nothing(value.ndim)
        keeps.events[value] = []
    for value in graph.values:
        _require_whole(keeps, value)
    return keeps


def _require_whole(keeps: KeepSets, value: Value) -> None:
    """What must stay whatever the masks are."""
    whole = everything(value.ndim)
    if value.is_output:
        keeps.grow(value, whole, "an output of the model keeps its shape", value.producer, None, Kind.OUTPUT)
    elif value.producer is None and not value.is_source:
        keeps.grow(value, whole, f"{value.kind} of the model: it comes as it is", None, None, Kind.INPUT)
    elif value.producer is not None and value.producer.rule is None:
        why = f"made by {value.producer.op_name}, which no rule knows"
        keeps.grow(value, whole, why, value.producer, None, Kind.BARRIER)
    branch = keeps.graph.branch
    if branch is not None and value in keeps.graph.uncertain:
        keeps.grow(value, whole, branch.why, branch.node, None, Kind.DATA)
    for node, number in value.uses:
        if node.rule is None or number < 0:
            keeps.grow(value, whole, f"read by {node.op_name}, which no rule knows", node, None, Kind.BARRIER)


def _require_needed(keeps: KeepSets, value: Value) -> None:
    """What is read and cannot be told without the input."""
    if value.producer is not None:
        needed = ~(keeps.facts.unused(value) | keeps.facts.known(value))
        if needed.any():
            keeps.grow(value, needed, "it is read and not constant", value.producer, None, Kind.NEEDED)


def _fill(keeps: KeepSets, value: Value, axes: tuple[int, ...], why: str, kind: Kind) -> None:
    """Keep something at every index of ``axes``: the first entry of each line that keeps nothing."""
    flexible = [a for a, r in enumerate(keeps.rigid[value]) if not r]
    shape = tuple(s if a in flexible else 1 for a, s in enumerate(value.shape))
    rest = tuple(a for a in range(value.ndim) if a not in axes)
    empty = ~any_of(np.broadcast_to(keeps.sets[value], shape), rest)
    first = np.ones(shape, dtype=bool)
    for axis in rest:
        first = first & (np.arange(shape[axis]) == 0).reshape([-1 if a == axis else 1 for a in range(value.ndim)])
    keeps.grow(value, first & empty, why, value.producer, None, kind)


def _settle(keeps: KeepSets, nodes: dict[int, Node]) -> None:
    heap = list(nodes)
    waiting = set(heap)
    heapq.heapify(heap)
    while heap:
        index = heapq.heappop(heap)
        waiting.discard(index)
        node = nodes[index]
        assert node.rule is not None
        keep = NodeKeep(keeps, node)
        ask(node, "constrain", keep)
        for value in keep.changed:
            near = [n for n, _ in value.uses] + ([value.producer] if value.producer is not None else [])
            for other in near:
                if other.rule is not None and other.index not in waiting:
                    waiting.add(other.index)
                    heapq.heappush(heap, other.index)


def _derive_weights(keeps: KeepSets) -> None:
    """Weights that one call alone reads keep the product of what its other operands keep."""
    for node in keeps.graph.nodes:
        if node.rule is None:
            continue
        keep = NodeKeep(keeps, node)
        for k in sorted(keep.derived):
            value = node.values[k]
            assert value is not None
            wanted = ask(node, "derive", k, keep.sets)
            keeps.grow(value, wanted if wanted.any() else everything(value.ndim), "its layer keeps them", node)
