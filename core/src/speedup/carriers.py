"""Carriers: kept entries of an operand that stand for those that go, see ``speedup.fold``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from speedup.cached import cached_property
from speedup.facts import ZERO, Bools, Floats, all_of, any_of, some, varies
from speedup.graph import Node
from speedup.layout import Layout

if TYPE_CHECKING:
    from speedup.fold import Removed
    from speedup.keep import NodeKeep

# A row that takes more than this of what is kept is not spanned: the weights would grow by it, and rounding with them.
_MOST = 1e3
_ROUNDING = 1e-10
_TINY = np.finfo(np.float64).tiny


def has_rows(layout: Layout, gone: Removed) -> bool:
    """Whether what goes is summed along one name of the weight: then its entries are rows, see ``Rows``."""
    return gone.weight is not None and len(layout.contracted & layout.names_of(gone.weight)) == 1


class Rows:
    """The known entries of an operand as rows of numbers, per group of the weight: arrays (groups, entries, unknowns).

    Attributes:
        all: every row, 0 where nothing is known.
        gone, kept: bool (groups, entries): the rows to be represented, and those that can carry them.
        offset: (groups, entries), the constant part where it goes into a bias.
    """

    def __init__(self, node: Node, gone: Removed, keep: NodeKeep, bias: bool) -> None:
        layout = self.layout = node.layout
        assert gone.weight is not None
        k, weight = gone.k, gone.weight
        frame: _Frame = layout.once("rows", (k, weight), lambda: _Frame(layout, k, weight))
        self._frame, self.contracted, self.outer, self.scope = frame, frame.contracted, frame.outer, frame.scope
        self.gone = frame.grid(gone.mask)
        alike = self._alike(gone)
        kept = layout.to_named(k, keep.sets[k])
        unread = keep.facts.unused(k)
        if some(unread):
            # What nobody reads may hold anything; where no output matters that is no harm.
            live = ~layout.to_named(layout.n_inputs, keep.facts.unused(layout.n_inputs))
            kept = kept & ~(layout.to_named(k, unread) & any_of(live, frame.beside))
        self.kept = frame.grid(all_of(kept, self.scope) & alike)
        offset = frame.grid(np.where(alike, gone.offset[frame.first], ZERO))
        columns = [frame.grid(np.where(alike, t[frame.first], ZERO)) for t in gone.terms]
        if not bias:
            columns.append(offset)
        self.offset = offset
        if len(columns) == 1:  # mostly
            self.all = columns[0][..., None]
        else:
            self.all = np.stack(columns, -1) if columns else np.zeros((*self.gone.shape, 0))
        # Unknowns of different size weigh alike.
        largest = np.abs(self.all * self.gone[..., None]).max(axis=(0, 1), keepdims=True)
        self.all = self.all / np.where(largest == 0, 1.0, largest)

    def _alike(self, gone: Removed) -> Bools:
        """Known, and the same all along the axes that the weight does not have."""
        alike = all_of(gone.known, self.scope)
        for array in (gone.offset, *gone.terms):
            if not varies(array, self.scope) and not varies(gone.known, self.scope):
                continue
            array = np.where(gone.known, array, 0.0)
            same = array.max(axis=self.scope, keepdims=True) == array.min(axis=self.scope, keepdims=True)
            alike = alike & same
        return np.asarray(alike)

    def named(self, grid: Bools) -> Bools:
        """The way back."""
        names, sizes = self.layout.names, self.layout.sizes
        here = [*self.outer, self.contracted]
        array = grid.reshape([sizes[n] for n in here])
        array = array.transpose([here.index(n) for n in names if n in here])
        return array.reshape([sizes[n] if n in here else 1 for n in names])

    def spanning(self, kept: Bools) -> tuple[Floats, Floats]:
        """How rows are made of kept ones: row · first · second^T gives how much of each, per group.

        The factors of a singular value decomposition, without directions in which there is nothing but rounding. The
        inverse of the Gram matrix would be the same, and as far off as the square of what the rows are alike.
        """
        rows, largest = self.all_of(kept), self._largest
        if rows.shape[-1] == 1:  # mostly: one number
            sizes, ways = np.sqrt(np.square(rows).sum(1)), np.ones((len(rows), 1, 1))
            left = rows / np.where(sizes == 0, 1.0, sizes)[:, None]
        else:
            left, sizes, ways = np.linalg.svd(rows, full_matrices=False)
        least = np.maximum(_ROUNDING * largest, 1e-3 * _ROUNDING * sizes.max(axis=1, initial=0.0, keepdims=True))
        strong = sizes > np.maximum(least, _TINY)
        return np.swapaxes(ways, 1, 2) * np.where(strong, 1 / np.where(strong, sizes, 1), 0)[:, None], left

    @cached_property
    def _largest(self) -> Floats:
        """Per group the length of the longest row that goes."""
        lengths: Floats = np.sqrt((np.square(self.all).sum(-1) * self.gone).max(axis=1, keepdims=True))
        return lengths

    def lacking(self) -> Bools:
        """The fewest further rows that must be kept so that the kept ones span those that go."""
        if self.all.shape[-1] == 1:  # mostly: one number
            return self._lacking_one(self.all[..., 0])
        chosen, least = np.zeros_like(self.gone), _ROUNDING * self._largest
        for _ in range(self.all.shape[-1]):
            kept = self.kept | chosen
            first, second = self.spanning(kept)
            shares = self.all @ first
            goes = self.gone & ~chosen
            spanned = shares @ (np.swapaxes(second, 1, 2) @ self.all_of(kept))
            rest = (self.all - spanned) * goes[..., None]
            more = _independent(rest, least)
            share = np.abs(shares).max(axis=-1, initial=0.0) * goes
            if some(share > _MOST):  # those that are spanned, but by large multiples, come last
                more |= _first_largest(np.where(more.any(axis=1, keepdims=True) | (share <= _MOST), 0.0, share))
            if not some(more):
                break
            chosen = chosen | more
        return chosen

    def _lacking_one(self, numbers: Floats) -> Bools:
        """The same where there is one unknown: a kept number spans all that are no large multiples of it.

        Args:
            numbers: the rows, (groups, entries).
        """
        size = np.sqrt((np.square(numbers) * self.kept).sum(axis=1, keepdims=True))
        least = np.maximum(_ROUNDING * self._largest, _TINY)
        lengths = np.abs(numbers) * self.gone
        return _first_largest(np.where(lengths > np.where(size > least, _MOST * size, least), lengths, 0.0))

    def all_of(self, kept: Bools) -> Floats:
        """The kept rows of each group, and 0 for those that another group keeps."""
        return np.where(kept[..., None], self.all, 0.0)[:, kept.any(axis=0)]


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


def _independent(rest: Floats, least: Floats) -> Bools:
    """Rows of which all others are combinations, those that are farthest from the ones before first.

    Gram-Schmidt with pivots.

    Args:
        rest: (groups, entries, unknowns).
        least: (groups, 1), the length that is more than rounding.
    """
    found, groups = np.zeros(rest.shape[:2], dtype=bool), np.arange(len(rest))
    for _ in range(rest.shape[-1]):
        lengths = np.sqrt(np.square(rest).sum(-1))
        lengths = np.where((lengths > least) & ~found, lengths, ZERO)
        longest = lengths.argmax(axis=1)
        size = lengths[groups, longest]
        apart = size > 0
        if not some(apart):
            break
        found[groups, longest] |= apart
        way = rest[groups, longest] * np.where(apart, 1 / np.where(apart, size, 1), ZERO)[:, None]
        rest = rest - (rest @ way[:, :, None]) * way[:, None, :]
    return found


def _first_largest(array: Floats) -> Bools:
    """The first of the largest entries in every row that is not 0."""
    best = (array > 0) & (array == array.max(axis=1, keepdims=True))
    first: Bools = best & (np.cumsum(best, axis=1) == 1)
    return first
