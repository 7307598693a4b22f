"""Numbers for channels: which entries of which tensors are one channel, because they can only go together.

Every value has an array of numbers that broadcasts to its shape, of size 1 along the axes that can lose no index; equal
numbers are one channel. Rules say which entries belong together (``Rule.tie``); the classes of a union-find are the
channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from speedup.node import Value

if TYPE_CHECKING:
    pass

Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

STAYS = 0
"""The number of entries that can never go."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Numbers along several axes, of which what is left must be dense: along one axis every line keeps equally many.

    Attributes:
        axis: the axis of the lines; None where it may be any.
    """

    numbers: Numbers
    axis: int | None


class Labels:
    """The numbers of all values of a graph, as far as rules have told.

    Attributes:
        rigid: per value and axis, whether it can never lose an index.
        grids: what must stay dense.
        shares: pairs (line, contained): an index of a line goes only together with all that it contains.
        made: numbers that a layer with weights of its own makes, as an output.
        read: activations that such a layer reads.
        reads: which numbers of a parameter are of channels that its layer reads, by the axes along which they vary;
            the others are of channels that it makes.
        computed: weights that a call makes of parameters.
        products: those of them that a layer makes of others.
        placed: parameters in another shape or order.
        read_in_place: numbers of channels that a layer reads with such a one.
        taken: numbers of what such a weight reads: of the parameters they go by themselves, and to mask them there may
            change what else is made of it.
        alone: axes of parameters and of tensors that a forward makes which count rows beside those of the input
            (tokens that are learned, places in a table), of which layers make channels: to be taken for axes that can
            lose no index.
        crossed: axes that a layer makes of others beside channels that pass it (tokens that are mixed), and the numbers
            of these.
        merged: numbers along an axis that several axes of a parameter have become, and those of each of them: which
            one stands for channels is for what is joined with it to say.
    """

    def __init__(self, rigid: Mapping[Value, Sequence[bool]], from_input: frozenset[Value]) -> None:
        self.rigid = rigid
        self.from_input = from_input
        self.grids: list[Grid] = []
        self.shares: list[tuple[Numbers, Numbers]] = []
        self.made: list[Numbers] = []
        self.read: list[Value] = []
        self.reads: set[tuple[Value, tuple[int, ...]]] = set()
        self.computed: set[Value] = set()
        self.products: set[Value] = set()
        self.placed: set[Value] = set()
        self.read_in_place: list[Numbers] = []
        self.taken: list[Numbers] = []
        self.alone: set[tuple[Value, int]] = set()
        self.crossed: list[tuple[Value, int, Sequence[Numbers]]] = []
        self.merged: list[tuple[Numbers, Sequence[Numbers]]] = []
        self._of: dict[Value, dict[tuple[int, ...], Numbers]] = {}
        self._count = 1
        self._edges: list[tuple[Numbers, Numbers]] = []

    # -- what rules use -------------------------------------------------------------------------------------------

    def fresh(self, shape: Sequence[int]) -> Numbers:
        """New numbers, one for every entry."""
        count = int(np.prod(shape))
        numbers = np.arange(self._count, self._count + count).reshape(shape)
        self._count += count
        return numbers

    def join(self, a: Numbers, b: Numbers) -> None:
        """Entries at the same places are one channel; the arrays broadcast to each other."""
        if a is not b:
            left, right = np.broadcast_arrays(a, b)
            self._edges.append((left.ravel(), right.ravel()))

    def freeze(self, value: Value) -> None:
        """No entry of a value can go."""
        for numbers in self.arrays(value):
            self.join(numbers, np.zeros((1,) * numbers.ndim, dtype=np.int64))

    def flexible(self, value: Value) -> list[int]:
        """The axes of a value that can lose an index."""
        return [a for a, fixed in enumerate(self.rigid[value]) if not fixed and value.shape[a] > 1]

    def arrays(self, value: Value) -> list[Numbers]:
        """The numbers of a value: one array for an activation. A parameter has one array for each of its axes, and
        may be given further ones: an entry goes when its number in any of them does."""
        known = self._of.get(value)
        if known is None:
            known = self._of[value] = {}
            if value.is_source:
                for axis in self.flexible(value):
                    self.add(value, self.fresh([s if a == axis else 1 for a, s in enumerate(value.shape)]))
            else:
                axes = self.flexible(value)
                self.add(value, self.fresh([s if a in axes else 1 for a, s in enumerate(value.shape)]))
        return list(known.values())

    def add(self, value: Value, numbers: Numbers) -> None:
        """Give a value numbers; those that vary along the same axes as others it has are the same channels."""
        axes = varied(numbers)
        known = self._of.setdefault(value, {})
        if axes in known:
            self.join(known[axes], numbers)
        else:
            known[axes] = numbers

    def add_one_of(self, value: Value, numbers: Sequence[Numbers]) -> None:
        """An axis of a value is several ones of a parameter: give it the numbers of one of these, of the others
        nothing goes."""
        own = self.fresh(numbers[0].shape)
        self.add(value, own)
        self.merged.append((own, numbers))

    def of_parameters(self, value: Value, placed: bool = True) -> bool:
        """Whether a value is a parameter or buffer, or a weight that is made of such; or, if ``placed``, one of these
        in another shape."""
        return value.is_source or value in self.computed or (placed and value in self.placed)

    def has(self, value: Value) -> bool:
        """Whether a value has numbers yet."""
        return value in self._of

    def leave(self, arrays: Iterable[Numbers]) -> None:
        """Nothing goes for these numbers: note the axes that they are of."""
        numbers = [a.ravel() for a in arrays]
        if numbers:
            of = np.unique(np.concatenate(numbers))
            for value, known in self._of.items():
                self.alone |= {(value, axes[0]) for axes, n in known.items() if len(axes) == 1 and np.isin(n, of).any()}

    def keep_dense(self, numbers: Numbers, axis: int | None) -> None:
        """What is left of an array with several axes must be dense again."""
        if sum(s > 1 for s in numbers.shape) > 1:
            self.grids.append(Grid(numbers, axis))

    def share(self, line: Numbers, contained: Numbers) -> None:
        """An index of a line goes only together with all that it contains; the arrays broadcast."""
        self.shares.append((line, contained))

    # -- the result -----------------------------------------------------------------------------------------------

    def classes(self) -> Numbers:
        """The smallest number of the channel that each number belongs to."""
        roots = np.arange(self._count)
        if not self._edges:
            return roots
        a = np.concatenate([e[0] for e in self._edges])
        b = np.concatenate([e[1] for e in self._edges])
        while True:
            a, b = roots[a], roots[b]
            open_ = a != b
            if not open_.any():
                return roots
            a, b = a[open_], b[open_]
            np.minimum.at(roots, np.maximum(a, b), np.minimum(a, b))
            while not np.array_equal(flat := roots[roots], roots):
                roots = flat


def varied(numbers: Numbers) -> tuple[int, ...]:
    """The axes along which numbers vary."""
    return tuple(a for a, s in enumerate(numbers.shape) if s > 1)
