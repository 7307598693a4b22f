"""How the operands of a call are tied, whatever is kept of them: the same for all calls of a layout with alike flags.

See ``speedup.tie`` for what is made of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from speedup.arrays import Bools, equal, some
from speedup.layout import Layout

Flags = Sequence[Sequence[bool]]


def rigid_names(layout: Layout, rigid: Sequence[Sequence[bool] | None]) -> frozenset[str]:
    """Names that can never lose an index: mixed ones, and those along a rigid axis of any operand."""
    fixed = set(layout.mixed)
    for k, dims in enumerate(layout.operands):
        flags = rigid[k] if k < len(rigid) else None
        if dims is None or flags is None:
            continue
        for dim, is_rigid in zip(dims, flags, strict=True):
            if is_rigid:
                fixed.update(dim)
    known = {n for k in range(layout.n_inputs) for n in layout.names_of(k)}
    return frozenset(fixed | (set(layout.names) - known))


def rigid_flags(layout: Layout, rigid: tuple[tuple[bool, ...], ...]) -> tuple[tuple[bool, ...], ...]:
    """Per output and axis, whether it can never lose an index, given the same for the operands."""
    found: tuple[tuple[bool, ...], ...] = layout.form.once("rigid", rigid, lambda: _rigid_flags(layout, rigid))
    return found


def _rigid_flags(layout: Layout, rigid: Flags) -> tuple[tuple[bool, ...], ...]:
    fixed = rigid_names(layout, rigid)
    outputs = layout.operands[layout.n_inputs :]
    return tuple([tuple([fixed.issuperset(dim) for dim in dims or ()]) for dims in outputs])


def pattern_of(layout: Layout, rigid: Flags, derived: Collection[int]) -> Pattern:
    """The pattern of a call, given the derived operands and by operand and axis whether it can never lose an index."""
    found: Pattern = layout.form.once("ties", (rigid, frozenset(derived)), lambda: Pattern(layout, rigid, derived))
    return found


@dataclass(frozen=True, eq=False)
class Pair:
    """Two operands that share names: how to bring the set of each to these names, and what else they vary along.

    Attributes:
        apart: they share only names that lose no index, or have but one.
    """

    p: int
    q: int
    away_p: tuple[int, ...]
    away_q: tuple[int, ...]
    extra: frozenset[str]
    spans: bool
    apart: bool


class Pattern:
    """The ties of one layout.

    Attributes:
        fixed, fixed_axes: the names that can never lose an index.
        still: these, and the names of size 1, which go with the whole operand.
        present: the operands that are tied.
        apart: no two of them share a name that loses indices, and there are not enough of them to be joined.
        alike: they vary along the same names, apart from what loses no index.
        one: they have the same names, apart from what is fixed, so that all keep what one of them keeps.
        is_plain: whether the sets, as they are, tell as much as in named space: no axis that may lose indices is made
            of several names, or is fixed by another operand, and those of operands that are alike lie alike.
    """

    def __init__(self, layout: Layout, rigid: Flags, derived: Collection[int]) -> None:
        self.fixed = rigid_names(layout, rigid)
        self.fixed_axes = layout.axes(self.fixed)
        self.still = self.fixed | {n for n, size in layout.sizes.items() if size == 1}
        self.present = [k for k in range(len(layout.operands)) if layout.present(k) and k not in derived]
        self.pairs = self._pairs(layout)
        self.apart = len(self.present) < 3 and all(pair.apart for pair in self.pairs)
        free = [layout.names_of(k) - self.still for k in self.present]
        self.alike = all(names == free[0] for names in free)
        own = [layout.names_of(k) - self.fixed for k in self.present]
        self.one = all(own) and all(names == own[0] for names in own)
        self.is_plain = bool(self.present) and self._is_plain(layout, rigid)

    def _pairs(self, layout: Layout) -> list[Pair]:
        found = []
        for p in self.present:
            for q in self.present:
                one, other = layout.names_of(p), layout.names_of(q)
                common = one & other
                if p != q and common:
                    aways = layout.axes(one - common), layout.axes(other - common)
                    own = other - self.fixed
                    spans = own <= one - self.fixed
                    found.append(Pair(p, q, *aways, own - common, spans, common <= self.still))
        return found

    def _is_plain(self, layout: Layout, rigid: Flags) -> bool:
        lying = []
        for k in self.present:
            axes = []
            for dim, is_rigid in zip(layout.operands[k] or (), rigid[k], strict=True):
                moving = () if is_rigid else tuple([n for n in dim if n not in self.still])
                if len(moving) > 1 or (not is_rigid and not self.fixed.isdisjoint(dim)):
                    return False
                axes.append(moving)
            lying.append(axes)
        return self.apart or all(axes == lying[0] for axes in lying)

    def hold(self, sets: Sequence[Bools]) -> bool:
        """Whether all ties hold, as far as one look at each set tells.

        Args:
            sets: of what is present, in named space; of a plain pattern also as they are.
        """
        for keep in sets:
            if keep.size > 1 and keep.size > max(keep.shape):  # written out along several axes: may be ragged
                return False
            if self.apart:
                if not some(keep):
                    return False
            elif keep is not sets[0] and not equal(keep, sets[0]):
                return False
        return self.apart or self.alike


def along_one(sets: Sequence[Bools]) -> bool:
    """Whether sets vary along one axis at most, all of them along the same."""
    shape = None
    for keep in sets:
        if keep.size > 1 and keep.shape != shape:
            if shape is not None or keep.size > max(keep.shape):
                return False
            shape = keep.shape
    return True
