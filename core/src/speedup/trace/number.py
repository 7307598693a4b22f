"""A number that Python takes from data of the input: ``lengths.max().item()``.

What Python does with it decides what can be known. Compared with another number it gives a truth value, of which there
are two: both ways are looked at (``speedup.ways``). Whatever else is done with it, anything may follow.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)
_OTHERS = """
    int float complex index round trunc floor ceil neg pos abs invert add radd sub rsub mul rmul matmul truediv rtruediv
    floordiv rfloordiv mod rmod divmod rdivmod pow rpow lshift rlshift rshift rrshift and rand or ror xor rxor hash repr
    str format reduce reduce_ex
""".split()


class Number:
    """Stands for a number, which it gives away for anything but a comparison.

    Args:
        value: the number.
        compared: given the result of a comparison, says what Python is told.
        taken: called when the number itself is used.
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

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return np.asarray(number_of(self), *args, **kwargs)


def number_of(item: Any) -> Any:
    """The number itself; anything else as it is."""
    if type(item) is not Number:
        return item
    item._taken()
    return item._value


def _comparison(compare: Callable[[Any, Any], Any]) -> Callable[[Number, Any], Any]:
    def method(self: Number, other: Any) -> Any:
        if type(other) is Number:
            return self._compared(compare(self._value, other._value))
        if type(other) in (bool, int, float):
            return self._compared(compare(self._value, other))
        return compare(number_of(self), other)

    return method


def _other(name: str) -> Callable[..., Any]:
    def method(self: Number, *args: Any) -> Any:
        return getattr(type(self._value), name)(number_of(self), *map(number_of, args))

    return method


for _compare in _COMPARISONS:
    setattr(Number, f"__{_compare.__name__}__", _comparison(_compare))
for _name in _OTHERS:
    setattr(Number, f"__{_name}__", _other(f"__{_name}__"))
