"""Finding the method that a piece of code belongs to, through decorators, and putting a changed one in its place."""

from __future__ import annotations

import ast
import inspect
import types
from typing import Any

from torch import fx, nn

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


def writes_anew(cls: type) -> bool:
    """Whether the methods of a class are written anew when its module changes to train mode and back, as torch.fx does
    for a module with a graph for each (the feature extractors of torchvision): edits would be lost."""
    return issubclass(cls, fx.GraphModule) and cls.train is not nn.Module.train


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


def called_function(caller: types.FunctionType, name: ast.expr, cls: type) -> types.FunctionType | None:
    """The function that an expression such as ``helper``, ``library.helper`` or ``super().forward`` names where
    ``caller`` is defined; None for anything else.

    Args:
        cls: whose method the caller is.
    """
    found = _next_method(caller, name, cls) if of_super(name) else named(caller, name)
    return found if isinstance(found, types.FunctionType) else None


def of_super(name: ast.expr) -> bool:
    """Whether an expression is a method of the class above: ``super().forward``."""
    called = name.value if isinstance(name, ast.Attribute) else None
    return isinstance(called, ast.Call) and isinstance(called.func, ast.Name) and called.func.id == "super"


def _next_method(caller: types.FunctionType, name: ast.expr, cls: type) -> Any:
    assert isinstance(name, ast.Attribute) and isinstance(name.value, ast.Call)
    given = name.value.args
    cells = dict(zip(caller.__code__.co_freevars, caller.__closure__ or (), strict=False))
    own = _contents(cells["__class__"]) if "__class__" in cells else None
    owner = named(caller, given[0]) if given else own
    if owner not in cls.__mro__:
        return None
    above = cls.__mro__[cls.__mro__.index(owner) + 1 :]
    return next((vars(each)[name.attr] for each in above if name.attr in vars(each)), None)


def named(function: types.FunctionType, name: ast.expr) -> Any:
    """What an expression such as ``helper`` or ``library.helper`` names where a function is defined; None where it is
    no such name, or one of the function's own."""
    if isinstance(name, ast.Attribute):
        held = named(function, name.value)
        return vars(held).get(name.attr) if isinstance(held, types.ModuleType) else None
    if not isinstance(name, ast.Name) or name.id in function.__code__.co_varnames:
        return None
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
    return _contents(cells[name.id]) if name.id in cells else function.__globals__.get(name.id)


def calls_itself(function: types.FunctionType) -> bool:
    """Whether a function, or one of its library that it names, names it again: a copy of it would call the original."""
    seen, ahead = {function}, [function]
    while ahead:
        current = ahead.pop()
        names = {name for code in nested(current.__code__) for name in (*code.co_names, *code.co_freevars)}
        for other in (named(current, ast.Name(name)) for name in names):
            if other is function:
                return True
            near = isinstance(other, types.FunctionType) and other.__module__ == function.__module__
            if near and other not in seen:
                seen.add(other)
                ahead.append(other)
    return False


def first_parameter(tree: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The name of a function's first parameter, "" where it has none."""
    names = [a.arg for a in (*tree.args.posonlyargs, *tree.args.args)]
    return names[0] if names else ""


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
