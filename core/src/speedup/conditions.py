"""The conditions in the source of a function, and whether they have to do with the size of a tensor.

A condition is what an ``if``, ``while`` or ``match`` decides by, and a comparison that is returned, or kept in a name.
Sizes are ``x.shape``, ``x.size()``, ``len(x)``, what is made of them, and perhaps arguments. What decides only whether
an error is raised is none.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import linecache
import textwrap
import tokenize
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, TypeGuard

LARGEST = 4096  # of the limits that are tried
_ASK = {"size", "numel", "nelement", "__len__"}  # methods that give sizes
_OF_OBJECTS = {"isinstance", "hasattr", "callable", "issubclass", "type"}
_CHOOSE = {"COMPARE_OP", "FOR_ITER"}  # beside jumps


@functools.lru_cache(maxsize=1024)
def decides(code: CodeType) -> bool:
    """Whether there is any condition in a function, or in one that stands in it."""
    inside = [c for c in code.co_consts if isinstance(c, CodeType)]
    names = {i.opname for i in dis.get_instructions(code)}
    return any(("JUMP" in n and "IF" in n) or n in _CHOOSE for n in names) or any(map(decides, inside))


def limits_in(test: ast.expr) -> Iterator[int]:
    """The whole numbers with which a condition compares or computes."""
    for node in ast.walk(test):
        if isinstance(node, ast.Compare | ast.BinOp):
            for side in ast.iter_child_nodes(node):
                if isinstance(side, ast.Constant) and type(side.value) is int and 0 < side.value <= LARGEST:
                    yield side.value


@dataclass(frozen=True)
class Conditions:
    """The conditions in one function.

    Attributes:
        name: of the function.
        tests: those that decide anything but whether an error is raised, and what is returned if that is a condition.
        compared: comparisons that stand elsewhere.
        counts: of repetitions, which may be none.
        returned: what is returned.
        assigned: what is assigned to what.
        arguments: names of what may be sizes: arguments, and what is made of them alone.
        is_hidden: whether its source is not at hand.
        stands_in: file and name of the function around it, which has its source.
    """

    name: str
    tests: tuple[ast.expr, ...] = ()
    compared: tuple[ast.expr, ...] = ()
    counts: tuple[ast.expr, ...] = ()
    returned: tuple[ast.expr, ...] = ()
    assigned: tuple[tuple[Sequence[ast.expr], ast.expr], ...] = ()
    arguments: frozenset[str] = frozenset()
    is_hidden: bool = False
    stands_in: tuple[str, str] | None = None

    def about_sizes(self, held: frozenset[str]) -> Iterator[ast.expr]:
        """The conditions that have to do with a size.

        Args:
            held: attributes and functions that give sizes.
        """
        names, _ = self._made_of_sizes(held)
        for test in (*self.tests, *self.compared):
            if any(_is_size(n, names, held) for n in _parts(test)):
                yield test
        yield from filter(self._compares_an_argument, self.tests)
        names, _ = self._made_of_sizes(held, lists=False) if self.counts else (set[str](), held)
        for count in self.counts:
            if any(_is_size(n, names, held, lists=False) for n in _parts(count)):
                yield count

    def holding(self, held: frozenset[str]) -> Iterator[str]:
        """Names under which others find what is made of sizes: attributes, and this function, if it gives such."""
        names, attributes = self._made_of_sizes(held)
        yield from attributes
        if any(_is_size(n, names, held) for value in self.returned for n in _plain(value)):
            yield self.name

    def _made_of_sizes(self, held: frozenset[str], lists: bool = True) -> tuple[set[str], set[str]]:
        """Local names, and attributes, to which the function assigns what is made of sizes.

        Args:
            lists: whether ``len`` is a size, which most often is asked of a list where it counts repetitions.
        """
        names, attributes = set[str](), set(held)
        before = -1
        while before != len(names) + len(attributes):
            before = len(names) + len(attributes)
            for targets, value in self.assigned:
                if any(_is_size(n, names, attributes, lists) for n in _within(value)):
                    for target in targets:
                        names |= {n.id for n in _bound(target) if isinstance(n, ast.Name)}
                        attributes |= {n.attr for n in _bound(target) if isinstance(n, ast.Attribute)}
        return names, attributes - held

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
def conditions(code: CodeType) -> Conditions:
    """The conditions in the function with a code."""
    name = code.co_name
    if name.startswith("<"):  # the source of the function around it has it
        around = code.co_qualname.rpartition(".<locals>.")[0]
        return Conditions(name, stands_in=(code.co_filename, around))
    nodes = _nodes(code)
    if not nodes:
        return Conditions(name, is_hidden=True)
    returned = tuple(n.value for n in nodes if isinstance(n, ast.Return) and n.value is not None)
    assigned = tuple(each for n in nodes for each in _assignments(n))
    tests = [*_tests(nodes), *(v for v in returned if isinstance(v, ast.Compare | ast.BoolOp))]
    compared = tuple(_compared(nodes, tests))
    counts = tuple(n.iter for n in nodes if isinstance(n, ast.For | ast.comprehension) and _may_be_none(n.iter))
    return Conditions(name, tuple(tests), compared, counts, returned, assigned, _arguments(nodes, assigned))


def _arguments(nodes: Collection[ast.AST], assigned: Collection[tuple[Sequence[ast.expr], ast.expr]]) -> frozenset[str]:
    taken = [n.args for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
    found = {a.arg for args in taken for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)} - {"self"}
    before = -1
    while before != len(found):
        before = len(found)
        for targets, value in assigned:
            plain = list(_plain(value))
            if not any(isinstance(n, ast.Call) for n in plain) and any(
                isinstance(n, ast.Name) and n.id in found for n in plain
            ):
                found |= {n.id for t in targets for n in _bound(t) if isinstance(n, ast.Name)}
    return frozenset(found)


def _nodes(code: CodeType) -> list[Any]:
    """All that stands in the definition of a function, that first; none where its source is not at hand."""
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
    try:
        found = _parsed(lines[: _last_line(code) - code.co_firstlineno + 1])
    except (
        SyntaxError,
        ValueError,
        RecursionError,
    ):  # what ends the function leaves no trace in the code: the source says where, which takes longer
        try:
            found = _parsed(inspect.getblock(lines))
        except (SyntaxError, ValueError, RecursionError, tokenize.TokenError):
            return []
    named = isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef) and found.name == code.co_name
    return list(ast.walk(found)) if named else []


def _parsed(lines: Sequence[str]) -> ast.stmt:
    """The one statement that stands in some lines."""
    body = ast.parse(textwrap.dedent("".join(lines))).body
    if len(body) != 1:
        raise SyntaxError("not one statement")
    return body[0]


def _last_line(code: CodeType) -> int:
    """The last line that a function has code of."""
    own = max((end for _, end, _, _ in code.co_positions() if end is not None), default=code.co_firstlineno)
    return max([own, *(_last_line(c) for c in code.co_consts if isinstance(c, CodeType))])


def _tests(nodes: Collection[ast.AST]) -> Iterator[ast.expr]:
    for node in nodes:
        if isinstance(node, ast.If):
            if not _only_raises(node):
                yield node.test
        elif isinstance(node, ast.While | ast.IfExp):
            yield node.test
        elif isinstance(node, ast.comprehension):
            yield from node.ifs
        elif isinstance(node, ast.Match):
            yield node.subject
            for case in node.cases:
                yield from [case.guard] if case.guard is not None else []
                values = [n.value for n in ast.walk(case.pattern) if isinstance(n, ast.MatchValue)]
                yield from (ast.Compare(node.subject, [ast.Eq()], [v]) for v in values)


def _only_raises(node: ast.If) -> bool:
    return all(isinstance(s, ast.Raise | ast.Assert) for s in (*node.body, *node.orelse))


def _compared(nodes: Collection[ast.AST], tests: Collection[ast.expr]) -> Iterator[ast.expr]:
    """Comparisons that are no part of a condition."""
    checks: list[ast.expr] = []
    for node in nodes:
        if isinstance(node, ast.Assert) or (isinstance(node, ast.If) and _only_raises(node)):
            checks.append(node.test)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            checks.append(node.value)  # ``torch._assert(...)``
    known = {id(n) for test in (*tests, *checks) for n in ast.walk(test)}
    for node in nodes:
        if isinstance(node, ast.Compare) and id(node) not in known:
            yield node


def _may_be_none(count: ast.expr) -> bool:
    """Whether it takes a size to repeat something at all: ``range(1, n)``, ``range(n // 8)``."""
    if not (isinstance(count, ast.Call) and isinstance(count.func, ast.Name) and count.func.id == "range"):
        return False
    numbers = count.args
    if len(numbers) > 1 and isinstance(numbers[0], ast.Constant) and numbers[0].value == 0:
        numbers = numbers[1:2]
    return len(numbers) > 1 or any(isinstance(n, ast.BinOp) for number in numbers for n in ast.walk(number))


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


def _within(value: ast.AST) -> Iterator[ast.AST]:
    """All that stands in an expression, but for what is asked for its number of axes."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if not _is_rank(node):
            yield node
            waiting += ast.iter_child_nodes(node)


def _is_rank(node: ast.AST) -> bool:
    """Whether it is the number of axes of a tensor."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) and node.func.attr in ("dim", "ndimension") and not node.args
    return isinstance(node, ast.Attribute) and node.attr == "ndim"


def _is_size(node: ast.AST, names: Collection[str], attributes: Collection[str], lists: bool = True) -> bool:
    if isinstance(node, ast.Name):
        return node.id in names
    if isinstance(node, ast.Attribute):
        return node.attr == "shape" or node.attr in attributes
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        return node.func.attr in _ASK  # others are among the attributes
    if not isinstance(node.func, ast.Name):
        return False
    return node.func.id in attributes or (lists and node.func.id == "len" and not any(map(is_of_self, node.args)))


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


def is_of_self(node: ast.AST) -> TypeGuard[ast.Attribute]:
    """Whether an expression is an attribute of ``self``."""
    return isinstance(node, ast.Attribute) and _is_self(node.value)


def _plain(value: ast.expr) -> Iterator[ast.expr]:
    """The expressions of which a value is made as a number, a truth value, or several: not what calls are given."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.Call):
            waiting += node.args if isinstance(node.func, ast.Name) else []
        elif isinstance(node, ast.Subscript):
            waiting.append(node.value)
        elif not isinstance(node, ast.Attribute):
            waiting += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr)]


def _bound(target: ast.expr) -> Iterator[ast.expr]:
    """The names and attributes that an assignment gives another value."""
    if isinstance(target, ast.Tuple | ast.List):
        for each in target.elts:
            yield from _bound(each)
    elif isinstance(target, ast.Starred | ast.Subscript):
        yield from _bound(target.value)
    else:
        yield target


def _assignments(node: ast.AST) -> Iterator[tuple[list[ast.expr], ast.expr]]:
    if isinstance(node, ast.Assign):
        yield node.targets, node.value
    elif isinstance(node, ast.AugAssign | ast.NamedExpr | ast.AnnAssign) and node.value is not None:
        yield [node.target], node.value
    elif isinstance(node, ast.For | ast.comprehension):
        yield [node.target], node.iter
    elif isinstance(node, ast.Match):
        patterns = [n for case in node.cases for n in ast.walk(case.pattern)]
        names = [n.name for n in patterns if isinstance(n, ast.MatchAs | ast.MatchStar) and n.name is not None]
        yield [ast.Name(name) for name in names], node.subject
