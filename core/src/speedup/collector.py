"""Python's cyclic garbage collector, while a plan is made, or something else that takes long.

A plan makes tens of thousands of small objects that live as long as it does. By its defaults the collector looks
through them every 700, and through all that a process has imported whenever enough of them have stayed: 0.3 s at a
time. It finds next to nothing, since what goes on the way goes by its reference count.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_YOUNG = 100_000  # so many objects more than before, and the young ones are looked through
_NEVER = 1_000_000  # times the younger ones are looked through before the older ones are

Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def rarely_collected(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """The function, during which the collector comes seldom, and to young objects only.

    What somebody else has set is left alone where it is less often than that, or never.
    """

    @functools.wraps(function)
    def inner(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        before = gc.get_threshold()
        if not 0 < before[0] < _YOUNG:
            return function(*args, **kwargs)
        gc.set_threshold(_YOUNG, _NEVER, _NEVER)
        try:
            return function(*args, **kwargs)
        finally:
            gc.set_threshold(*before)

    return inner
