"""What is known of an operand of a contraction, as rows of numbers: those that go are made of those that are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from speedup.arrays import ZERO, Bools, Floats, Indices, all_of, any_of, count, some, varies
from speedup.carriers import Carriers, of_any
from speedup.layout import Layout
from speedup.node import Node

if TYPE_CHECKING:
    from speedup.node_keep import NodeKeep
    from speedup.removed import Removed


def has_rows(layout: Layout, gone: Removed) -> bool:
    """Whether what goes is summed along one name of the weight: then its entries are rows, see ``Rows``."""
    return gone.weight is not None and len(layout.contracted & layout.names_of(gone.weight)) == 1


class Rows:
    """The known entries of an operand that go or are kept, as rows of numbers, per group of the weight.

    Attributes:
        contracted, outer: the names of the weight that is summed along, and of its groups.
        groups, width: how many groups there are, and entries in each.
        at: which entries these are, in any group; those of ``before``, where its carriers serve.
        carriers: which of the kept ones stand for those that go.
    """

    def __init__(self, node: Node, gone: Removed, keep: NodeKeep, bias: bool, before: Rows | None = None) -> None:
        """Find the rows.

        Args:
            bias: whether the constant part goes into a bias.
            before: what was found for this call with other sets, mostly when less was kept.
        """
        layout = self._layout = node.layout
        assert gone.weight is not None
        k, weight = gone.k, gone.weight
        frame: _Frame = layout.once("rows", (k, weight), lambda: _Frame(layout, k, weight))
        self.contracted, self.outer = frame.contracted, frame.outer
        self.at: Indices
        self.carriers: Carriers
        goes = frame.grid(gone.mask)
        self.groups, self.width = goes.shape
        alike = _alike(gone, frame.scope)
        kept = layout.to_named(k, keep.sets[k])
        unread = keep.facts.unused(k)
        if some(unread):
            # What nobody reads may hold anything; where no output matters that is no harm.
            live = ~layout.to_named(layout.n_inputs, keep.facts.unused(layout.n_inputs))
            kept = kept & ~(layout.to_named(k, unread) & any_of(live, frame.beside))
        carry = frame.grid(all_of(kept, frame.scope) & alike)
        if before is not None:
            at: Indices = before.at
            known = before.carriers.narrowed(goes[:, at], carry[:, at]) if count(goes) == count(goes[:, at]) else None
            if known is not None:
                self.at, self.carriers = at, known
                return
        at = of_any(goes | carry)
        where = frame.grid(alike)[:, at]
        offset = np.where(where, frame.grid(gone.offset[frame.first])[:, at], ZERO)
        unknowns = len(gone.terms)
        numbers = np.empty((self.groups, unknowns if bias else unknowns + 1, len(at)))
        if unknowns:
            terms = frame.grids(gone.terms[(slice(None), *frame.first)])[:, :, at]
            numbers[:, :unknowns] = np.where(where[:, None], terms.swapaxes(0, 1), ZERO)
        if not bias:
            numbers[:, unknowns] = offset
        self.at, self.carriers = at, Carriers.weighed(numbers, offset, goes[:, at], carry[:, at])

    @property
    def sources(self) -> Indices:
        """The entries that go in any group."""
        return self.at[self.carriers.going_at]

    @property
    def targets(self) -> Indices:
        """The entries that carry in any group."""
        return self.at[self.carriers.span.at]

    @property
    def lacking(self) -> Bools:
        """The further entries that must be kept, in named space."""
        grid = np.zeros((self.groups, self.width), dtype=bool)
        grid[:, self.at] = self.carriers.lacking
        names, sizes = self._layout.names, self._layout.sizes
        here = [*self.outer, self.contracted]
        array = grid.reshape([sizes[n] for n in here])
        array = array.transpose([here.index(n) for n in names if n in here])
        return array.reshape([sizes[n] if n in here else 1 for n in names])


def _alike(gone: Removed, scope: tuple[int, ...]) -> Bools:
    """Known, and the same all along the axes that the weight does not have."""
    alike = all_of(gone.known, scope)
    for arrays in (gone.offset[None], gone.terms):
        over = tuple([axis + 1 for axis in scope])
        if len(arrays) and (varies(arrays, over) or varies(gone.known, scope)):
            arrays = np.where(gone.known, arrays, ZERO)
            same = arrays.max(axis=over, keepdims=True) == arrays.min(axis=over, keepdims=True)
            alike = alike & same.all(axis=0)
    return np.asarray(alike)


class _Frame:
    """Where rows stand in named space.

    Attributes:
        contracted: its name.
        outer: the names of the groups.
        scope, beside: the axes that the weight does not have, and the others.
        first: what is taken of an array that is the same all along ``scope``.
    """

    def __init__(self, layout: Layout, k: int, weight: int) -> None:
        (self.contracted,) = layout.contracted & layout.names_of(weight)
        common = layout.names_of(k) & layout.names_of(weight) - {self.contracted}
        self.outer = [n for n in layout.names if n in common]
        self.scope = layout.axes(layout.names_of(k) - layout.names_of(weight))
        axes = range(len(layout.names))
        self.beside = tuple([p for p in axes if p not in self.scope])
        self.first = tuple([slice(0, 1) if p in self.scope else slice(None) for p in axes])
        here = [*self.outer, self.contracted]
        order = [layout.names.index(n) for n in here]
        # What is written out along the names of the rows, and how to transpose it to groups and entries.
        self._wide = tuple([layout.sizes[n] if n in here else 1 for n in layout.names])
        self._order = None if order == sorted(order) else [*order, *(p for p in axes if p not in order)]
        self._width = layout.sizes[self.contracted]

    def grid(self, array: Floats | Bools) -> Floats:
        """A named array as (groups, entries)."""
        if array.shape != self._wide:
            narrow, array = array, np.empty(self._wide, array.dtype)
            array[...] = narrow
        return (array if self._order is None else array.transpose(self._order)).reshape(-1, self._width)

    def grids(self, arrays: Floats) -> Floats:
        """As ``grid``, of several arrays that are stacked along a first axis: (arrays, groups, entries)."""
        wide = len(arrays), *self._wide
        if arrays.shape != wide:
            arrays = np.broadcast_to(arrays, wide)
        if self._order is not None:
            arrays = arrays.transpose(0, *(axis + 1 for axis in self._order))
        return arrays.reshape(len(arrays), -1, self._width)
