"""The expressions in the source that may give a number which is stale."""

from __future__ import annotations

import ast

from speedup.node import Node
from speedup.repair.arguments import Given, behind, expressions, literals, others, passed
from speedup.repair.locate import Place
from speedup.repair.method import named
from speedup.repair.rewrite import is_literal
from speedup.repair.stale import CALLEE, RESULT, Stale


def given_by(place: Place, stale: Stale, node: Node) -> list[Given]:
    """The expressions that may give a stale number."""
    if stale.path == RESULT:
        return [Given(place, place.call, ())] if place.direct and isinstance(place.call, ast.Call) else []
    if stale.path == CALLEE:
        call = place.call
        plain = place.direct and isinstance(call, ast.Call) and named(place.function, call.func) is node.op
        return [Given(place, call, ())] if plain and isinstance(call, ast.Call) else []
    known = [Given(place, e, rest) for e, rest in expressions(place, stale.path, node)]
    if stale.now is None and not known and place.direct and isinstance(place.call, ast.Call):
        return [Given(place, place.call, ())]
    if len(known) > 1:
        known = [g for g in known if not is_literal(g.expression) or _gives(g.expression, stale.now)]
    if known or type(stale.now) is not int:
        return [passed(g) for g in known]
    return [Given(place, e, ()) for e in (*literals(place, stale.now), *(() if place.direct else others(place)))]


def sources(place: Place, stale: Stale, node: Node) -> list[Given]:
    """Those expressions, or what stands behind them where they are local names."""
    args = node.args
    value = args[stale.path[0]] if isinstance(stale.path[0], int) and stale.path[0] < len(args) else None
    return [behind(g, value) for g in given_by(place, stale, node)]


def _gives(expression: ast.expr, number: int | float | None) -> bool:
    code = compile(ast.fix_missing_locations(ast.Expression(expression)), "", "eval")
    return bool(eval(code, {"__builtins__": {}}) == number)
