"""Sets of entries by value: arrays that broadcast to it, or products of lines that are written out when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

from speedup.arrays import Bools, every, everything, nothing, some
from speedup.node import Value
from speedup.regular import Lines, varied


class Sets(dict[Value, Bools]):
    """The sets by value. Large products are written out when they are asked for.

    Attributes:
        lines: the factors of the products, per axis that loses indices.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Value, Lines] = {}

    def write_later(self, value: Value, lines: Lines) -> None:
        if value in self:
            del self[value]
        self.lines[value] = lines

    def __missing__(self, value: Value) -> Bools:
        found = everything(value.ndim)
        for axis, line in self.lines[value].items():
            found = found & line.reshape([-1 if a == axis else 1 for a in range(value.ndim)])
        self[value] = found
        return found


class SetsAt(Sequence[Bools]):
    def __init__(self, sets: Sets, values: Sequence[Value | None]) -> None:
        self._sets = sets
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, k: int) -> Bools: ...
    @overload
    def __getitem__(self, k: slice) -> list[Bools]: ...
    def __getitem__(self, k: int | slice) -> Bools | list[Bools]:
        if type(k) is slice:
            return [self[j] for j in range(*k.indices(len(self)))]
        value = self._values[k]
        return self._sets[value] if value is not None else nothing(0)


class Product:
    """What a weight keeps: the product of some sets.

    Attributes:
        parts: the sets; arrays that broadcast to the weight's shape.
        lines: the same as one line per axis that loses indices; None where a set varies along several axes.
    """

    def __init__(self, parts: Sequence[Bools]) -> None:
        self.parts = parts
        self.lines: Lines | None = None
        lines = _lines(parts)
        if lines is not None:
            empty = any(not some(line) for line in lines.values())
            self.lines = Lines({} if empty else {a: line for a, line in lines.items() if not every(line)})


def _lines(parts: Iterable[Bools]) -> dict[int, Bools] | None:
    """The product of some sets as one line per axis; None where one of them varies along several."""
    lines: dict[int, Bools] = {}
    for part in parts:
        axes = varied(part)
        if len(axes) > 1:
            return None
        line = part.reshape(-1)
        axis = axes[0] if axes else 0
        lines[axis] = lines[axis] & line if axis in lines else line
    return lines
