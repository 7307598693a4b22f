"""Edits of single arguments in a method, and the functions and classes that have them.

The class of a repaired module is a subclass made for its edits: of the same name, with the edited methods and nothing
else. Everything that looks at the module meets the user's class (``isinstance``, ``super()``, other methods), copies
of every kind keep the edits, and the user's class and file are untouched. Pickled, a module carries its edits as data;
the methods are made again from the user's class when it is loaded.
"""

from __future__ import annotations

import ast
import contextlib
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

from speedup.errors import SpeedupError
from speedup.names import op_name
from speedup.repair import source
from speedup.repair.method import called_function, exchanged, first_parameter, innermost, of_super
from speedup.repair.source import Def, Definition

Span = tuple[int, int, int, int]


@dataclass(frozen=True)
class Via:
    """A call in a method that goes to an edited copy of the function instead.

    Attributes:
        function, digest: the name and a digest of the definition that makes the call.
        span: the place of the called function's name in it, as in ``Edit``.
    """

    function: str
    digest: str
    span: Span


@dataclass(frozen=True)
class Edit:
    """One argument of one call in a method gives another number.

    Attributes:
        method: its name in the class.
        via: where the method calls the function that is edited; None where that is the method itself.
        function, digest: the name and a digest of the definition that is edited.
        span: first line, column, last line and column of the argument, lines counted from the definition's first.
        item: which item, where the argument is a tuple or list.
        old, new: what it gives without the edit, and with it. Where it is no literal it is multiplied by the ratio,
            so that it stays right if it also counts something that varies (``B * C``). A size of -1 takes its place:
            where one call needs another size in every run, it is "what is left". ``old`` is None where the call
            had no such argument, or None for it.
        text: the argument in the source.
        keyword: the name of an argument that the call in the source does not have; the place is then that of the
            whole call.
        callee: the function that is called instead of the one in the source; the place is again that of the whole
            call, and nothing else is changed of it.
    """

    method: str
    function: str
    digest: str
    span: Span
    item: int | None
    old: int | float | None
    new: int | float | None
    text: str
    via: Via | None = None
    keyword: str | None = None
    callee: Callable[..., Any] | None = None

    def __str__(self) -> str:
        if self.callee is not None:
            return f"-> {op_name(self.callee)}"
        if self.keyword is not None:
            return f"{self.keyword}={_shown(self.new)}"
        if self.old == 1.0 and isinstance(self.old, float):
            return f"{self.text} * {_shown(self.new)}"
        if self.text == str(self.old):
            return f"{self.old} -> {self.new}"
        item = "" if self.item is None else f"[{self.item}]"
        return f"{self.text}{item}: {_shown(self.old)} -> {_shown(self.new)}"


def _shown(number: int | float | None) -> str:
    return f"{number:.6g}" if isinstance(number, float) else str(number)


def span_of(node: ast.expr, tree: Def) -> Span:
    """The place of an expression, lines counted from the line of ``def``."""
    assert node.end_lineno is not None and node.end_col_offset is not None
    return node.lineno - tree.lineno, node.col_offset, node.end_lineno - tree.lineno, node.end_col_offset


class _Replace(ast.NodeTransformer):
    """Puts another expression in the place of one."""

    def __init__(self, span: Span, make: Callable[[ast.expr], ast.expr], tree: Def) -> None:
        self.span = span
        self.make = make
        self.tree = tree
        self.done = False

    def visit(self, node: ast.AST) -> ast.AST:
        value = isinstance(node, ast.expr) and not isinstance(node, ast.Starred | ast.Slice)
        if value and not self.done and span_of(node, self.tree) == self.span:  # type: ignore[arg-type]
            self.done = True
            return _placed(self.make(node), node)  # type: ignore[arg-type]
        result: ast.AST = self.generic_visit(node)
        return result


def _placed(new: ast.expr, old: ast.expr) -> ast.expr:
    """Give all new nodes the place of the old one, so that tracebacks point to it."""
    known = {id(n) for n in ast.walk(old)}
    for node in ast.walk(new):
        if id(node) not in known:
            ast.copy_location(node, old)
    return new


