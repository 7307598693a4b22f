"""Does code go another way where the input is larger? ``if h % 8: x = F.pad(x, ...)``, ``if q.shape[1] > 1: ...``.

A size is a plain number to Python, so that no run shows what becomes of it. The source does, roughly: it is looked for
an ``if`` or ``while`` whose condition has to do with a size. Where there is one, the model is run at other sizes to see
(``speedup.resized``): what is found here for nothing costs time, and no more.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import linecache
import textwrap
import tokenize
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from speedup.graph import Graph
from speedup.trace.source import names_in, of_user

_ASK = {"size", "numel", "nelement", "__len__"}  # methods that give sizes
_OF_OBJECTS = {"isinstance", "hasattr", "callable", "issubclass", "type"}
_MOST = 300  # functions that are looked at
_LARGEST = 4096  # of the limits that are tried


@dataclass(frozen=True)
class Questions:
    """What is asked for.

    Attributes:
        limits: whole numbers that stand in such conditions.
    """

    limits: tuple[int, ...] = ()


def questions(codes: Collection[CodeType]) -> Questions | None:
    """What the code of some functions asks for sizes; None where no condition has to do with one.

    Args:
        codes: functions that the forwards of a model run.

    Example::

        >>> questions([Net.forward.__code__])  # if x.shape[2] > 32: ...
        Questions(limits=(32,))
    """
    found = [_conditions(code) for code in codes if _decides(code)]
    attributes = frozenset[str]()
    if any(_is_of_self(n) for each in found for t in each.tests for n in ast.walk(t)):
        attributes = attributes.union(*(_conditions(code).attributes for code in codes))
    tests = [t for each in found for t in each.about_sizes(attributes)]
    if not tests and not any(each.is_hidden for each in found):
        return None
    return Questions(tuple(sorted({n for t in tests for n in _limits(t)})))


def code_of(model: nn.Module, graph: Graph) -> set[CodeType]:
    """The functions that the forwards of a model run, and those that they name: methods, and functions of their files.

    Args:
        graph: a run.
    """
    found = {*graph.asking_code} | {code for node in graph.nodes for code, _ in node.sites}
    methods: dict[str, list[FunctionType]] = defaultdict(list)
    for kind in {type(module) for module in model.modules()}:
        for base in kind.__mro__:
            for name, held in vars(base).items():
                function = inspect.unwrap(getattr(held, "fget", None) or getattr(held, "__func__", held))
                if isinstance(function, FunctionType) and of_user(function.__code__):
                    methods[name].append(function)
    # A module that is called may make no call at this size.
    functions = [f for name, each in methods.items() for f in each if name == "forward" or f.__code__ in found]
    seen = {f.__code__ for f in functions}
    while functions and len(seen) < _MOST:
        function = functions.pop()
        for name in names_in(function.__code__):
            there = function.__globals__.get(name)
            for other in [*methods.get(name, ()), *([there] if isinstance(there, FunctionType) else [])]:
                if other.__code__ not in seen and of_user(other.__code__):
                    seen.add(other.__code__)
                    functions.append(other)
    return found | seen


@functools.lru_cache(maxsize=1024)
def _decides(code: CodeType) -> bool:
    """Whether there is any condition in a function, or in one that stands in it."""
    inside = [c for c in code.co_consts if isinstance(c, CodeType)]
    jumps = (i.opname for i in dis.get_instructions(code))
    return any("JUMP" in name and "IF" in name for name in jumps) or any(map(_decides, inside))


def _limits(test: ast.expr) -> Iterator[int]:
    for node in ast.walk(test):
        if isinstance(node, ast.Compare | ast.BinOp):
            for side in ast.iter_child_nodes(node):
                if isinstance(side, ast.Constant) and type(side.value) is int and 0 < side.value <= _LARGEST:
                    yield side.value


@dataclass(frozen=True)
class _Conditions:
    """The conditions in one function.

    Attributes:
        tests: those that decide anything but whether an error is raised.
        sized: local names of what is made of sizes.
        arguments: names of its arguments, which may be sizes.
        attributes: of ``self``, to which what is made of sizes is assigned.
        is_hidden: whether its source is not at hand.
    """

    tests: tuple[ast.expr, ...] = ()
    sized: frozenset[str] = frozenset()
    arguments: frozenset[str] = frozenset()
    attributes: frozenset[str] = frozenset()
    is_hidden: bool = False

    def about_sizes(self, attributes: frozenset[str]) -> Iterator[ast.expr]:
        """The conditions that have to do with a size.

        Args:
            attributes: those that hold sizes.
        """
        for test in self.tests:
            if any(_is_size(n, self.sized, attributes) for n in _parts(test)) or self._compares_an_argument(test):
                yield test

    def _compares_an_argument(self, test: ast.expr) -> bool:
        for node in _parts(test):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
            elif isinstance(node, ast.BinOp):
                sides = [node.left, node.right]
            else:
                continue
            if any(map(_is_no_size, sides)):
                continue
            bare = [s.value if isinstance(s, ast.Subscript) else s for s in sides]
            if any(isinstance(s, ast.Name) and s.id in self.arguments for s in bare):
                return True
        return False


@functools.lru_cache(maxsize=1024)
def _conditions(code: CodeType) -> _Conditions:
    nodes = _nodes(code)
    if not nodes:
        return _Conditions(is_hidden=not code.co_name.startswith("<"))  # the function around it is among them
    names, attributes = _made_of_sizes(nodes)
    taken = nodes[0].args
    arguments = {a.arg for a in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)} - {"self"}
    return _Conditions(tuple(_tests(nodes)), names, frozenset(arguments), attributes)


def _nodes(code: CodeType) -> list[Any]:
    """All that stands in the definition of a function, that first; none where its source is not at hand."""
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
    try:
        (found,) = ast.parse(textwrap.dedent("".join(inspect.getblock(lines)))).body
    except (SyntaxError, ValueError, RecursionError, tokenize.TokenError):
        return []
    named = isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef) and found.name == code.co_name
    return list(ast.walk(found)) if named else []


def _tests(nodes: Collection[ast.AST]) -> Iterator[ast.expr]:
    for node in nodes:
        if isinstance(node, ast.If):
            if not all(isinstance(s, ast.Raise | ast.Assert) for s in (*node.body, *node.orelse)):
                yield node.test
        elif isinstance(node, ast.While | ast.IfExp):
            yield node.test
        elif isinstance(node, ast.comprehension):
            yield from node.ifs
        elif isinstance(node, ast.Match):
            yield node.subject


def _parts(test: ast.expr) -> Iterator[ast.expr]:
    """The expressions in a condition of which it may be a question for a size; not what is asked of objects."""
    waiting: list[ast.expr] = [test]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.Compare) and all(
            isinstance(o, ast.Is | ast.IsNot | ast.In | ast.NotIn) for o in node.ops
        ):
            continue
        if isinstance(node, ast.Compare) and _asks_for_emptiness(node):
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            continue  # of a tensor, it is something else than its size
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _OF_OBJECTS:
            continue
        waiting += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr)]


def _is_size(node: ast.AST, names: Collection[str], attributes: Collection[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in names
    if isinstance(node, ast.Attribute):
        return node.attr == "shape" or (node.attr in attributes and _is_self(node.value))
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        return node.func.attr in _ASK
    return isinstance(node.func, ast.Name) and node.func.id == "len" and not any(map(_is_of_self, node.args))


def _is_no_size(node: ast.expr) -> bool:
    """Whether what is compared with it is no size: a word, a number with a point, a member of an enumeration."""
    if isinstance(node, ast.Constant):
        return type(node.value) is not int
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id[:1].isupper()


def _asks_for_emptiness(node: ast.Compare) -> bool:
    """Whether it is asked if there is anything, ``x.numel() == 0``: of what a size makes there is."""
    sides = [node.left, *node.comparators]
    zeros = [isinstance(s, ast.Constant) and s.value == 0 for s in sides]
    if isinstance(node.ops[0], ast.Lt | ast.GtE) and zeros[-1]:
        return True  # nothing is smaller
    asked = [s.value if isinstance(s, ast.Subscript) else s for s, zero in zip(sides, zeros, strict=True) if not zero]
    return any(zeros) and all(isinstance(s, ast.Attribute | ast.Call) and _is_size(s, (), ()) for s in asked)


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _is_of_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and _is_self(node.value)


def _made_of_sizes(nodes: Collection[ast.AST]) -> tuple[frozenset[str], frozenset[str]]:
    """Local names, and attributes of ``self``, to which a function assigns what is made of sizes."""
    assigned = [(targets, value) for n in nodes for targets, value in _assignments(n)]
    names: set[str] = set()
    attributes: set[str] = set()
    before = -1
    while before != len(names) + len(attributes):
        before = len(names) + len(attributes)
        for targets, value in assigned:
            if any(_is_size(n, names, attributes) for n in ast.walk(value)):
                for target in targets:
                    names |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)} - {"self"}
                    attributes |= {n.attr for n in ast.walk(target) if isinstance(n, ast.Attribute) and _is_of_self(n)}
    return frozenset(names), frozenset(attributes)


def _assignments(node: ast.AST) -> Iterator[tuple[list[ast.expr], ast.expr]]:
    if isinstance(node, ast.Assign):
        yield node.targets, node.value
    elif isinstance(node, ast.AugAssign | ast.NamedExpr | ast.AnnAssign) and node.value is not None:
        yield [node.target], node.value
    elif isinstance(node, ast.For | ast.comprehension):
        yield [node.target], node.iter
