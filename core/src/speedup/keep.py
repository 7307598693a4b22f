"""Keep sets: the smallest kept entries for which every tensor is dense again and every call well-formed.

A second, growing fixpoint on top of the facts. It starts from what must stay (an entry that is read and not constant)
and lets every rule add what its call needs. Every addition is noted with its reason, so that ``explain`` can lead the
user from an index that stayed to the call that made it stay.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast, overload

import numpy as np
import torch

from speedup.ask import ask
from speedup.facts import Bools, Floats, along, any_of, everything, nothing
from speedup.graph import Graph, Node, Value
from speedup.infer import Facts, NodeFacts
from speedup.kinds import Kind
from speedup.order import Orders, in_order
from speedup.regular import Lines, cut, cut_indices, kept_shape, varied
from speedup.rule import Rule
from speedup.tie import derive_parts, derived_operands

Found = TypeVar("Found")

_WHY_DERIVED = "its layer keeps them"


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
        memo: what was found out at a node from its sets, for the next who asks while these are the same.
    """

    def __init__(self, graph: Graph, facts: Facts, drop: bool = False) -> None:
        self.graph = graph
        self.facts = facts
        self.drop = drop
        self.sets = _Sets()
        self.rigid = rigid_axes(graph)
        self._fixed = {v: tuple([a for a, r in enumerate(flags) if r]) for v, flags in self.rigid.items()}
        self.events: dict[Value, list[Event]] = {}
        self.orders: dict[Value, Orders] = {}
        self.patient = False
        self.waiting: set[int] = set()
        self.memo: dict[Node, tuple[tuple[Bools, ...], Any]] = {}
        self._derived: dict[Node, set[int]] = {}
        self._count = 0
        self._derived_at: dict[Value, tuple[Node, int]] = {}
        self._shapes: dict[Value, tuple[int, ...]] = {}

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
        old = self.sets[value]
        if old is everything(value.ndim):
            return False
        mask = any_of(mask, self._fixed[value])
        added = mask.copy() if old is nothing(value.ndim) else mask & ~old
        if not added.any():
            return False
        new = old | mask
        if new.all():
            new = everything(value.ndim)
        self.sets[value] = new
        self._shapes.pop(value, None)
        self._count += 1
        self.events[value].append(Event(added, why, node, cause, self._count, kind))
        return True

    def derive(self, value: Value, product: _Product, node: Node) -> None:
        """Let a weight keep the product of some sets, which is written out only if somebody asks for it."""
        if product.lines is None or self.sets[value].any():
            written = functools.reduce(np.logical_and, product.parts, everything(value.ndim))
            self.grow(value, written if written.any() else everything(value.ndim), _WHY_DERIVED, node)
            return
        self._count += 1
        self.sets.write_later(value, product.lines)
        self._derived_at[value] = node, self._count

    def events_of(self, value: Value) -> list[Event]:
        """What was added to the set of a value, in order."""
        if value in self._derived_at:
            node, order = self._derived_at[value]
            return [*self.events[value], Event(self.sets[value], _WHY_DERIVED, node, None, order)]
        return self.events[value]

    def lines(self, value: Value) -> Lines:
        """Per axis the indices with any kept entry (1-D), for the axes that lose some."""
        known = self.sets.lines.get(value)
        if known is not None:
            return known
        keep = self.sets[value]
        found = {a: along(keep, a) for a in varied(keep)}
        return Lines({a: line for a, line in found.items() if not line.all()})

    def whole(self, value: Value) -> bool:
        """Whether all entries are kept."""
        known = self.sets.lines.get(value)
        return not known if known is not None else bool(self.sets[value].all())

    def same(self, value: Value, other: KeepSets) -> bool:
        """Whether two plans for one graph keep the same of a value."""
        lines, its = self.sets.lines.get(value), other.sets.lines.get(value)
        if lines is not None and its is not None:
            return lines.keys() == its.keys() and all(np.array_equal(line, its[a]) for a, line in lines.items())
        return bool((self.sets[value] == other.sets[value]).all())

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape of what is kept."""
        if value not in self._shapes:
            known = self.sets.lines.get(value)
            if known is not None:
                counts = {a: len(indices) for a, indices in known.indices.items()}
                shape = tuple([counts.get(a, s) for a, s in enumerate(value.shape)])
            else:
                shape = kept_shape(self.sets[value], value.shape)
            self._shapes[value] = shape
        return self._shapes[value]

    def at(self, node: Node) -> Sequence[Bools]:
        """The sets of a node's operands and outputs, each to be asked for by its number."""
        return _SetsAt(self.sets, node.values)

    def derived_at(self, node: Node) -> set[int]:
        """The operands whose sets follow from the others, by number."""
        derived = self._derived.get(node)
        if derived is None:
            derived = self._derived[node] = ask(node, "derived")
        return derived

    def of(self, values: Sequence[Value]) -> Sequence[Bools]:
        """The sets of some values, each to be asked for by its number."""
        return _SetsAt(self.sets, values)

    def orders_of(self, node: Node) -> list[Orders]:
        """The orders of a node's operands and outputs, see ``speedup.order``."""
        return [self.orders.get(v, {}) for v in node.values if v is not None]

    def cut(self, value: Value, tensor: torch.Tensor) -> torch.Tensor:
        """What is kept of a value's tensor, as it stands in the small model."""
        known = self.sets.lines.get(value)
        small = cut(tensor, self.sets[value]) if known is None else cut_indices(tensor, known.indices)
        return in_order(small, self.orders.get(value, {}))

    def cut_mask(self, value: Value, mask: torch.Tensor) -> torch.Tensor:
        """What is kept of a mask that broadcasts to a value; broadcasts to what is kept of it."""
        known = self.sets.lines.get(value)
        if known is None or value in self.orders:
            return self.cut(value, mask.expand(value.shape))
        return cut_indices(mask, {a: indices for a, indices in known.indices.items() if mask.shape[a] > 1})

    def forget(self) -> None:
        """Give back the memory of what was found on the way, and can be found again."""
        self.memo.clear()
        self.facts.forget()

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
        drop: whether removed constants are left out instead of folded.
        settled: set by a rule whose call can be made on what is kept now: it needs not be asked again because of what
            it added itself. To add more takes it back.
    """

    def __init__(self, keeps: KeepSets, node: Node) -> None:
        self._keeps = keeps
        self._node = node
        self.facts = NodeFacts(keeps.facts, node)
        self.rigid = tuple([keeps.rigid[v] if v is not None else () for v in node.values])
        self.sets = keeps.at(node)
        self.derived = keeps.derived_at(node)
        self.drop = keeps.drop
        self.settled = False
        self.changed: set[Value] = set()

    def lines(self, k: int) -> Lines:
        """Per axis of operand ``k`` the indices with any kept entry, for the axes that lose some."""
        value = self._node.values[k]
        assert value is not None
        return self._keeps.lines(value)

    def box(self, k: int) -> Lines | None:
        """As ``lines``, of a weight that keeps a box of its entries, in their order; else None."""
        value = self._node.values[k]
        assert value is not None
        return self._keeps.sets.lines.get(value) if value not in self._keeps.orders else None

    def cut(self, value: Value, tensor: torch.Tensor) -> torch.Tensor:
        """What is kept of a tensor in the place of some value."""
        return self._keeps.cut(value, tensor).contiguous()

    def remembered(self, sets: tuple[Bools, ...], find: Callable[[], Found]) -> Found:
        """What follows from the facts and these sets of the node, found again when a set has grown.

        Args:
            sets: of the node, those that are looked at.
            find: finds it.
        """
        seen, found = self._keeps.memo.get(self._node, ((), None))
        if len(seen) != len(sets) or any(a is not b for a, b in zip(seen, sets, strict=True)):
            found = find()
            self._keeps.memo[self._node] = sets, found
        return cast(Found, found)

    @property
    def patient(self) -> bool:
        """Whether a line that keeps nothing may still get something from elsewhere, and should wait for it."""
        if self._keeps.patient:
            self._keeps.waiting.add(self._node.index)
        return self._keeps.patient

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
            self.settled = False
        return grown

    def rank(self, k: int) -> Floats:
        """How well each entry of operand ``k`` serves as a carrier: its absolute constant, 0 where it has none."""
        if self.facts.is_weight(k):
            return np.zeros((1,) * len(self.rigid[k]))
        useful = self.facts.mask(k) & ~self.facts.unused(k)
        return np.where(useful, np.abs(self.facts.value(k)), 0.0)


class _Sets(dict[Value, Bools]):
    """The sets by value. Large products are written out when they are asked for.

    Attributes:
        lines: the factors of the products, per axis that loses indices.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Value, Lines] = {}

    def write_later(self, value: Value, lines: Lines) -> None:
        self.pop(value, None)
        self.lines[value] = lines

    def __missing__(self, value: Value) -> Bools:
        found = everything(value.ndim)
        for axis, line in self.lines[value].items():
            found = found & line.reshape([-1 if a == axis else 1 for a in range(value.ndim)])
        self[value] = found
        return found


