"""Which entries must be kept together, derived from the axes signature.

In named space, with a keep set per operand:

1. *linked*: operands that share names keep the same indices along them;
2. *joined*: an operand spanned by others (a weight by input and output) keeps the product of what they keep;
3. *regular*: every operand is dense again after the cut (see ``speedup.regular``), and positions differ from group to
   group only where every operand can tell the groups apart.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from speedup import fold
from speedup.arrays import Bools, any_of, compact_axes, equal, everything, some
from speedup.kinds import Kind
from speedup.layout import Layout
from speedup.node import Node
from speedup.pattern import Pattern, along_one, pattern_of, rigid_flags
from speedup.regular import Lines, can_be_cut, regularize, varied

if TYPE_CHECKING:
    from speedup.node_keep import NodeKeep
    from speedup.rule import Rule

_WHY_LINKED = "joined with a tensor that keeps it"
_WHY_EMPTY = "a tensor keeps at least one index"
_WHY_REGULAR = "every group keeps the same count"
WHY_ALL = "the call reads all of this axis"
_WHY_BESIDE = "the call takes it together with another index of this axis, which stays"


def rigid_outputs(node: Node, rigid: Sequence[Sequence[bool]]) -> list[list[bool]]:
    """Per output and axis, whether it can never lose an index, given the same for the operands."""
    return [[*flags] for flags in rigid_flags(node.layout, tuple([tuple(flags) for flags in rigid]))]


def derived_operands(node: Node) -> set[int]:
    """Weights that this call alone reads and whose every name another operand or output has."""
    layout = node.layout
    own = frozenset([k for k, v in enumerate(node.operands) if v is not None and v.is_source and v.is_of_one_call])
    return set(layout.form.once("derived", own, lambda: _derived_operands(layout, own))) if own else set()


def _derived_operands(layout: Layout, own: Collection[int]) -> list[int]:
    known = {n for k in range(len(layout.operands)) if k not in own for n in layout.names_of(k)}
    return [k for k in own if layout.shared(k) <= known]


def derive(node: Node, k: int, sets: Sequence[Bools]) -> Bools:
    """The product of what the operands that are not derived keep, along the names of operand ``k``."""
    parts = derive_parts(node, k, derived_operands(node), sets)
    return functools.reduce(np.logical_and, parts, everything(len(node.layout.operands[k] or ())))


def derive_parts(node: Node, k: int, derived: Collection[int], sets: Sequence[Bools]) -> list[Bools]:
    """The factors of ``derive``, each over the axes of operand ``k``."""
    layout = node.layout
    ways: list[tuple[int, tuple[int, ...]]] = layout.form.once("parts", k, lambda: _ways_to(layout, k))
    return [layout.from_named(k, any_of(layout.to_named(p, sets[p]), away)) for p, away in ways if p not in derived]


def _ways_to(layout: Layout, k: int) -> list[tuple[int, tuple[int, ...]]]:
    """The operands that share names with operand ``k``, and what else they vary along."""
    shared = [(p, layout.names_of(p) & layout.names_of(k)) for p in range(len(layout.operands)) if layout.present(p)]
    return [(p, layout.axes(set(layout.names) - common)) for p, common in shared if common]


def box_of(node: Node, k: int, derived: Collection[int], sets: Sequence[Bools]) -> Lines | None:
    """The product of ``derive_parts`` by the lines of the axes that lose indices; None where one look at each set does
    not tell it: it varies along several axes, or nothing is kept."""
    layout = node.layout
    lines = Lines()
    for p, axes in layout.form.once("box", k, lambda: _axes_to(layout, k)):
        if p in derived:
            continue
        keep = sets[p]
        if keep.size == 1:
            if not keep:
                return None
            continue
        if keep.size not in keep.shape:
            return None
        axis = axes[keep.shape.index(keep.size)]
        if axis is None:
            return None
        if axis >= 0:
            line = keep.reshape(-1)
            if axis in lines:
                line = line & lines[axis]
                if not some(line):
                    return None
            lines[axis] = line
    return lines


def _axes_to(layout: Layout, k: int) -> list[tuple[int, list[int | None]]]:
    """Per operand that shares names with operand ``k`` and per axis of it, which axis of ``k`` has its names; -1 where
    none has, None where one has some of them, or others too."""
    own = [[n for n in dim if layout.sizes[n] > 1] for dim in layout.operands[k] or ()]
    found: list[tuple[int, list[int | None]]] = []
    for p, _ in _ways_to(layout, k):
        axes: list[int | None] = []
        for dim in layout.operands[p] or ():
            names = [n for n in dim if layout.sizes[n] > 1]
            there = [axis for axis, known in enumerate(own) if set(known) & set(names)]
            plain = all(own[axis] == names for axis in there)
            axes.append((there or [-1])[0] if plain else None)
        found.append((p, axes))
    return found


def constrain(rule: Rule, node: Node, keep: NodeKeep) -> None:
    """Grow the keep sets at one node until 1 to 3 hold, and the constants that go can be folded."""
    pattern = keep.pattern
    if pattern is None:
        pattern = keep.pattern = pattern_of(node.layout, keep.rigid, keep.derived)
    while not keep.settled:
        # A weight has its carriers before others look for what to fill it up with.
        if not (pattern.is_plain and _settle_plainly(pattern, keep)):
            keep.tie_once(lambda: _Ties(node, keep, pattern).settle())
        keep.settled = True
        if not keep.drop and rule.folds(node) and not keep.folds_later:
            fold.demand(rule, node, keep)


def _settle_plainly(pattern: Pattern, keep: NodeKeep) -> bool:
    """As ``_Ties.settle`` where the sets, as they are, say what to do; whether they did."""
    sets = keep.sets_of(pattern.present)
    if pattern.hold(sets):
        return True
    if pattern.apart or not pattern.one or not along_one(sets):
        return False
    for p in pattern.present:
        for q in pattern.present:
            mine = keep.sets[p]
            if mine is not keep.sets[q] and some(mine):
                keep.grow(q, mine, _WHY_LINKED, p)
    return True


class _Ties:
    def __init__(self, node: Node, keep: NodeKeep, pattern: Pattern) -> None:
        self.keep = keep
        layout = self.layout = node.layout
        self.pattern, self.fixed, self.present = pattern, pattern.fixed, pattern.present
        sets, axes = keep.sets, pattern.fixed_axes
        self.given = {k: layout.to_named(k, sets[k]) for k in self.present}
        self.sets = {k: any_of(given, axes) if given.size != 1 else given for k, given in self.given.items()}
        self.grown = dict.fromkeys(self.present, 0)
        self.checked: dict[Any, Any] = {}

    def settle(self) -> None:
        for k in self.present:
            if self.sets[k] is not self.given[k]:
                why, kind = (_WHY_BESIDE, Kind.RULE) if self._is_beside(k) else (WHY_ALL, Kind.RIGID)
                self._grow(k, self.sets[k], why, k, kind)
        while not self.pattern.hold([*self.sets.values()]) and self._step():
            pass

    def _is_beside(self, k: int) -> bool:
        """Whether what was asked for comes from beside, along a part of an axis: other parts of it may go."""
        sizes = zip(self.layout.names, self.given[k].shape, strict=True)
        asked = {name for name, size in sizes if size > 1 and name in self.fixed}
        return not any(self.fixed.issuperset(d) for d in self.layout.operands[k] or () if not asked.isdisjoint(d))

    def _step(self) -> bool:
        return any([self._link(), self._join(), self._regular()])

    def _grow(self, k: int, mask: Bools, why: str, cause: int, kind: Kind = Kind.RULE) -> bool:
        self.sets[k] = self.sets[k] | mask
        self.grown[k] += 1
        return self.keep.grow(k, self.layout.from_named(k, mask), why, cause, kind)

    def _is_new(self, what: Any, operands: Iterable[int]) -> bool:
        """Whether any of these operands has grown since this was looked at."""
        state = [self.grown[k] for k in operands]
        if self.checked.get(what) == state:
            return False
        self.checked[what] = state
        return True

    def _project(self, k: int, names: frozenset[str]) -> Bools:
        return any_of(self.sets[k], self.layout.axes(self.layout.names_of(k) - names))

    def _link(self) -> bool:
        grown = False
        for pair in self.pattern.pairs:
            p, q = pair.p, pair.q
            if not self._is_new(pair, (p, q)) or not some(self.sets[p]):
                continue
            mine = any_of(self.sets[p], pair.away_p)
            missing = mine & ~any_of(self.sets[q], pair.away_q)
            lacks = some(missing)
            if lacks and not pair.extra:
                grown |= self._grow(q, missing, _WHY_LINKED, p)
            elif lacks and not self.keep.patient:
                grown |= self._grow(q, missing & self._first(q, pair.extra), _WHY_EMPTY, q, Kind.LEAST)
            if pair.spans:
                wanted = mine & ~self.sets[q]
                if some(wanted):
                    grown |= self._grow(q, wanted, _WHY_LINKED, p)
        return grown

    def _first(self, k: int, names: frozenset[str]) -> Bools:
        """One entry along ``names``: one that others keep, else the largest constant, which may serve as a carrier."""
        rank = self.layout.to_named(k, self.keep.rank(k))
        for p in self.present:
            if names & self.layout.names_of(p):
                rank = rank + (rank.max() + 1) * self._project(p, names & self.layout.names_of(p))
        shape = [max(self.layout.sizes[n], 1) if n in names else 1 for n in self.layout.names]
        over = tuple(a for a, s in enumerate(shape) if s == 1 and rank.shape[a] > 1)
        best = int(np.argmax(np.broadcast_to(rank.max(axis=over, keepdims=True), shape)))
        first = np.zeros(shape, dtype=bool)
        first.flat[best] = True
        return first

    def _join(self) -> bool:
        grown = False
        if len(self.present) < 3:
            return False  # what is joined of one other is linked
        for q in self.present if self._is_new("join", self.present) else ():
            joined = None
            covered: set[str] = set()
            for p in self.present:
                common = self.layout.names_of(p) & self.layout.names_of(q)
                if p != q and common:
                    part = self._project(p, common)
                    joined = part if joined is None else joined & part
                    covered |= common
            if joined is not None and covered >= self.layout.names_of(q) - self.fixed and some(joined & ~self.sets[q]):
                grown |= self._grow(q, joined & ~self.sets[q], _WHY_LINKED, q)
        return grown

    def _regular(self) -> bool:
        grown = False
        for k in self.present:
            if not self._is_new(k, (k,)) or len(varied(self.sets[k])) < 2:
                continue
            allowed = self._may_be_ragged(k)
            if not can_be_cut(self.sets[k], allowed) and not self.keep.patient:
                more = regularize(self.sets[k], allowed) & ~self.sets[k]
                grown |= self._grow(k, more, _WHY_REGULAR, k, Kind.COUNT)
        return grown

    def _may_be_ragged(self, k: int) -> list[int]:
        """Axes along which operand ``k`` may keep other positions per fibre: every operand that has such an axis must
        tell the fibres apart that differ (a grouped weight does, a vector that all groups share does not). Groups of
        one axis keep equal counts, so that it never is the axis of the groups."""
        keep = self.sets[k]
        axes = varied(keep)
        if len(axes) > 2:
            axes = varied(compact_axes(keep)[0])  # an axis may be written out and yet be the same all along
        differ = {pair for pair in itertools.combinations(axes, 2) if _fibres_differ(keep, *pair)}
        names, sharing = self.layout.names, _sharing(self.layout, k)
        allowed = []
        for axis in axes:
            apart = {names[a] for pair in differ if axis in pair for a in pair if a != axis}
            if names[axis] in sharing and all([apart <= known for known in sharing[names[axis]]]):
                allowed.append(axis)
        return allowed


def _sharing(layout: Layout, k: int) -> dict[str, list[frozenset[str]]]:
    """By name of operand ``k``, the names of the other operands that have it; without names of groups of an axis."""

    def find() -> dict[str, list[frozenset[str]]]:
        outer = {n for dim in layout.operands[k] or () for n in dim[:-1]}
        others = [layout.names_of(q) for q in range(len(layout.operands)) if q != k]
        return {name: [own for own in others if name in own] for name in layout.names_of(k) - outer}

    found: dict[str, list[frozenset[str]]] = layout.form.once("sharing", k, find)
    return found


def _fibres_differ(keep: Bools, axis: int, other: int) -> bool:
    """Whether the fibres of a set along an axis are not all the same, or empty, along another one."""
    return not equal(keep, any_of(keep, other) & any_of(keep, axis))
