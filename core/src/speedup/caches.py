"""Results that functions keep for their next call (``functools.lru_cache``), such as tables of positions.

They outlive a run: what is in them was made by the model as it was then, with masks or with layers of another size, and
of a result that is there already no call is seen. So runs start with empty caches and leave none behind, and a module
that is called in a recorded run finds none: two tensors may have one shape in the large model, and two in the small.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from types import CellType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_Cache = functools._lru_cache_wrapper
_DEEP = 3  # functions that call functions
_of_kinds: WeakKeyDictionary[type, list[_Cache[Any]]] = WeakKeyDictionary()


def of(modules: Iterable[nn.Module]) -> list[_Cache[Any]]:
    """The caches of the methods of modules, and of the functions that these name."""
    return [cache for kind in {type(module) for module in modules} for cache in _of(kind)]


def empty(modules: Iterable[nn.Module]) -> None:
    """Empty these caches."""
    for cache in of(modules):
        cache.cache_clear()


def _of(kind: type) -> list[_Cache[Any]]:
    found = _of_kinds.get(kind)
    if found is None:
        held = [h for base in kind.__mro__ if not _is_torchs_own(base) for h in vars(base).values()]
        seen = {id(cache): cache for each in held for cache in _within(each, _DEEP)}
        found = _of_kinds[kind] = list(seen.values())
    return found


def _within(held: Any, deep: int) -> Iterator[_Cache[Any]]:
    """The caches that a function is, holds, or names."""
    if isinstance(held, classmethod | staticmethod | MethodType):
        held = held.__func__
    elif isinstance(held, property):
        held = held.fget
    if isinstance(held, _Cache):
        yield held
        held = held.__wrapped__
    if not isinstance(held, FunctionType) or not deep or _is_torchs_own(held):
        return
    for cell in held.__closure__ or ():
        yield from _within(_contents(cell), deep - 1)
    for name in held.__code__.co_names:
        yield from _within(held.__globals__.get(name), deep - 1)


def _is_torchs_own(held: type | FunctionType) -> bool:
    return (held.__module__ or "").partition(".")[0] == "torch"


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a name that is not assigned yet
        return None