class _SetsAt(Sequence[Bools]):
    def __init__(self, sets: _Sets, values: Sequence[Value | None]) -> None:
        self._sets = sets
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, k: int) -> Bools: ...
    @overload
    def __getitem__(self, k: slice) -> list[Bools]: ...
    def __getitem__(self, k: int | slice) -> Bools | list[Bools]:
        if isinstance(k, slice):
            return [self[j] for j in range(*k.indices(len(self)))]
        value = self._values[k]
        return self._sets[value] if value is not None else nothing(0)


class _Product:
    """What a weight keeps: the product of some sets.

    Attributes:
        parts: the sets; arrays that broadcast to the weight's shape.
        lines: the same as one line per axis that loses indices; None where a set varies along several axes.
    """

    def __init__(self, parts: Sequence[Bools]) -> None:
        self.parts = parts
        self.lines: Lines | None = None
        lines = _lines(parts)
        if lines is not None:
            empty = any(not line.any() for line in lines.values())
            self.lines = Lines({} if empty else {a: line for a, line in lines.items() if not line.all()})


def _lines(parts: Iterable[Bools]) -> dict[int, Bools] | None:
    """The product of some sets as one line per axis; None where one of them varies along several."""
    lines: dict[int, Bools] = {}
    for part in parts:
        axes = varied(part)
        if len(axes) > 1:
            return None
        line = part.reshape(-1)
        axis = axes[0] if axes else 0
        lines[axis] = lines[axis] & line if axis in lines else line
    return lines