def replacement(node: ast.expr, edit: Edit) -> ast.expr:
    """The expression in the place of an argument."""
    if edit.keyword is not None:
        assert isinstance(node, ast.Call) and edit.new is not None
        others = [k for k in node.keywords if k.arg != edit.keyword]  # an earlier edit may have given it
        return ast.Call(node.func, node.args, [*others, ast.keyword(edit.keyword, _number(edit.new))])
    if edit.callee is not None:
        assert isinstance(node, ast.Call)
        return ast.Call(ast.Name(_name_of(edit.callee), ast.Load()), node.args, node.keywords)
    assert edit.new is not None
    if edit.item is None:
        return scaled(node, edit.old, edit.new)
    v = ast.Name("v", ast.Load())

    def part(lower: int | None, upper: int | None) -> ast.expr:
        bounds = ast.Slice(*(None if b is None else ast.Constant(b) for b in (lower, upper)))
        return ast.Starred(ast.Subscript(v, bounds, ast.Load()), ast.Load())

    one = ast.Subscript(v, ast.Constant(edit.item), ast.Load())
    items = [part(None, edit.item), scaled(one, edit.old, edit.new), part(edit.item + 1, None)]
    only = ast.arguments([], [ast.arg("v")], None, [], [], None, [])
    return ast.Call(ast.Lambda(only, ast.Tuple(items, ast.Load())), [node], [])


def _name_of(function: Callable[..., Any]) -> str:
    """How an edited definition calls a function that it gets in its closure."""
    return f"_{function.__module__}_{function.__name__}".replace(".", "_")


def is_literal(node: ast.expr) -> bool:
    """Whether an expression is made of numbers alone."""
    plain = (ast.Constant, ast.UnaryOp, ast.BinOp, ast.unaryop, ast.operator)
    return all(isinstance(n, plain) for n in ast.walk(node))


def scaled(node: ast.expr, old: int | float | None, new: int | float) -> ast.expr:
    """The expression times ``new / old``; for a literal the new number itself, and for a size that is what is left."""
    if is_literal(node) or not old or isinstance(old, bool) or old > 0 > new:
        return _number(new)
    if isinstance(old, int) and isinstance(new, int):
        ratio = Fraction(new, old)
        out = node
        for operator, factor in ((ast.Mult(), ratio.numerator), (ast.FloorDiv(), ratio.denominator)):
            if factor != 1:
                out = ast.BinOp(out, operator, _number(factor))
        return out
    return ast.BinOp(node, ast.Mult(), _number(new / old))


def _number(value: int | float) -> ast.expr:
    if value < 0:
        return ast.UnaryOp(ast.USub(), ast.Constant(-value))
    return ast.Constant(value)


# -- methods and classes ----------------------------------------------------------------------------------------------


def edited(cls: type, name: str, edits: tuple[Edit, ...]) -> dict[str, Any]:
    """The method of a class with some edits, and copies of the functions that it calls, by their names in the class.

    Raises:
        SpeedupError: its source is not at hand, or another one than the edits were made for.
    """
    held = getattr(cls, name, None)
    members: dict[str, Any] = {}
    places = dict.fromkeys((e.via.function, e.via.digest) if e.via else (e.function, e.digest) for e in edits)
    for place in places:
        function = _defined(held, *place)
        if function is None:
            raise SpeedupError(_unknown(f"{cls.__module__}.{cls.__qualname__}.{name}", edits[0]))
        here = [e for e in edits if e.via is None and (e.function, e.digest) == place]
        steps = [_argument(e) for e in here]
        for via in dict.fromkeys(e.via for e in edits if e.via and (e.via.function, e.via.digest) == place):
            copy = f"_speedup_{name}_{len(members)}"
            made, bound = _callee(cls, function, via, [e for e in edits if e.via == via])
            members[copy] = made if bound else staticmethod(made)
            steps.append((via.span, partial(_own, copy, function)))
        held = exchanged(held, function, _with(function, steps, here))  # type: ignore[arg-type]
    return {**members, name: held}


Step = tuple[Span, Callable[[ast.expr], ast.expr]]


def _argument(edit: Edit) -> Step:
    return edit.span, partial(replacement, edit=edit)


def _own(name: str, method: types.FunctionType, node: ast.expr) -> ast.expr:
    """The function that the class holds, instead of the one that a method names."""
    found = source.definition(method)
    assert found is not None
    return ast.Attribute(ast.Name(first_parameter(found.tree), ast.Load()), name, ast.Load())


def _defined(held: Any, name: str, digest: str) -> types.FunctionType | None:
    """The function with this definition, among a function and those that it decorates."""
    for function in innermost(held):
        found = source.definition(function)
        if found is not None and function.__qualname__ == name and found.digest == digest:
            return function
    return None


