"""Blocks: channels of which equally many go from each, because what is left of a tensor with several axes is dense."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from speedup.groups.labels import STAYS, Grid, Labels, Numbers

_MOST = 100


class Blocks:
    """The blocks of all channels.

    Attributes:
        classes: the channel of each number.
        block: per class the number of its block, -1 where it has none.
        channels: per block its classes.
    """

    def __init__(self, labels: Labels, classes: Numbers, given: Sequence[Sequence[Numbers]] = ()) -> None:
        """
        Args:
            given: classes of blocks that are known and go evenly; grids of these have nothing more to say.
        """
        self.labels = labels
        self.classes = classes
        self._given = given
        self._clear()

    def settle(self) -> None:
        """Find blocks in which all grids agree; where they do not, the lines of one of them are the same channels."""
        known = np.zeros(len(self.classes), dtype=bool)
        for blocks in self._given:
            known[np.concatenate(blocks)] = True
        grids = _sorted(g for g in self.labels.grids if not known[self.classes[g.numbers]].any())
        for _ in range(_MOST):
            self._clear()
            for blocks in self._given:
                self._unite(self._number(members) for members in blocks)
            if all([self._place(grid) for grid in grids]):
                return
            self.classes = self.labels.classes()

    def fits(self, grids: Sequence[Grid]) -> bool:
        """Make blocks in which these grids agree, of channels that can all go; whether there are such blocks."""
        return all(self._lies(grid) for grid in _sorted(grids))

    def family(self, block: int) -> int:
        """A number that blocks share which go evenly."""
        while self._families[block] != block:
            block = self._families[block]
        return block

    def heads(self) -> dict[int, int]:
        """By block a number that blocks share which can go whole together; without those that cannot."""
        parent: dict[int, int] = {}

        def find(key: int) -> int:
            while parent.setdefault(key, key) != key:
                key = parent[key]
            return key

        stay: set[int] = set()
        for line, contained in self.labels.shares:
            keys, members = (self.classes[a].ravel() for a in np.broadcast_arrays(line, contained))
            blocks = self.block[members]
            for key, block in sorted(set(zip(keys.tolist(), blocks.tolist(), strict=True))):
                if key == STAYS or block < 0:
                    stay.add(block)
                    continue
                parent[find(-2 - key)] = find(block)  # lines and blocks are told apart by the sign
        return {b: find(b) for b in range(len(self.channels)) if b in parent and b not in stay}

    def _clear(self) -> None:
        self.block: Numbers = np.full(len(self.classes), -1)
        self.channels: list[Numbers] = []
        self._families: list[int] = []

    def _place(self, grid: Grid) -> bool:
        """Make the lines of a grid blocks, if they fit what is there; else join its lines."""
        if (self.classes[grid.numbers] == STAYS).all() or self._lies(grid):
            return True
        lines = _lines(grid.numbers, _axes(grid)[0])
        self.labels.join(lines[:1], lines)
        return False

    def _lies(self, grid: Grid) -> bool:
        """Make the lines of a grid blocks, if they fit what is there."""
        for axis in _axes(grid):
            lines = np.unique(_lines(self.classes[grid.numbers], axis), axis=0)
            if len(lines) == 1 or self._fit(lines):
                return True
        return False

    def _fit(self, lines: Numbers) -> bool:
        found = []
        for line in lines:
            members, counts = np.unique(line[line != STAYS], return_counts=True)
            if not len(members):
                # Nothing of this line can go, so nothing of the others.
                if (lines != STAYS).any():
                    self.labels.join(lines, np.zeros_like(lines))
                    return False
                return True
            if (counts != counts[0]).any():
                return False
            found.append(members)
        if all(len(members) == 1 for members in found):
            return True  # each line is one channel, and goes whole
        distinct = {tuple(m.tolist()) for m in found}
        if len(set().union(*distinct)) != sum(map(len, distinct)):
            return False
        for members in found:
            known = np.unique(self.block[members])
            if len(known) > 1 or (known[0] >= 0 and not np.array_equal(self.channels[known[0]], members)):
                return False
        self._unite(self._number(members) for members in found)
        return True

    def _number(self, members: Numbers) -> int:
        if self.block[members[0]] < 0:
            self.block[members] = len(self.channels)
            self._families.append(len(self.channels))
            self.channels.append(members)
        return int(self.block[members[0]])

    def _unite(self, blocks: Iterable[int]) -> None:
        roots = sorted({self.family(b) for b in blocks})
        for root in roots[1:]:
            self._families[root] = roots[0]


def _sorted(grids: Iterable[Grid]) -> list[Grid]:
    """First those whose axis is known."""
    return sorted(grids, key=lambda g: g.axis is None)


def _axes(grid: Grid) -> list[int]:
    """The axes along which the lines of a grid may lie, the longest first."""
    if grid.axis is not None:
        return [grid.axis]
    sizes = grid.numbers.shape
    return sorted((a for a, size in enumerate(sizes) if size > 1), key=lambda a: (-sizes[a], -a))


def _lines(numbers: Numbers, axis: int) -> Numbers:
    return np.moveaxis(numbers, axis, -1).reshape(-1, numbers.shape[axis])