def keep_sets(graph: Graph, facts: Facts, locks: Iterable[Lock] = (), drop: bool = False) -> KeepSets:
    """Find the smallest keep sets.

    Args:
        locks: values that must stay whole along some axes.
        drop: whether removed constants are left out instead of folded.

    Raises:
        RuleError: a rule raised.
    """
    keeps = _begun(graph, facts, drop)
    for value in graph.values:
        _require_needed(keeps, value)
    nodes = {n.index: n for n in graph.nodes if n.rule is not None}
    by_number = {v.number: v for v in graph.values}
    held = [(by_number[lock.value], lock) for lock in locks]
    for value, lock in held:
        if lock.axes is None:
            wanted = everything(value.ndim) if lock.entries is None else lock.entries
            keeps.grow(value, wanted, lock.why, value.producer, None, lock.kind)
    keeps.patient = True
    _settle(keeps, nodes, nodes)
    keeps.patient = False
    # Only now is it known which lines are empty: one entry each, and again to the fixpoint.
    more = [v for v, lock in held if lock.axes is not None and _fill(keeps, v, lock.axes, lock.why, lock.kind)]
    for value in graph.values:
        if not value.is_source and not keeps.sets[value].any():
            _fill(keeps, value, (), "a tensor keeps at least one index", Kind.LEAST)
            more.append(value)
    _settle(keeps, nodes, keeps.waiting.union(*(_near(v) for v in more)))
    _derive_weights(keeps)
    return keeps


