"""Finding the method that a piece of code belongs to, through decorators, and putting a changed one in its place."""

from __future__ import annotations

import inspect
import types
from typing import Any

from torch import nn

from speedup.repair.source import nested, with_code

_DEPTH = 6


def method_of(cls: type, code: types.CodeType) -> str | None:
    """The name under which a class holds the method that some code is part of.

    None when there is none, and when the class overrides the method (the code was reached by ``super()``).
    """
    for owner in cls.__mro__:
        if owner is nn.Module:
            break
        for name, held in vars(owner).items():
            if function_inside(held, code) is not None:
                return name if inspect.getattr_static(cls, name, None) is held else None
    return None


def function_inside(held: Any, code: types.CodeType, depth: int = _DEPTH) -> types.FunctionType | None:
    """The function with this code (or with it nested inside) among a function and those that it decorates."""
    if not isinstance(held, types.FunctionType) or depth == 0:
        return None
    if any(each is code for each in nested(held.__code__)):
        return held
    for inner in _decorated(held):
        found = function_inside(inner, code, depth - 1)
        if found is not None:
            return found
    return None


def innermost(held: Any, depth: int = _DEPTH) -> list[types.FunctionType]:
    """A function and all that it decorates."""
    if not isinstance(held, types.FunctionType) or depth == 0:
        return []
    return [held, *(f for inner in _decorated(held) for f in innermost(inner, depth - 1))]


def _decorated(function: types.FunctionType) -> list[Any]:
    """The functions that a wrapper holds in its closure."""
    return [c for c in map(_contents, function.__closure__ or ()) if isinstance(c, types.FunctionType)]


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def exchanged(held: types.FunctionType, old: types.FunctionType, new: types.FunctionType) -> types.FunctionType:
    """A copy of a decorated function in which one of the functions inside is another one."""
    if held is old:
        return new
    cells = []
    for cell in held.__closure__ or ():
        inner = _contents(cell)
        has = isinstance(inner, types.FunctionType) and any(f is old for f in innermost(inner))
        cells.append(types.CellType(exchanged(inner, old, new)) if has else cell)
    made = with_code(held, held.__code__, tuple(cells))
    wrapped = getattr(held, "__wrapped__", None)
    if isinstance(wrapped, types.FunctionType) and any(f is old for f in innermost(wrapped)):
        made.__wrapped__ = exchanged(wrapped, old, new)  # type: ignore[attr-defined]
    return made
