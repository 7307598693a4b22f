"""Integer attributes of a module that hold a size: ``num_heads``, ``head_dim``, a list of sections."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from speedup.repair.arguments import Given
from speedup.repair.locate import Place
from speedup.repair.stale import Stale


def held(module: nn.Module, name: str, changed: dict[str, Any]) -> Any:
    """The value of a plain attribute; None for anything else (a property, a child, a tensor)."""
    if name in changed:
        return changed[name]
    if name in module.__dict__:
        return module.__dict__[name]
    for owner in type(module).__mro__:
        if name in vars(owner):
            return vars(owner)[name]
    return None


def repaired(module: nn.Module, stale: Stale, given: Sequence[Given], changed: dict[str, Any]) -> dict[str, Any]:
    """The attribute, with its new value, from which a stale size may come; empty when there is none.

    First the attribute that is the argument itself, then one that the argument is computed from, then one that the
    method reads elsewhere and that has the stale size.

    Args:
        given: the expressions of the argument, see ``arguments.expressions``.
        changed: attributes that are repaired already.
    """
    if type(stale.now) is not int or type(stale.wanted) is not int or not stale.now:
        return {}
    for each in given:
        place, expression, rest = each.place, each.expression, each.rest
        name = place.attribute(expression)
        value = held(module, name, changed) if name is not None else None
        if name is not None and isinstance(value, tuple | list) and len(rest) == 1 and _plain(value[rest[0]]):
            made = [stale.wanted if i == rest[0] else v for i, v in enumerate(value)]
            return {name: type(value)(made)} if type(value) in (tuple, list) else {}
        for name, value in _factors(place, module, expression, changed):
            if value * stale.wanted % stale.now == 0 and value * stale.wanted // stale.now > 0:
                return {name: value * stale.wanted // stale.now}
    if not given:
        return {}
    place = given[0].place
    place = place.caller if place.caller is not None and not place.bound else place
    near = {name for name, _ in mentioned(place, module, place.call, changed)}
    same = [n for n, v in mentioned(place, module, place.found.tree, changed) if v == stale.now and n not in near]
    return {same[0]: stale.wanted} if len(same) == 1 else {}


def mentioned(
    place: Place, module: nn.Module, tree: ast.AST, changed: dict[str, Any], child: str = ""
) -> Iterator[tuple[str, int]]:
    """The integer attributes of the module that an expression or a method reads.

    Args:
        child: under which name the method's own module has this one, if it is another one.
    """
    seen = set()
    for node in place.found.nodes if tree is place.found.tree else ast.walk(tree):
        name = place.attribute(node, child)
        if name is not None and name not in seen:
            seen.add(name)
            value = held(module, name, changed)
            if _plain(value) and value > 1:
                yield name, value


def _factors(place: Place, module: nn.Module, tree: ast.expr, changed: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The integer attributes that an expression is, is a multiple of, or is a sum of multiples of."""
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult | ast.Add | ast.Sub):
        yield from _factors(place, module, tree.left, changed)
        yield from _factors(place, module, tree.right, changed)
    elif place.attribute(tree) is not None:
        yield from mentioned(place, module, tree, changed)


def _plain(value: Any) -> bool:
    return type(value) is int
