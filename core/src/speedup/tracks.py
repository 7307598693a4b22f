"""Moving what varies along one axis only, as most facts and sets do: a line of an output comes from lines of operands.

Where each index of that axis comes from is found once per kind of call, see ``speedup.coordinates``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speedup.arrays import Bools, every, everything

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Track:
    """From which indices of one axis of an operand those of one axis of an output come.

    Attributes:
        axis: of the operand.
        at: the indices of the output that come from it.
        index: for each of these, where it comes from; None where they are all there are, in their order.
        size: of the operand's axis.
        shape: of a set of the operand that varies along this axis.
        rest: what is written along the other axes, whatever is chosen along this one; None where it is everything.
    """

    axis: int
    at: slice | Indices
    index: Indices | None
    size: int
    shape: tuple[int, ...]
    rest: Bools | None

    def back(self, line: Bools) -> Bools:
        """Which entries of the operand some chosen ones come from, given along the output's axis."""
        part = line[self.at]
        if self.index is not None:
            chosen, part = part, np.zeros(self.size, dtype=bool)
            part[self.index[chosen]] = True
        whole = every(part)
        if self.rest is None:
            return everything(len(self.shape)) if whole else part.reshape(self.shape)
        return self.rest if whole else self.rest & part.reshape(self.shape)


def track_of(
    source: Indices, number: int, axis: int, coordinates: Sequence[Indices], shape: tuple[int, ...]
) -> Track | None:
    """The track from an axis of an output to an operand of this shape; None where it is not that of one of its axes.

    Args:
        source: of the entries of the output, which operand they are of.
        coordinates: where they are in it, where they are of it.
    """
    size = source.shape[axis]
    if source.size != size:
        return None  # it depends on another axis of the output, which operand an entry is of
    near = [a for a, c in enumerate(coordinates) if c.shape[axis] > 1]
    if len(near) != 1 or near[0] >= len(shape) or coordinates[near[0]].size != coordinates[near[0]].shape[axis]:
        return None
    own, index = near[0], coordinates[near[0]].reshape(-1)
    at: slice | Indices = slice(None)
    if size > 1:
        at = np.flatnonzero(source == number)
        if not len(at):
            return None
        index = index[at]
        if at[-1] - at[0] == len(at) - 1:
            at = slice(int(at[0]), int(at[-1]) + 1)
    elif source.item() != number:
        return None
    full = shape[own]
    in_order = len(index) == full and bool((index == np.arange(full)).all())
    wide = tuple([full if a == own else 1 for a in range(len(shape))])
    return Track(own, at, None if in_order else index, full, wide, None)