def rigid_axes(graph: Graph) -> dict[Value, tuple[bool, ...]]:
    """An axis is rigid when it can never lose an index: the inputs' axes are, and what follows from them."""
    rigid = {value: (not value.is_source,) * value.ndim for value in graph.values}
    for node in graph.nodes:
        if node.rule is not None:
            found = ask(node, "rigid", [rigid[v] if v is not None else () for v in node.operands])
            for value, flags in zip(node.outputs, found, strict=True):
                rigid[value] = tuple(flags)
    return rigid


def bare_keep_sets(graph: Graph) -> KeepSets:
    """What must stay whatever the masks are: keep sets in which no call has been asked what it needs."""
    return _begun(graph, Facts(graph, {}))


def _begun(graph: Graph, facts: Facts, drop: bool = False) -> KeepSets:
    keeps = KeepSets(graph, facts, drop)
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


def _fill(keeps: KeepSets, value: Value, axes: tuple[int, ...], why: str, kind: Kind) -> bool:
    """Keep something at every index of ``axes``: the first entry of each line that keeps nothing."""
    flexible = [a for a, r in enumerate(keeps.rigid[value]) if not r]
    shape = tuple(s if a in flexible else 1 for a, s in enumerate(value.shape))
    rest = tuple(a for a in range(value.ndim) if a not in axes)
    empty = ~any_of(np.broadcast_to(keeps.sets[value], shape), rest)
    first = np.ones(shape, dtype=bool)
    for axis in rest:
        first = first & (np.arange(shape[axis]) == 0).reshape([-1 if a == axis else 1 for a in range(value.ndim)])
    return keeps.grow(value, first & empty, why, value.producer, None, kind)


def _near(value: Value) -> set[int]:
    """The calls with a rule that make or read a value."""
    near = [n for n, _ in value.uses] + ([value.producer] if value.producer is not None else [])
    return {n.index for n in near if n.rule is not None}


def _settle(keeps: KeepSets, nodes: dict[int, Node], start: Iterable[int]) -> None:
    heap = list(start)
    waiting = set(heap)
    heapq.heapify(heap)
    while heap:
        index = heapq.heappop(heap)
        waiting.discard(index)
        node = nodes[index]
        assert node.rule is not None
        keep = NodeKeep(keeps, node)
        ask(node, "constrain", keep)
        asked = set().union(*(_near(v) for v in keep.changed)) - ({index} if keep.settled else set())
        for other in asked - waiting:
            waiting.add(other)
            heapq.heappush(heap, other)


def _derive_weights(keeps: KeepSets) -> None:
    """Weights that one call alone reads keep the product of what its other operands keep."""
    for node in keeps.graph.nodes:
        if node.rule is None:
            continue
        derived = keeps.derived_at(node)
        plain = type(node.rule).derive is Rule.derive  # another one may be that of a rule without axes
        own = derived_operands(node) if derived and plain else derived
        sets = keeps.at(node)
        products: dict[Any, _Product] = {}  # the four vectors of a batch norm keep the same
        for k in sorted(derived):
            value = node.operands[k]
            assert value is not None
            if not plain:
                keeps.derive(value, _Product([ask(node, "derive", k, sets)]), node)
                continue
            axes = node.layout.operands[k] if k in own else k
            if axes not in products:
                products[axes] = _Product(derive_parts(node, k, own, sets))
            keeps.derive(value, products[axes], node)
