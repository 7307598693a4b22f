"""Where the entries of a tensor come from, when a call moves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from speedup.arrays import Bools, Floats, alike_shaped, along, compact_axes, every
from speedup.node import Value
from speedup.tracks import Track, track_of

Indices = np.ndarray[Any, np.dtype[np.int64]]


FILLED = -1


@dataclass(frozen=True, eq=False)
class Origin:
    """Where the entries of one output come from; every array broadcasts to the output.

    Attributes:
        source: number of the operand, or -1 for entries that the op fills in.
        by_operand: per axis the index in the operand, for all operands together; or for each by itself, with any index
            of it where the entry is of another one, where that takes smaller arrays.
        fill: the value of filled entries.
        groups, tracks, rigid: what ``groups_of``, ``_track`` and ``Movement.rigid`` have found, for the calls of a
            model that move entries alike.
    """

    source: Indices
    by_operand: Sequence[Sequence[Indices]]
    fill: Floats
    groups: dict[Any, tuple[list[int], Bools]] = field(default_factory=dict)
    tracks: dict[int, list[Track | None]] = field(default_factory=dict)
    rigid: dict[tuple[tuple[bool, ...], ...], list[bool]] = field(default_factory=dict)

    @cached_property
    def coordinates(self) -> Sequence[Indices]:
        """Per axis the index in the operand, whichever it is."""
        first, *others = self.by_operand
        for number, its in enumerate(others, 1):
            here = self.source == number
            first = [compact_axes(np.where(here, b, a))[0] for a, b in zip(first, its, strict=True)]
        return first

    @property
    def is_apart(self) -> bool:
        """Whether the index is known for each operand by itself."""
        return len(self.by_operand) > 1

    def of(self, number: int) -> Sequence[Indices]:
        """Per axis the index in one operand, where the entry is of it."""
        return self.by_operand[number] if self.is_apart else self.by_operand[0]

    def tracks_along(self, axis: int, operands: Sequence[Value | None]) -> list[Track | None]:
        """By operand, which axis of it an axis of the output comes from; None where that is not just one, independent
        of all others."""
        if axis not in self.tracks:
            shapes = [with_index(v.shape) for v in operands if v is not None]
            self.tracks[axis] = [self._track(axis, number, shape) for number, shape in enumerate(shapes)]
        return self.tracks[axis]

    def _track(self, axis: int, number: int, shape: tuple[int, ...]) -> Track | None:
        coordinates = self.of(number)
        found = track_of(self.source, number, axis, coordinates, shape)
        if found is None:
            return None
        _, rest = groups_of([a == axis for a in range(self.source.ndim)], coordinates, shape)
        return found if every(rest) else replace(found, rest=rest)

    @cached_property
    def joined(self) -> int | None:
        """The only axis along which it varies which operand an entry is of; None where there are more, or fillers."""
        size, shape = self.source.size, self.source.shape
        return shape.index(size) if size > 1 and size in shape and self.source.min() >= 0 else None

    @cached_property
    def only(self) -> int | None:
        """The operand that all entries come from; None where there are several, or fillers."""
        return int(self.source.item()) if self.source.size == 1 and self.source.item() != FILLED else None

    @cached_property
    def along(self) -> tuple[frozenset[int], ...]:
        """Per axis of the operands the axes of the output, counted from the last one, along which the index varies."""
        filled = self.source == FILLED
        return tuple([frozenset(_varying(c, filled)) for c in self.coordinates])


def _varying(index: np.ndarray[Any, Any], filled: Bools) -> Iterator[int]:
    """The axes, counted from the last one, along which an index varies; what is filled in has none."""
    long = [a for a, size in enumerate(index.shape) if size > 1]
    if long and filled.any():
        index, filled = np.broadcast_arrays(index, filled)
        least, most = np.where(filled, index.max(), index), np.where(filled, index.min(), index)
        long = [a for a in range(index.ndim) if (least.min(a) < most.max(a)).any()]
    yield from (a - index.ndim for a in long)


def groups_of(
    first: Sequence[bool], coordinates: Sequence[np.ndarray[Any, Any]], shape: tuple[int, ...]
) -> tuple[list[int], Bools]:
    """The axes of an operand whose coordinates depend on what is chosen, and what all others write, whatever is.

    Args:
        first: along which axes of the output the chosen entries vary.
    """
    groups: list[tuple[set[int], list[int], bool]] = [({a for a, varies in enumerate(first) if varies}, [], True)]
    for axis, c in zip(range(len(shape)), coordinates, strict=False):
        varies = {a for a, s in enumerate(c.shape) if s > 1}
        near = [g for g in groups if g[0] & varies]
        joined = varies.union(*(g[0] for g in near)), [*(a for g in near for a in g[1]), axis], any(g[2] for g in near)
        groups = [joined, *(g for g in groups if not g[0] & varies)]
    back = np.ones((1,) * len(shape), dtype=bool)
    for _, axes, depends in groups:
        if axes and not depends:
            part = written(np.True_, axes, coordinates, shape)
            back = back if part.all() else back & part
    return next((axes for _, axes, depends in groups if depends), []), back


def written(
    chosen: Any, axes: Sequence[int], coordinates: Sequence[np.ndarray[Any, Any]], shape: tuple[int, ...]
) -> Bools:
    """True where the chosen entries have these coordinates along ``axes``, of size 1 along all others."""
    sizes = [s if a in axes else 1 for a, s in enumerate(shape)]
    if (lines := _lines_written(np.asarray(chosen), axes, coordinates, sizes)) is not None:
        return lines
    part = np.zeros(sizes, dtype=bool)
    here, *index = alike_shaped(np.asarray(chosen), *[coordinates[a] for a in axes])
    at: list[Any] = [0] * len(shape)
    for axis, i in zip(axes, index, strict=True):
        at[axis] = i[here]
    part[tuple(at)] = True
    return part


def _lines_written(
    chosen: Bools, axes: Sequence[int], coordinates: Sequence[Indices], shape: Sequence[int]
) -> Bools | None:
    """As ``written``, line by line in place of entry by entry, into a tensor of this shape: where each axis comes out
    along one axis of the output, in the same order, no index of it twice. None where that is not so."""
    axes = sorted(axes)
    order, *own = (
        [b - a.ndim for b, n in enumerate(a.shape) if n > 1] for a in (chosen, *(coordinates[a] for a in axes))
    )
    if own != [[b] for b in order]:
        return None
    block = chosen.reshape([chosen.shape[b] for b in order])
    near = [np.flatnonzero(along(block, k)) for k in range(block.ndim)]
    index = [coordinates[a].reshape(-1)[n] for a, n in zip(axes, near, strict=True)]
    if any(len(np.unique(i)) < len(i) for i in index):
        return None
    part = np.zeros([shape[a] for a in axes], dtype=bool)
    part[np.ix_(*index)] = block[np.ix_(*near)]
    return part.reshape(shape)


def with_index(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor with one index where there is none."""
    return tuple([size or 1 for size in shape])
