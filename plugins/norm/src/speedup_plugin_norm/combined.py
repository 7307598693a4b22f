"""Channels that are known combinations of a few others at every position: what is left of these says what they were.

x[c] = sum over k of rows[c, k] · v[k] + offset[c]. So with zero padding, v is 1 inside and 0 beyond the border; with a
class token beside the patches there are two constants; in an MLP-Mixer all that is 0 gets the bias over tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speedup import Bools, Floats, matmul

_MOST = 8  # unknowns, each of which needs a channel that stays
_EXACT = 1e-10  # up to which a combination is one, relative to the largest channel
_WEAK = 1e-3  # directions that the kept channels have less of than this are not theirs to carry: rounding would grow


@dataclass(frozen=True, eq=False)
class Combined:
    """What is known of the channels.

    Attributes:
        known: bool (channels).
        rows: (channels, unknowns), 0 where nothing is known, and for constants.
        offset: (channels), the constant part.
    """

    known: Bools
    rows: Floats
    offset: Floats

    @property
    def moves(self) -> Bools:
        """Which channels are known and no constants."""
        found: Bools = self.known & self.rows.any(axis=1)
        return found

    def lacking(self, kept: Bools, gone: Bools) -> int | None:
        """The channel without which the kept ones do not span those that go, None if they do."""
        if not (gone & self.moves).any():
            return None
        rows = self.rows * (gone & self.known)[:, None]
        basis = _directions(self.rows[kept & self.known], float(np.abs(rows).max()))
        left = np.linalg.norm(rows - rows @ basis.T @ basis, axis=1)
        return int(left.argmax()) if left.max() > _EXACT * np.linalg.norm(rows, axis=1).max() else None

    def by(self, kept: Bools, gone: Bools, first: Bools) -> tuple[Bools, Floats]:
        """The kept channels that say what went, those of ``first`` among them, and the combinations of these, the
        constant last, that it was."""
        carriers = first.copy()
        while (gone & self.moves).any() and (lacks := self.lacking(carriers, kept & self.moves)) is not None:
            carriers[lacks] = True
        rows = self.rows[gone]
        columns, sizes, directions = np.linalg.svd(
            self.rows[carriers] * self.known[carriers, None], full_matrices=False
        )
        strong = sizes > max(_WEAK * np.abs(rows).max(initial=0.0), np.finfo(float).tiny)
        shares = rows @ directions[strong].T / sizes[strong] @ columns[:, strong].T
        rest = self.offset[gone] - shares @ self.offset[carriers]
        return carriers, np.concatenate([shares, rest[:, None]], axis=1)


def combined(lines: Sequence[Floats], known: Bools) -> Combined:
    """Find combinations.

    Args:
        lines: (channels, positions): the factors of each unknown that is given, and last the constant part.
        known: bool (channels), where these say what a channel is.
    """
    at = np.flatnonzero(known)
    *terms, constants = (line[at] for line in lines)
    offset = constants[:, 0]
    whole = np.hstack([*terms, constants - offset[:, None]])  # a constant at all positions is no unknown
    largest = float(np.linalg.norm(whole, axis=1).max(initial=0.0))
    basis = _first_independent(whole, _WEAK * largest)
    # Of as many numbers as there are unknowns anything is a combination: a table of which this size reads a few rows.
    few = whole.shape[1] > len(lines) and len(basis) > constants.shape[1] - 2
    said = ~(few & whole.any(axis=1))
    basis = [] if few else basis[:_MOST]
    rows = np.zeros((len(at), len(basis)))
    if basis:
        rows = matmul(whole, np.linalg.pinv(whole[basis]))
        exact = np.linalg.norm(whole - matmul(rows, whole[basis]), axis=1) <= _EXACT * largest
        rows[np.abs(rows) < _EXACT] = 0.0
        # What says nothing of another channel is none.
        useful = [k for k in range(len(basis)) if (rows[exact & said, k] != 0).sum() > 1]
        lone = np.delete(rows, useful, axis=1).any(axis=1)
        said &= exact & ~lone
        rows = rows[:, useful]
    # Of the channels of the basis the offset is their own: v[k] is what they are without it.
    at = at[said]
    found = Combined(np.zeros_like(known), np.zeros((len(known), rows.shape[1])), np.zeros(len(known)))
    found.known[at], found.rows[at], found.offset[at] = True, rows[said], offset[said]
    return found


def _first_independent(rows: Floats, least: float) -> list[int]:
    """The first rows that are farther than ``least`` from all combinations of those before, one more than ``_MOST`` at
    most: the same ones at other sizes of the input. Gram-Schmidt."""
    found: list[int] = []
    ways, rest, start = np.zeros((0, rows.shape[1])), rows, 0
    while len(found) <= _MOST:
        lengths = np.sqrt(np.einsum("cp,cp->c", rest, rest))
        apart = np.flatnonzero(lengths > least)
        if not len(apart):
            break
        first = apart[0]
        found.append(start + int(first))
        way = rest[first] / lengths[first]
        way -= (ways @ way) @ ways  # what rounding has left of them
        ways = np.vstack([ways, way / np.linalg.norm(way)])
        rest, start = rest[first + 1 :], found[-1] + 1
        rest = rest - matmul(rest, ways[-1:].T) * ways[-1]
    return found


def _directions(rows: Floats, largest: float) -> Floats:
    """Orthonormal rows that span the given ones, without directions that are too weak."""
    if not len(rows):
        return np.zeros((0, rows.shape[1]))
    _, sizes, directions = np.linalg.svd(rows, full_matrices=False)
    return np.asarray(directions[sizes > max(_WEAK * largest, np.finfo(float).tiny)])


@dataclass(frozen=True, eq=False)
class Gone:
    """Numbers that are combinations of others.

    Attributes:
        count: how many there are.
        mean: what their mean is of each of the others, and the constant last.
        away: rows in the same way: the sum of squares of what they make is that of all deviations from the mean.
    """

    count: float
    mean: Floats
    away: Floats

    def joined(self, rows: Floats) -> Gone:
        """With further numbers, given as rows of the same kind."""
        count = self.count + len(rows)
        if not count:
            return self
        mean = (self.count * self.mean + rows.sum(axis=0)) / count
        stacked = np.vstack([self.away, self.count**0.5 * (self.mean - mean)[None], rows - mean])
        away: Floats = np.linalg.qr(stacked, mode="r")  # type: ignore[assignment]
        return Gone(count, mean, away[np.abs(away).max(axis=1) > 0])
