"""Carriers: rows of numbers that are kept and stand for those that go, see ``speedup.fold``. Linear algebra alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from speedup.arrays import ZERO, Bools, Floats, Indices, some
from speedup.cached import cached_property
from speedup.products import matmul

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


class Carriers:
    """Which kept rows of numbers stand for those that go, in each group.

    Attributes:
        rows: every row, 0 where nothing is known: (groups, unknowns, entries), since NumPy adds up along an axis in
            front of others many times as fast as along a short last one.
        offset: (groups, entries), what of each goes into a bias.
        gone, kept: bool (groups, entries): the rows to be represented, and those that can carry them.
        going_at: the entries that go in any group.
        going: their rows, 0 in groups where they stay.
    """

    def __init__(self, rows: Floats, offset: Floats, gone: Bools, kept: Bools) -> None:
        self.rows, self.offset, self.gone, self.kept = rows, offset, gone, kept
        self.going_at = of_any(gone)
        self.going = np.where(gone[:, None, self.going_at], rows[:, :, self.going_at], ZERO)

    @staticmethod
    def weighed(rows: Floats, offset: Floats, gone: Bools, kept: Bools) -> Carriers:
        """Those of rows whose unknowns are of different size, and weigh alike."""
        made = Carriers(rows, offset, gone, kept)
        largest = np.abs(made.going).max(axis=(0, 2), keepdims=True, initial=0.0)
        largest = np.where(largest == 0, 1.0, largest)
        made.rows, made.going = made.rows / largest, made.going / largest
        return made

    def narrowed(self, gone: Bools, kept: Bools) -> Carriers | None:
        """The same carriers for some of what went, with what had to be kept for that; None where they may not serve.

        Args:
            gone, kept: bool (groups, entries).
        """
        if some(gone & ~self.gone) or some((self.kept | self.lacking) & ~kept):
            return None
        made = Carriers(self.rows, self.offset, gone, kept)
        # What is rounding beside what went may be more beside what still goes, where that is much smaller.
        if any([some(now < _ALIKE * then) for now, then in zip(_largest(made.going), self._found_for, strict=True)]):
            return None
        made._found_for, made.lacking = self._found_for, np.zeros_like(gone)
        if self.rows.shape[1] > 1:
            goes = gone[:, self.going_at]
            shares = np.where(goes[:, None], self.span.shares, ZERO)[:, :, goes.any(axis=0)]
            made.span = Span(self.span.at, self.span.left, shares, self.span.offset)
        return made

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
        lengths = np.where(kept, np.square(self.rows).sum(1), ZERO)
        most = _FEW * self.rows.shape[1]
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
        at = of_any(kept)
        rows = np.where(kept[:, None, at], self.rows[:, :, at], ZERO)
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
        return Span(at, left, shares, self.offset[:, at]), rest, share

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
        if self.rows.shape[1] == 1:  # mostly: one number
            return self._lacking_one(self.rows[:, 0])
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


def of_any(groups: Bools) -> Indices:
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
    at = of_any(squares > enough)  # lengths only fall
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
