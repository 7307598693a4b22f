"""Vectors of which some entries are known, and the formulas of the cells on them.

What is known of the next state follows by computing with what is known: a sum is known where both terms are, a product
also where one factor is 0. So an LSTM unit with g = 0 and c = 0 stays at 0, whatever its other gates do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speedup import Bools, Floats


@dataclass(frozen=True, eq=False)
class Known:
    """Numbers of which those in ``mask`` are known; ``value`` is 0 elsewhere."""

    mask: Bools
    value: Floats

    @staticmethod
    def nothing(*shape: int) -> Known:
        return Known(np.zeros(shape, dtype=bool), np.zeros(shape))

    @staticmethod
    def zeros(*shape: int) -> Known:
        return Known(np.ones(shape, dtype=bool), np.zeros(shape))

    @property
    def zero(self) -> Bools:
        """Known to be 0."""
        return np.asarray(self.mask & (self.value == 0))

    def __getitem__(self, index: Any) -> Known:
        return Known(self.mask[index], self.value[index])

    def __add__(self, other: Known) -> Known:
        return _where(self.mask & other.mask, self.value + other.value)

    def __sub__(self, other: Known) -> Known:
        return _where(self.mask & other.mask, self.value - other.value)

    def __mul__(self, other: Known) -> Known:
        return _where((self.mask & other.mask) | self.zero | other.zero, self.value * other.value)

    def apply(self, function: Callable[[Floats], Floats]) -> Known:
        return _where(self.mask, function(self.value))

    def where_same(self, other: Known) -> Known:
        """What both know, and alike."""
        return _where(self.mask & other.mask & (self.value == other.value), self.value)


def _where(mask: Bools, value: Floats) -> Known:
    mask = np.asarray(mask & np.isfinite(value))
    return Known(mask, np.where(mask, value, 0.0))


def joined(parts: Sequence[Known]) -> Known:
    """One after the other."""
    return Known(np.concatenate([p.mask for p in parts]), np.concatenate([p.value for p in parts]))


def uniform(mask: Bools, value: Floats, over: tuple[int, ...]) -> Known:
    """What is known, and the same, all along the axes ``over``, which go."""
    mask, value = np.broadcast_arrays(mask, value)
    mask = mask & np.isfinite(value)
    value = np.where(mask, value, 0.0)
    first = value.min(axis=over)
    return _where(mask.all(axis=over) & (value.max(axis=over) == first), first)


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a cell.

    Attributes:
        made: per unit what the cell makes: its state h, in front of a projection.
        c: the new cell state of an LSTM.
        matters: (gates, units), whether the gate of a unit has any influence on it.
    """

    made: Known
    c: Known | None
    matters: Bools


def rnn(activation: Callable[[Floats], Floats]) -> Callable[[Known, Known, Known, Known | None], Step]:
    """h' = act(a), where a = x + s: what the input and what the state gives."""

    def step(x: Known, s: Known, h: Known, c: Known | None) -> Step:
        return Step((x + s)[0].apply(activation), None, np.ones(x.mask.shape, dtype=bool))

    return step


def lstm(x: Known, s: Known, h: Known, c: Known | None) -> Step:
    """c' = f c + i g, h' = o tanh(c')."""
    assert c is not None
    a = x + s
    i, f, g, o = a[0].apply(_sigmoid), a[1].apply(_sigmoid), a[2].apply(np.tanh), a[3].apply(_sigmoid)
    new = f * c + i * g
    return Step(o * new.apply(np.tanh), new, np.stack([~g.zero, ~c.zero, np.ones_like(g.mask), ~new.zero]))


def gru(x: Known, s: Known, h: Known, c: Known | None) -> Step:
    """n = tanh(x_n + r s_n), h' = (1 - z) n + z h = n + z (h - n)."""
    r, z = (x + s)[0].apply(_sigmoid), (x + s)[1].apply(_sigmoid)
    n = (x[2] + r * s[2]).apply(np.tanh)
    rest = h - n
    return Step(n + z * rest, None, np.stack([~s[2].zero, ~rest.zero, np.ones_like(n.mask)]))


def _sigmoid(a: Floats) -> Floats:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * a))


def _relu(a: Floats) -> Floats:
    return np.maximum(a, 0.0)


# By kind: the number of gates and the formula.
CELLS: dict[str, tuple[int, Callable[[Known, Known, Known, Known | None], Step]]] = {
    "tanh": (1, rnn(np.tanh)),
    "relu": (1, rnn(_relu)),
    "lstm": (4, lstm),
    "gru": (3, gru),
}
