"""The numbers in the arguments of a call, and the expressions in the source that give them."""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speedup.node import Node
from speedup.repair.locate import Place

Path = tuple[Any, ...]

_GUESSES = 4


@dataclass(frozen=True, eq=False)
class Given:
    """An expression that may give a number of a call.

    Attributes:
        place: where it stands.
        rest: the way to the number inside its value.
    """

    place: Place
    expression: ast.expr
    rest: Path


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


def with_numbers(args: Sequence[Any], kwargs: dict[str, Any], new: Mapping[Path, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments of a call with other numbers at some places, or with more of them by name."""
    added = {path[0]: n for path, n in new.items() if isinstance(path[0], str) and path[0] not in kwargs}
    return _with(tuple(args), (), new), {**_with(kwargs, (), new), **added}


def _with(value: Any, path: Path, new: Mapping[Path, Any]) -> Any:
    if path in new:
        return new[path]
    if isinstance(value, slice):
        parts = (("lower", value.start), ("upper", value.stop), ("step", value.step))
        return slice(*(_with(part, (*path, name), new) for name, part in parts))
    if isinstance(value, tuple | list):
        items = [_with(item, (*path, i), new) for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {name: _with(item, (*path, name), new) for name, item in value.items()}
    return value


def expressions(place: Place, path: Path, node: Node) -> list[tuple[ast.expr, Path]]:
    """The expressions that may give one number of a call, with what of the way is left inside its value.

    Args:
        node: the recorded call. One that a function of torch makes for its caller may give by place what the source
            gives by name, and the other way round.
    """
    call, args = place.call, node.args
    if isinstance(call, ast.BinOp):
        reflected = node.op_name.rpartition(".")[2].startswith("__r")
        return [(s, ()) for s in ((call.left, call.right) if reflected else (call.right, call.left))]
    if isinstance(call, ast.AugAssign):
        return [(call.value, ())]
    if isinstance(call, ast.Subscript):
        found = _inside(call.slice, path[1:], args[1]) if path[0] == 1 else None
    elif not isinstance(call, ast.Call) or not place.direct:
        return []
    else:
        at, name = _spelt(node, path[0])
        first = 0 if _of_module(call.func, place) else 1
        named = [k.value for k in call.keywords if k.arg == name]
        starred = any(isinstance(a, ast.Starred) for a in call.args)
        alike = at < len(args) or not starred  # else it is not known which of what is unpacked it is
        item = _item(call.args, at - first, len(args) - first) if at >= first and alike and not named else None
        if named:
            found = _inside(named[0], path[1:], None)
        else:
            value = args[at] if at < len(args) else None
            found = _inside(item[0], (*item[1], *path[1:]), None if item[1] else value) if item else None
    return [found] if found else []


def _spelt(node: Node, key: int | str) -> tuple[int, str]:
    """The place and the name of an argument of a recorded call, which knows one of them; -1 or "" where it has none."""
    names = _names_of(node.op)
    if isinstance(key, str):
        return names.index(key) if key in names else -1, key
    return key, names[key] if key < len(names) else ""


def _names_of(function: object) -> list[str]:
    """The names of the arguments that may be given by place, where a function tells them."""
    if not isinstance(function, types.FunctionType):
        return []
    try:
        known = inspect.signature(function).parameters.values()
    except ValueError:  # Python around a function of C, such as `torch.Tensor.__pow__`
        return []
    return [p.name for p in known if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]


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
        elif _ends_in(node, path, value):
            assert isinstance(node, ast.BinOp) and isinstance(node.right, ast.Tuple | ast.List)
            node, path, value = node.right.elts[path[0] - len(value)], path[1:], value[path[0]]
        else:
            break
    return node, path


def _ends_in(node: ast.expr, path: Path, value: Any) -> bool:
    """Whether an item is among those of a tuple that is added to another: ``x.shape[:-1] + (heads, size)``."""
    return (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Add)
        and isinstance(node.right, ast.Tuple | ast.List)
        and not any(isinstance(e, ast.Starred) for e in node.right.elts)
        and isinstance(value, tuple | list)
        and len(value) - len(node.right.elts) <= path[0] < len(value)
    )


def passed(given: Given) -> Given:
    """For a parameter of a function that a method calls, the argument in the method; everything else as it is."""
    place, name = given.place, given.expression
    caller = place.caller
    if caller is None or not isinstance(name, ast.Name) or _stores(place, name.id):
        return given
    call, tree = caller.call, place.found.tree.args
    assert isinstance(call, ast.Call)
    parameters = [a.arg for a in (*tree.posonlyargs, *tree.args)][int(place.bound) :]
    named = [k.value for k in call.keywords if k.arg == name.id]
    if named:
        return Given(caller, named[0], given.rest)
    if name.id in parameters:
        item = _item(call.args, parameters.index(name.id), len(call.args))
        if item is not None and not any(isinstance(a, ast.Starred) for a in call.args):
            return Given(caller, item[0], given.rest)
    return given


def _stores(place: Place, name: str) -> list[ast.Name]:
    return [n for n in place.found.nodes if isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Store)]


def behind(given: Given, value: Any) -> Given:
    """What stands behind a local name that is assigned once; the name itself where that is unclear.

    Args:
        value: the argument of the call that holds the number, if that is a tuple or list.
    """
    place, node, path = given.place, given.expression, given.rest
    for _ in range(4):
        if not isinstance(node, ast.Name):
            break
        assigned = _stores(place, node.id)
        values = [
            n.value
            for n in place.found.nodes
            if isinstance(n, ast.Assign) and len(n.targets) == 1 and n.targets[0] in assigned
        ]
        if len(assigned) != 1 or len(values) != 1:
            break
        found = _inside(values[0], path, value)
        if found is None:
            break
        node, path = found
    return passed(Given(place, node, path))


def others(place: Place) -> Sequence[ast.expr]:
    """The names among the arguments of a helper's call, which may hold a size."""
    call = place.call
    given = [*call.args, *(k.value for k in call.keywords)] if isinstance(call, ast.Call) else []
    return [g for g in given if isinstance(g, ast.Name | ast.Attribute)][:_GUESSES]


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
