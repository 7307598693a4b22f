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

from speedup.graph import Graph
from speedup.node import Node
from speedup.repair.method import (
    called_function,
    calls_itself,
    first_parameter,
    function_inside,
    innermost,
    method_of,
    of_super,
    writes_anew,
)
from speedup.repair.rewrite import original
from speedup.repair.source import Definition, definition, nested


@dataclass(frozen=True, eq=False)
class Place:
    """An expression that makes a call, in a method of the module whose forward is running, or in a function that
    the method calls.

    Attributes:
        method: the method's name in the class.
        function: the function that holds the expression (the method itself, what it decorates, or what it calls).
        call: the expression.
        direct: whether it is the recorded call itself, and not that of a helper that makes it.
        caller: where the method calls the function, None for the method itself.
        bound: whether the function that is called is the method of a class above.
    """

    method: str
    function: types.FunctionType
    found: Definition
    call: ast.expr | ast.stmt
    direct: bool
    caller: Place | None = None
    bound: bool = False

    @property
    def self_name(self) -> str:
        """How the method calls its module; "" in a function that is no method."""
        return first_parameter(self.found.tree) if self.caller is None or self.bound else ""

    def attribute(self, node: ast.AST, child: str = "") -> str | None:
        """The name of the module's attribute that an expression is, or of one of its child; None for anything else."""
        if not isinstance(node, ast.Attribute) or not self.self_name:
            return None
        if child:
            return node.attr if self.attribute(node.value) == child else None
        return node.attr if isinstance(node.value, ast.Name) and node.value.id == self.self_name else None


def places_of(node: Node, module: nn.Module) -> list[Place]:
    """Where the forward of ``module`` makes a recorded call: in the function that it calls, if it does, then in the
    method. Empty when that is out of reach."""
    for number, (code, instruction) in enumerate(node.sites):
        place = _place(module, code, instruction, direct=number == 0)
        if place is not None:
            inside = _place_in_callee(place, original(type(module))[0], *node.sites[0]) if number else None
            return [place] if inside is None else [inside, place]
    return []


def sites_within(node: Node, module: nn.Module) -> tuple[Any, ...]:
    """The sites of a recorded call up to the method of ``module`` that makes it: calls that have these in common come
    from the same expression. All of them when that is out of reach."""
    methods = (n for n, (code, _) in enumerate(node.sites) if method_of(type(module), code) is not None)
    return tuple(node.sites[: next(methods, len(node.sites)) + 1])


def runs_of(node: Node, graph: Graph, module: nn.Module) -> list[Node]:
    """All runs of a call of ``module``: in a loop, in a module that is called twice, in a method that others call."""
    sites = sites_within(node, module)
    alike = (n for n in graph.by_scope.get(node.scope, ()) if n.op is node.op)
    return [n for n in alike if n.sites[: len(sites)] == sites]


def in_other_modules(node: Node, graph: Graph) -> Iterator[Node]:
    """The same call in other modules of the same class, later in the run: the first of its runs in each."""
    seen = {node.scope}
    for other in graph.nodes[node.index + 1 :]:
        if other.scope not in seen and other.sites == node.sites and other.op is node.op:
            seen.add(other.scope)
            yield other


def _place_in_callee(place: Place, cls: type, code: types.CodeType, instruction: int) -> Place | None:
    """Where the function that is called at a place makes a call itself."""
    if not isinstance(place.call, ast.Call) or not place.self_name:
        return None
    called = called_function(place.function, place.call.func, cls)
    if called is None or (not of_super(place.call.func) and calls_itself(called)):
        return None
    for function in innermost(called):
        # Itself, or the copy of it that an earlier edit made.
        if not any(_is_definition_of(inner, code) for inner in nested(function.__code__)):
            continue
        found = definition(function)
        call = _expression(found.nodes, code, instruction) if found is not None else None
        if found is not None and call is not None:
            return Place(place.method, function, found, call, True, place, of_super(place.call.func))
    return None


def _is_definition_of(one: types.CodeType, other: types.CodeType) -> bool:
    """Whether two codes are of one definition, one of them perhaps with edits."""
    names = (one.co_filename, one.co_qualname, one.co_firstlineno)
    return names == (other.co_filename, other.co_qualname, other.co_firstlineno)


def place_of_method(module: nn.Module, name: str) -> Place | None:
    """A method of a module as a whole."""
    if writes_anew(type(module)):
        return None
    for function in innermost(getattr(original(type(module))[0], name, None)):
        found = definition(function) if function.__name__ == name else None
        if found is not None:
            return Place(name, function, found, ast.Pass(), False)
    return None


def _place(module: nn.Module, code: types.CodeType, instruction: int, direct: bool) -> Place | None:
    cls = type(module)
    name = method_of(cls, code)
    if name is None or name in module.__dict__ or writes_anew(cls):
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
        call = _expression(found.nodes, code, instruction) if found is not None else None
        if found is not None and call is not None:
            return Place(name, function, found, call, direct)
    return None


def _expression(nodes: Sequence[ast.AST], code: types.CodeType, instruction: int) -> ast.expr | ast.stmt | None:
    """The call, subscript or operation that an instruction carries out."""
    at = next(itertools.islice(code.co_positions(), instruction // 2, None), None)
    if at is None or None in at:
        return None
    line, end_line, column, end_column = at
    kinds = (ast.Call, ast.Subscript, ast.BinOp, ast.AugAssign)
    ending = [n for n in nodes if isinstance(n, kinds) and (n.end_lineno, n.end_col_offset) == (end_line, end_column)]
    exact = [n for n in ending if (n.lineno, n.col_offset) == (line, column)]
    # A method call over several lines begins, for the interpreter, at the name of the method.
    calls = [n for n in ending if isinstance(n, ast.Call)]
    chosen: list[Any] = exact or (calls if len(calls) == 1 else [])
    return chosen[0] if chosen else None