def _callee(cls: type, caller: types.FunctionType, via: Via, edits: list[Edit]) -> tuple[types.FunctionType, bool]:
    """A copy, with edits, of the function that a method of a class calls at a place; and whether it is the method of a
    class above."""
    found = source.definition(caller)
    assert found is not None
    names = [n for n in found.nodes if isinstance(n, ast.expr) and span_of(n, found.tree) == via.span]
    called = called_function(caller, names[0], cls) if names else None
    function = _defined(called, edits[0].function, edits[0].digest)
    if called is None or function is None:
        raise SpeedupError(_unknown(edits[0].function, edits[0]))
    return exchanged(called, function, _with(function, [_argument(e) for e in edits], edits)), of_super(names[0])


def _unknown(name: str, edit: Edit) -> str:
    return f"{name} was rewritten for smaller sizes ({edit}), and its source is not at hand, or was changed since"


def _may_hold(statement: ast.stmt, span: Span, tree: Def) -> bool:
    """Whether a statement reaches over a line; of definitions, which may be decorated in front, that is left open."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or statement.end_lineno is None:
        return True
    return statement.lineno <= tree.lineno + span[0] <= statement.end_lineno


def _with(function: types.FunctionType, steps: list[Step], edits: list[Edit]) -> types.FunctionType:
    def change(found: Definition, tree: Def) -> None:
        for span, make in steps:
            step = _Replace(span, make, tree)
            tree.body = [step.visit(s) if _may_hold(s, span, tree) else s for s in tree.body]  # type: ignore[misc]
            if not step.done:
                raise SpeedupError(f"an edited expression is not found in {function.__qualname__}")

    called = {_name_of(e.callee): e.callee for e in edits if e.callee is not None}
    made = source.changed(function, change, called)
    if made is None:
        raise SpeedupError(f"the source of {function.__qualname__} is not at hand")
    return made


class Quiet:
    """Keeps an ``__init_subclass__`` of the user's (which may register classes) from running."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass


def _reduce_ex(self: Any, protocol: Any) -> Any:
    """For copy and pickle: the user's class and the edits instead of the class that was made."""
    owner: type = next(c for c in type(self).__mro__ if "_speedup_edits" in vars(c))
    if type(self) is not owner:
        return super(owner, self).__reduce_ex__(max(2, int(protocol)))  # type: ignore[arg-type]
    base, edits = original(owner)
    with _as(self, base):
        reduced = self.__reduce_ex__(max(2, int(protocol)))
    if isinstance(reduced, str):
        return reduced
    make, args, *rest = reduced
    return (_revive, (edits, make, args), *rest)


def _copying(name: str) -> Callable[..., Any]:
    """A method of the user's that makes a copy (``__deepcopy__``): the copy has the edits."""

    def copied(self: Any, *args: Any) -> Any:
        owner: type = next(c for c in type(self).__mro__ if "_speedup_edits" in vars(c))
        if type(self) is not owner:
            return getattr(super(owner, self), name)(*args)
        base, edits = original(owner)
        with _as(self, base):
            made = getattr(self, name)(*args)
        return _revive(edits, lambda: made, ())

    return copied


@contextlib.contextmanager
def _as(module: Any, cls: type) -> Iterator[None]:
    """A module that is of another class for a while: of the user's, whose methods may write what it computes anew."""
    own = type(module)
    module.__class__ = cls
    try:
        yield
    finally:
        module.__class__ = own


def _revive(edits: tuple[Edit, ...], make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    module = make(*args)
    module.__class__ = rewritten(type(module), edits)
    return module


def original(cls: type) -> tuple[type, tuple[Edit, ...]]:
    """The user's class behind a class, and the edits that were made to it."""
    found: tuple[type, tuple[Edit, ...]] = cls.__dict__.get("_speedup_edits", (cls, ()))
    return found


_made: weakref.WeakValueDictionary[tuple[type, tuple[Edit, ...]], type] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def rewritten(cls: type, edits: tuple[Edit, ...]) -> type:
    """The class with some edits: the same one for the same edits.

    Raises:
        SpeedupError: the source of a method is not at hand.
    """
    base, before = original(cls)
    edits = (*before, *edits)
    if not edits:
        return cls
    with _lock:
        made = _made.get((base, edits))
        if made is None:
            members: dict[str, Any] = {
                "__module__": base.__module__,
                "__qualname__": base.__qualname__,
                "__doc__": base.__doc__,
                "_speedup_edits": (base, edits),
                "__reduce_ex__": _reduce_ex,
                **{name: _copying(name) for name in ("__copy__", "__deepcopy__") if hasattr(base, name)},
            }
            for name in dict.fromkeys(e.method for e in edits):
                members.update(edited(base, name, tuple(e for e in edits if e.method == name)))
            registers = getattr(base.__init_subclass__, "__func__", None) is not None
            bases = (Quiet, base) if registers else (base,)
            made = _made[base, edits] = type(base)(base.__name__, bases, members)
        return made
