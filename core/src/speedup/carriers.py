"""Carriers: kept entries of an operand that stand for those that go, see ``speedup.fold``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speedup.cached import cached_property
from speedup.facts import ZERO, Bools, Floats, Indices, all_of, any_of, count, some, varies
from speedup.graph import Node
from speedup.layout import Layout
from speedup.products import matmul

if TYPE_CHECKING:
    from speedup.fold import Removed
    from speedup.keep import NodeKeep

# A row that takes more than this of what is kept is not spanned: the weights would grow by it, and rounding with them.
_MOST = 1e3
_ROUNDING = 1e-10
# The square of a length is of about the size of another one if it is more than this of it.
_ALIKE = 1e-2
# So many times as many rows as there are unknowns mostly span them as well as all would; fewer would have to take more
# of what goes each, and weights that stand out are hard to quantize. Where the longest are nearly alike they do not: a
# row that takes more than this of them may take less of all.
_FEW = 16
_MUCH = 10.0
_TINY = np.finfo(np.float64).tiny


def has_rows(layout: Layout, gone: Removed) -> bool:
    """Whether what goes is summed along one name of the weight: then its entries are rows, see ``Rows``."""
    return gone.weight is not None and len(layout.contracted & layout.names_of(gone.weight)) == 1


class Rows:
    """The known entries of an operand that go or are kept, as rows of numbers, per group of the weight.

    Attributes:
        groups, width: how many groups there are, and entries in each.
        at: which entries these are, in any group; those of ``before``, where its carriers serve.
        going_at: which of them go in any group.
        going: their rows, 0 in groups where they stay.
        all: every row, 0 where nothing is known: (groups, unknowns, entries), since NumPy adds up along an axis in
            front of others many times as fast as along a short last one.
        gone, kept: bool (groups, entries): the rows to be represented, and those that can carry them.
        offset: (groups, entries), the constant part where it goes into a bias.
    """

    def __init__(self, node: Node, gone: Removed, keep: NodeKeep, bias: bool, before: Rows | None = None) -> None:
        """Find the rows.

        Args:
            bias: whether the constant part goes into a bias.
            before: what was found for this call with other sets, mostly when less was kept.
        """
        layout = self.layout = node.layout
        assert gone.weight is not None
        k, weight = gone.k, gone.weight
        frame: _Frame = layout.once("rows", (k, weight), lambda: _Frame(layout, k, weight))
        self._frame, self.contracted, self.outer, self.scope = frame, frame.contracted, frame.outer, frame.scope
        whole = frame.grid(gone.mask)
        self.groups, self.width = whole.shape
        alike = self._alike(gone)
        kept = layout.to_named(k, keep.sets[k])
        unread = keep.facts.unused(k)
        if some(unread):
            # What nobody reads may hold anything; where no output matters that is no harm.
            live = ~layout.to_named(layout.n_inputs, keep.facts.unused(layout.n_inputs))
            kept = kept & ~(layout.to_named(k, unread) & any_of(live, frame.beside))
        carry = frame.grid(all_of(kept, self.scope) & alike)
        if before is not None and self._narrow(before, whole, carry):
            return
        at = self.at = _of_any(whole | carry)
        self.gone, self.kept, where = whole[:, at], carry[:, at], frame.grid(alike)[:, at]
        self.offset = np.where(where, frame.grid(gone.offset[frame.first])[:, at], ZERO)
        unknowns = len(gone.terms)
        numbers = np.empty((self.groups, unknowns if bias else unknowns + 1, len(at)))
        if unknowns:
            terms = frame.grids(gone.terms[(slice(None), *frame.first)])[:, :, at]
            numbers[:, :unknowns] = np.where(where[:, None], terms.swapaxes(0, 1), ZERO)
        if not bias:
            numbers[:, unknowns] = self.offset
        # Unknowns of different size weigh alike.
        self.going_at = _of_any(self.gone)
        going = np.where(self.gone[:, None, self.going_at], numbers[:, :, self.going_at], ZERO)
        largest = np.abs(going).max(axis=(0, 2), keepdims=True, initial=0.0)
        largest = np.where(largest == 0, 1.0, largest)
        self.all, self.going = numbers / largest, going / largest

    def _narrow(self, before: Rows, gone: Bools, kept: Bools) -> bool:
        """Take what was found before, where what goes is some of what went, and what had to be kept for that is kept.

        Args:
            gone, kept: bool (groups, entries), of all entries.
        """
        at = self.at = before.at
        self.gone, self.kept = gone[:, at], kept[:, at]
        fewer = count(gone) == count(self.gone) and not some(self.gone & ~before.gone)
        if not fewer or some((before.kept | before.lacking) & ~self.kept):
            return False
        goes = self.gone[:, before.going_at]
        going = np.where(goes[:, None], before.going, ZERO)
        # What is rounding beside what went may be more beside what still goes, where that is much smaller.
        if any([some(now < _ALIKE * then) for now, then in zip(_largest(going), before._found_for, strict=True)]):
            return False
        self._found_for = before._found_for
        still = goes.any(axis=0)
        self.all, self.offset = before.all, before.offset
        self.going_at, self.going = before.going_at[still], going[:, :, still]
        self.lacking = np.zeros_like(self.gone)
        if before.all.shape[1] > 1:
            span = before.span
            shares = np.where(goes[:, None], span.shares, ZERO)[:, :, still]
            self.span = Span(span.at, span.left, shares, span.offset)
        return True

    def _alike(self, gone: Removed) -> Bools:
        """Known, and the same all along the axes that the weight does not have."""
        alike = all_of(gone.known, self.scope)
        for arrays in (gone.offset[None], gone.terms):
            over = tuple([axis + 1 for axis in self.scope])
            if len(arrays) and (varies(arrays, over) or varies(gone.known, self.scope)):
                arrays = np.where(gone.known, arrays, ZERO)
                same = arrays.max(axis=over, keepdims=True) == arrays.min(axis=over, keepdims=True)
                alike = alike & same.all(axis=0)
        return np.asarray(alike)

    @property
    def sources(self) -> Indices:
        """The entries that go in any group."""
        return self.at[self.going_at]

    @property
    def lacking_named(self) -> Bools:
        """As ``lacking``, in named space."""
        grid = np.zeros((self.groups, self.width), dtype=bool)
        grid[:, self.at] = self.lacking
        names, sizes = self.layout.names, self.layout.sizes
        here = [*self.outer, self.contracted]
        array = grid.reshape([sizes[n] for n in here])
        array = array.transpose([here.index(n) for n in names if n in here])
        return array.reshape([sizes[n] if n in here else 1 for n in names])

    @cached_property
    def span(self) -> Span:
        """How the rows that go are made of those that are kept."""
        return self._span(self.kept, self.gone[:, self.going_at])[0]

    def _span(self, kept: Bools, goes: Bools) -> tuple[Span, Floats, Floats]:
        """How rows are made of kept ones: of the longest of these, where they suffice and take little.

        Args:
            goes: those of ``going_at`` that are asked for, (groups, entries that go).

        Returns:
            also what is not made of kept rows, (groups, unknowns, entries that go), and the most that an entry takes
            of any direction, (groups, entries that go).
        """
        lengths = np.where(kept, np.square(self.all).sum(1), ZERO)
        most = _FEW * self.all.shape[1]
        if 0 < most < lengths.shape[1] and some(kept):
            few = kept & (lengths >= np.partition(lengths, -most, axis=1)[:, -most, None]) & (lengths > 0)
            span, rest, share = self._made_of(few, goes)
            if not some(np.square(rest).sum(1) > np.square(self._least)) and not some(share > _MUCH):
                return span, rest, share
        return self._made_of(kept, goes)

    def _made_of(self, kept: Bools, goes: Bools) -> tuple[Span, Floats, Floats]:
        """How rows are made of all of these.

        By a singular value decomposition, without directions in which there is nothing but rounding. The inverse of
        the Gram matrix would be the same, and as far off as the square of what the rows are alike.
        """
        at = _of_any(kept)
        rows = np.where(kept[:, None, at], self.all[:, :, at], ZERO)
        if rows.shape[1] == 1:  # mostly: one number
            sizes, ways = np.sqrt(np.square(rows).sum(2)), np.ones((len(rows), 1, 1))
            left = np.swapaxes(rows, 1, 2) / np.where(sizes == 0, 1.0, sizes)[:, None]
        else:  # LAPACK takes half the time for what is longer than wide
            left, sizes, ways = np.linalg.svd(np.swapaxes(rows, 1, 2), full_matrices=False)
        longest = sizes.max(axis=1, initial=0.0, keepdims=True)
        strong = sizes > np.maximum(np.maximum(self._least, 1e-3 * _ROUNDING * longest), _TINY)
        ways = ways * np.where(strong, 1 / np.where(strong, sizes, 1), 0)[:, :, None]
        left = np.where(kept[:, at, None], left, ZERO)  # of rows of zeros there may be anything
        shares = matmul(ways, self.going)
        rest = np.where(goes[:, None], self.going - matmul(matmul(rows, left), shares), ZERO)
        share = np.where(goes, np.abs(shares).max(axis=1, initial=0.0), ZERO)
        return Span(self.at[at], left, shares, self.offset[:, at]), rest, share

    @cached_property
    def _least(self) -> Floats:
        """Per group the length of a row that is more than rounding."""
        longest: Floats = np.sqrt(np.square(self.going).sum(1).max(axis=1, keepdims=True, initial=0.0))
        return _ROUNDING * longest

    @cached_property
    def _found_for(self) -> tuple[Floats, Floats]:
        """The largest of what went when carriers were found for it."""
        return _largest(self.going)

    @cached_property
    def lacking(self) -> Bools:
        """The fewest further rows that must be kept so that the kept ones span those that go.

        With several unknowns ``span`` is found on the way, of the rows that are kept then.
        """
        if self.all.shape[1] == 1:  # mostly: one number
            return self._lacking_one(self.all[:, 0])
        chosen, at = np.zeros_like(self.gone), self.going_at
        self.span, rest, share = self._span(self.kept, self.gone[:, at])
        while True:  # each round keeps one more at least
            more = _independent(rest, self._least)
            if some(share > _MOST):  # those that are spanned, but by large multiples, come last
                spanned = more.any(axis=1, keepdims=True) | (share <= _MOST)
                more |= _first_largest(np.where(spanned, 0.0, share))
            if not some(more):
                break
            chosen[:, at] |= more
            self.span, rest, share = self._span(self.kept | chosen, (self.gone & ~chosen)[:, at])
        return chosen

    def _lacking_one(self, numbers: Floats) -> Bools:
        """The same where there is one unknown: a kept number spans all that are no large multiples of it.

        Args:
            numbers: the rows, (groups, entries).
        """
        size = np.sqrt((np.square(numbers) * self.kept).sum(axis=1, keepdims=True))
        least = np.maximum(self._least, _TINY)
        lengths = np.abs(numbers) * self.gone
        return _first_largest(np.where(lengths > np.where(size > least, _MOST * size, least), lengths, 0.0))


@dataclass(frozen=True, eq=False)
class Span:
    """How rows that go are made of kept ones: row i = sum over k and r of shares[r, i] · left[k, r] · row at[k].

    Attributes:
        at: the entries that carry, in any group.
        left: (groups, entries that carry, directions), 0 for those that another group keeps.
        shares: (groups, directions, entries that go).
        offset: (groups, entries that carry), what of them goes into a bias.
    """

    at: Indices
    left: Floats
    shares: Floats
    offset: Floats


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


def _of_any(groups: Bools) -> Indices:
    """The entries that any group has; of bool (groups, entries)."""
    return np.flatnonzero(np.logical_or.reduce(groups, axis=0))


def _largest(rows: Floats) -> tuple[Floats, Floats]:
    """The largest square of each unknown, and of each group; of (groups, unknowns, entries)."""
    squares = np.square(rows)
    return squares.max(axis=(0, 2), initial=0.0), squares.max(axis=(1, 2), initial=0.0)


def _independent(rest: Floats, least: Floats) -> Bools:
    """Rows of which all others are combinations, those that are farthest from the ones before first.

    Gram-Schmidt with pivots.

    Args:
        rest: (groups, unknowns, entries).
        least: (groups, 1), the length that is more than rounding.
    """
    found, groups = np.zeros((len(rest), rest.shape[2]), dtype=bool), np.arange(len(rest))
    squares, enough = np.square(rest).sum(1), np.square(least)
    at = _of_any(squares > enough)  # lengths only fall
    rest, squares, enough = rest[:, :, at], squares[:, at], np.maximum(enough[:, 0], _TINY)
    for _ in range(rest.shape[1] if len(at) else 0):
        longest = squares.argmax(axis=1)
        size = squares[groups, longest]
        apart = size > enough  # of a row that was chosen nothing but rounding is left
        if not some(apart):
            break
        found[groups, at[longest]] |= apart
        way = rest[groups, :, longest] * np.where(apart, 1 / np.sqrt(np.where(apart, size, 1)), ZERO)[:, None]
        rest = rest - way[:, :, None] * matmul(way[:, None], rest)
        squares = np.square(rest).sum(1)
    return found


def _first_largest(array: Floats) -> Bools:
    """The first of the largest entries in every row that is not 0."""
    best = (array > 0) & (array == array.max(axis=1, keepdims=True))
    first: Bools = best & (np.cumsum(best, axis=1) == 1)
    return first
