"""A number that Python takes from data of the input: ``lengths.max().item()``, ``counts.tolist()``.

What Python does with it decides what can be known. Compared with another number it gives a truth value, of which there
are two: both ways are looked at (``speedup.ways``). Whatever else is done with it, anything may follow.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_ARITHMETIC = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "divmod",
    "pow",
    "lshift",
    "rshift",
    "and",
    "or",
    "xor",
)
_ALONE: tuple[Callable[..., Any], ...] = (
    *(int, float, complex, round, abs, hash, repr, str, format, math.trunc, math.floor, math.ceil),
    *(operator.index, operator.neg, operator.pos, operator.invert),
)
_PLAIN = (bool, int, float, complex)


class Number:
    """Stands for a number, which it gives away for anything but a comparison.

    Args:
        value: the number.
        compared: given the result of a comparison, says what Python is told.
        taken: called when the number itself is used. Numbers of one list have it in common: to compare them with one
            another, as a maximum does, is to use them.
    """

    __slots__ = ("_compared", "_taken", "_value")

    def __init__(self, value: float, compared: Callable[[bool], bool], taken: Callable[[], None]) -> None:
        self._value, self._compared, self._taken = value, compared, taken

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._value)  # for ``isinstance``

    def __bool__(self) -> bool:
        return self._compared(bool(self._value))

    def __getattr__(self, name: str) -> Any:
        return getattr(number_of(self), name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return number_of(self).__reduce_ex__(protocol)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return np.asarray(number_of(self), *args, **kwargs)


def number_of(item: Any) -> Any:
    """The number itself; anything else as it is."""
    if type(item) is not Number:
        return item
    item._taken()
    return item._value


def _comparison(name: str) -> Callable[[Number, Any], Any]:
    compare = getattr(operator, name)

    def method(self: Number, other: Any) -> Any:
        if type(other) is Number and self._taken is not other._taken:
            return self._compared(compare(self._value, other._value))
        if type(other) in (bool, int, float):
            return self._compared(compare(self._value, other))
        return compare(number_of(self), other)

    return method


def _arithmetic(name: str, turned: bool) -> Callable[[Number, Any], Any]:
    compute: Any = divmod if name == "divmod" else getattr(operator, f"__{name}__")

    def method(self: Number, other: Any) -> Any:
        # Of a tensor it may be meant in place, which cannot be told from here.
        if type(other) not in (Number, *_PLAIN):
            return NotImplemented
        pair = number_of(self), number_of(other)
        return compute(*(pair[::-1] if turned else pair))

    return method


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args: function(number_of(self), *args)


for _name in _COMPARISONS:
    setattr(Number, f"__{_name}__", _comparison(_name))
for _name in _ARITHMETIC:
    setattr(Number, f"__{_name}__", _arithmetic(_name, False))
    setattr(Number, f"__r{_name}__", _arithmetic(_name, True))
for _function in _ALONE:
    setattr(Number, f"__{_function.__name__}__", _alone(_function))
