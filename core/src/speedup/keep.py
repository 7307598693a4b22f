"""Keep sets: which entries of every tensor are kept, so that it is dense again and every call well-formed.

They only grow (see ``speedup.grow``). Every addition is noted with its reason, so that ``explain`` can lead the user
from an index that stayed to the call that made it stay.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch

from speedup.arrays import Bools, along, any_of, equal, every, everything, nothing, some
from speedup.ask import ask
from speedup.cutting import cut, cut_indices
from speedup.graph import Graph
from speedup.kinds import Kind
from speedup.known import Facts
from speedup.node import Node, Value
from speedup.order import Orders, in_order
from speedup.regular import Lines, kept_shape, varied
from speedup.rigid import rigid_axes
from speedup.rule import leaves_to_layout
from speedup.sets import Product, Sets, SetsAt
from speedup.tie import derived_operands

_WHY_DERIVED = "its layer keeps them"


class Stage(IntEnum):
    """How far the fixpoint of keep sets has come: each stage starts from all that the one before needs."""

    LINKED = 0
    """What belongs together is kept together."""
    CARRIED = 1
    """Constants that go are folded, or carried by entries that stay."""
    FILLED = 2
    """Parts that must keep equal counts are filled up, and lines that keep nothing get an entry."""


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
        stage: how far the fixpoint has come.
        waiting: calls (by index) that wait for a later stage.
        memo: what was found out at a node from its sets, for the next who asks while these are the same.
        made: by node and what it is, what was made of some sets, and these.
        additions: how many there were so far.
        tied: by node, the sets with which its operands keep together what they must; () where some of it waits.
    """

    def __init__(self, graph: Graph, facts: Facts, drop: bool = False) -> None:
        self.graph = graph
        self.facts = facts
        self.drop = drop
        self.sets = Sets()
        self.rigid = rigid_axes(graph)
        fixed = {flags: tuple([a for a, r in enumerate(flags) if r]) for flags in {*self.rigid.values()}}
        self._fixed = {v: fixed[flags] for v, flags in self.rigid.items()}
        self.events: dict[Value, list[Event]] = {}
        self.orders: dict[Value, Orders] = {}
        self.stage = Stage.FILLED
        self.waiting: set[int] = set()
        self.memo: dict[Node, tuple[list[tuple[Value, Bools]], Any]] = {}
        self.made: dict[tuple[Node, Hashable], tuple[Sequence[Bools], Any]] = {}
        self.tied: dict[Node, tuple[Bools, ...]] = {}
        self._derived: dict[Node, set[int]] = {}
        self.additions = 0
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
        if mask.size > 1:
            mask = any_of(mask, self._fixed[value])
        first = old is nothing(value.ndim)
        added = mask.copy() if first else mask & ~old
        if not some(added):
            return False
        new = added if first else old | mask
        if every(new):
            new = everything(value.ndim)
        self.sets[value] = new
        self._shapes.pop(value, None)
        self.additions += 1
        self.events[value].append(Event(added, why, node, cause, self.additions, kind))
        return True

    def derive(self, value: Value, product: Product, node: Node) -> None:
        """Let a weight keep the product of some sets, which is written out only if somebody asks for it."""
        if product.lines is not None and self.is_empty(value):
            self.derive_box(value, product.lines, node)
            return
        written = functools.reduce(np.logical_and, product.parts, everything(value.ndim))
        self.grow(value, written if some(written) else everything(value.ndim), _WHY_DERIVED, node)

    def derive_box(self, value: Value, lines: Lines, node: Node) -> None:
        """As ``derive``, of a weight that keeps nothing so far."""
        self.additions += 1
        self.sets.write_later(value, lines)
        self._derived_at[value] = node, self.additions

    def adopt(self, value: Value, other: KeepSets, its: Value) -> None:
        """Keep of a parameter what the plan for another run of the model keeps of it."""
        self.sets[value] = other.sets[its]
        if its in other.sets.lines:
            self.sets.lines[value] = other.sets.lines[its]
        if its in other.orders:
            self.orders[value] = other.orders[its]
        self.events[value] = other.events_of(its)
        self._derived_at.pop(value, None)
        self._shapes.pop(value, None)

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
        return Lines({a: line for a, line in found.items() if not every(line)})

    def box(self, value: Value) -> Lines | None:
        """As ``lines``, of a weight that keeps a box of its entries, in their order; else None."""
        return self.sets.lines.get(value) if value not in self.orders else None

    def whole(self, value: Value) -> bool:
        """Whether all entries are kept."""
        lines = self.sets.lines
        return not lines[value] if value in lines else every(self.sets[value])

    def is_empty(self, value: Value) -> bool:
        """Whether no entry is kept; a set that is written out has grown."""
        keep = self.sets[value]
        return keep.size == 1 and not keep

    def same(self, value: Value, other: KeepSets, its: Value | None = None) -> bool:
        """Whether two plans keep the same of a value.

        Args:
            its: the value of the other plan, where that is for another graph.
        """
        its = value if its is None else its
        lines, others = self.sets.lines.get(value), other.sets.lines.get(its)
        if lines is not None and others is not None:
            return lines.keys() == others.keys() and all(equal(line, others[a]) for a, line in lines.items())
        return bool((self.sets[value] == other.sets[its]).all())

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape of what is kept."""
        shapes, lines = self._shapes, self.sets.lines
        if value not in shapes:
            if value in lines:
                sizes = [*value.shape]
                for axis, indices in lines[value].indices.items():
                    sizes[axis] = indices.size
                shapes[value] = tuple(sizes)
            else:
                shapes[value] = kept_shape(self.sets[value], value.shape)
        return shapes[value]

    def at(self, node: Node) -> Sequence[Bools]:
        """The sets of a node's operands and outputs, each to be asked for by its number."""
        return SetsAt(self.sets, node.values)

    def derived_at(self, node: Node) -> set[int]:
        """The operands whose sets follow from the others, by number."""
        if node not in self._derived:
            plain = leaves_to_layout(node, "derived")
            self._derived[node] = derived_operands(node) if plain else ask(node, "derived")
        return self._derived[node]

    def of(self, values: Sequence[Value | None]) -> Sequence[Bools]:
        """The sets of some values, each to be asked for by its number."""
        return SetsAt(self.sets, values)

    def orders_of(self, node: Node) -> list[Orders]:
        """The orders of a node's operands and outputs, see ``speedup.order``."""
        return [{} if v is None else self.orders.get(v, {}) for v in node.values]

    def cut(self, value: Value, tensor: torch.Tensor) -> torch.Tensor:
        """What is kept of a value's tensor, as it stands in the small model."""
        known = self.sets.lines.get(value)
        if known is None:
            small = cut(tensor, self.sets[value])
        elif len(known) == 1 and tensor.ndim == 1 and tensor.is_cpu:  # most are vectors
            small = (tensor.detach() if tensor.requires_grad else tensor).index_select(0, known.places)
        else:
            small = cut_indices(tensor, known.indices)
        return in_order(small, self.orders[value]) if value in self.orders else small

    def cut_mask(self, value: Value, mask: torch.Tensor) -> torch.Tensor:
        """What is kept of a mask that broadcasts to a value; broadcasts to what is kept of it."""
        known = self.sets.lines.get(value)
        if known is None or value in self.orders:
            return self.cut(value, mask.expand(value.shape))
        return cut_indices(mask, {a: indices for a, indices in known.indices.items() if mask.shape[a] > 1})

    def lacks_masked(self, value: Value) -> bool:
        """Whether the lines tell that nothing is kept of what is masked of a parameter."""
        lines, masked = self.sets.lines.get(value), self.facts.masked.get(value)
        if lines is None or masked is None:
            return False
        left, shape = masked, masked.shape  # where any is masked of what is kept along the axes looked at so far
        for axis, indices in lines.indices.items():
            if shape[axis] > 1:
                left = any_of(left.take(indices, axis), axis)
        return not some(left)

    def forget(self) -> None:
        """Give back the memory of what was found on the way, and can be found again."""
        self.memo.clear()
        self.made.clear()
        self.tied.clear()
        self.facts.forget()

    def holds(self, lock: Lock) -> bool:
        """Whether a lock would change nothing."""
        keep = self.sets[self.graph.values[lock.value]]
        if lock.axes is not None:
            return all(bool(along(keep, a).all()) for a in lock.axes)
        return bool(keep.all() if lock.entries is None else (keep | ~lock.entries).all())
