"""From a recorded call to its expression in the user's source: the recorder noted code and instruction of the frame,
and Python knows which expression an instruction stands for."""

from __future__ import annotations

import ast
import itertools
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from speedup.graph import Node
from speedup.repair.method import function_inside, innermost, method_of
from speedup.repair.rewrite import original
from speedup.repair.source import Definition, definition

Path = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Place:
    """An expression that makes a call, in a method of the module whose forward is running.

    Attributes:
        method: the method's name in the class.
        function: the function that is defined there (the method itself, or what it decorates).
        call: the expression.
        direct: whether it is the recorded call itself, and not that of a helper that makes it.
    """

    method: str
    function: types.FunctionType
    found: Definition
    call: ast.expr | ast.stmt
    direct: bool

    @property
    def self_name(self) -> str:
        """How the method calls its module."""
        tree = self.found.tree
        names = [a.arg for a in (*tree.args.posonlyargs, *tree.args.args)]
        return names[0] if names else ""

    def attribute(self, node: ast.AST) -> str | None:
        """The name of the module's attribute that an expression is; None for anything else."""
        is_own = (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self.self_name
        )
        return node.attr if isinstance(node, ast.Attribute) and is_own else None


def place_of(node: Node, module: nn.Module) -> Place | None:
    """Where the forward of ``module`` makes a recorded call; None when that is out of reach."""
    for number, (code, instruction) in enumerate(node.sites):
        place = _place(module, code, instruction, direct=number == 0)
        if place is not None:
            return place
    return None


def place_of_forward(module: nn.Module) -> Place | None:
    """The forward of a module as a whole."""
    for function in innermost(getattr(original(type(module))[0], "forward", None)):
        found = definition(function) if function.__name__ == "forward" else None
        if found is not None:
            return Place("forward", function, found, ast.Pass(), False)
    return None


def _place(module: nn.Module, code: types.CodeType, instruction: int, direct: bool) -> Place | None:
    cls = type(module)
    name = method_of(cls, code)
    if name is None or name in module.__dict__:
        return None
    base, _ = original(cls)
    held = getattr(base, name, None)
    current = function_inside(getattr(cls, name), code)
    for function in innermost(held):
        if current is None or (function.__qualname__, function.__code__.co_firstlineno) != (
            current.__qualname__,
            current.__code__.co_firstlineno,
        ):
            continue
        found = definition(function)
        call = _expression(found.tree, code, instruction) if found is not None else None
        if found is not None and call is not None:
            return Place(name, function, found, call, direct)
    return None


def _expression(tree: ast.AST, code: types.CodeType, instruction: int) -> ast.expr | ast.stmt | None:
    """The call, subscript or operation that an instruction carries out."""
    at = next(itertools.islice(code.co_positions(), instruction // 2, None), None)
    if at is None or None in at:
        return None
    line, end_line, column, end_column = at
    kinds = (ast.Call, ast.Subscript, ast.BinOp, ast.AugAssign)
    ending = [
        n for n in ast.walk(tree) if isinstance(n, kinds) and (n.end_lineno, n.end_col_offset) == (end_line, end_column)
    ]
    exact = [n for n in ending if (n.lineno, n.col_offset) == (line, column)]
    # A method call over several lines begins, for the interpreter, at the name of the method.
    calls = [n for n in ending if isinstance(n, ast.Call)]
    chosen: list[Any] = exact or (calls if len(calls) == 1 else [])
    return chosen[0] if chosen else None


# -- numbers of a call and the expressions that give them -------------------------------------------------------------


def numbers(args: Sequence[Any], kwargs: dict[str, Any]) -> list[tuple[Path, Any]]:
    """The numbers (and None) in the arguments of a call, with the way to each: position or name, then items."""
    return [*_numbers(tuple(args), ()), *_numbers(kwargs, ())]


def _numbers(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if value is None or isinstance(value, int | float):
        yield path, value
    elif isinstance(value, slice):
        for name in ("lower", "upper", "step"):
            yield from _numbers({"lower": value.start, "upper": value.stop, "step": value.step}[name], (*path, name))
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from _numbers(item, (*path, i))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _numbers(item, (*path, name))


def expressions(place: Place, path: Path, op_name: str, args: Sequence[Any]) -> list[tuple[ast.expr, Path]]:
    """The expressions that may give one number of a call, with what of the way is left inside its value.

    Args:
        args: the positional arguments of the recorded call.
    """
    call = place.call
    if isinstance(call, ast.BinOp):
        reflected = op_name.rpartition(".")[2].startswith("__r")
        return [(s, ()) for s in ((call.left, call.right) if reflected else (call.right, call.left))]
    if isinstance(call, ast.AugAssign):
        return [(call.value, ())]
    if isinstance(call, ast.Subscript):
        found = _inside(call.slice, path[1:], args[1]) if path[0] == 1 else None
    elif not isinstance(call, ast.Call) or not place.direct:
        return []
    elif isinstance(path[0], str):
        named = [k.value for k in call.keywords if k.arg == path[0]]
        found = _inside(named[0], path[1:], None) if named else None
    else:
        first = 0 if _of_module(call.func, place) else 1
        item = _item(call.args, path[0] - first, len(args) - first) if path[0] >= first else None
        found = _inside(item[0], (*item[1], *path[1:]), None if item[1] else args[path[0]]) if item else None
    return [found] if found else []


def _of_module(function: ast.expr, place: Place) -> bool:
    """Whether a function is called by its own name, and not as the method of a tensor."""
    while isinstance(function, ast.Attribute):
        function = function.value
    if not isinstance(function, ast.Name):
        return False
    known = place.function.__globals__.get(function.id)
    return isinstance(known, types.ModuleType) or callable(known)


def _item(items: Sequence[ast.expr], number: int, count: int) -> tuple[ast.expr, Path] | None:
    """The expression behind one of ``count`` items, of which a starred one gives several."""
    starred = [i for i, e in enumerate(items) if isinstance(e, ast.Starred)]
    if not starred:
        return (items[number], ()) if number < len(items) else None
    if len(starred) > 1:
        return None
    star, after = starred[0], len(items) - starred[0] - 1
    if number < star:
        return items[number], ()
    if number >= count - after:
        return items[number - count], ()
    inner = items[star]
    assert isinstance(inner, ast.Starred)
    return inner.value, (number - star,)


def _inside(node: ast.expr, path: Path, value: Any) -> tuple[ast.expr, Path] | None:
    """Follow the rest of a way into tuples, lists and slices that are written out."""
    while path:
        if isinstance(node, ast.Slice):
            part = getattr(node, str(path[0]), None)
            if part is None:
                return None
            node, path = part, path[1:]
        elif isinstance(node, ast.Tuple | ast.List) and isinstance(path[0], int):
            item = _item(node.elts, path[0], len(value) if isinstance(value, tuple | list) else len(node.elts))
            if item is None:
                return None
            value = value[path[0]] if isinstance(value, tuple | list) else None
            node, path = item[0], (*item[1], *path[1:])
        else:
            break
    return node, path


def literals(place: Place, value: int | float) -> list[ast.expr]:
    """The arguments of a call that are this very number in the source."""
    call = place.call
    if not isinstance(call, ast.Call):
        return []
    given = [*call.args, *(k.value for k in call.keywords)]
    return [
        n
        for g in given
        for n in ast.walk(g)
        if isinstance(n, ast.Constant) and type(n.value) is int and n.value == value
    ]
