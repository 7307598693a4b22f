"""From a function to its definition in the user's source, and from a changed definition back to a function.

Only a definition that compiles to exactly the code of the function is used: a file that was changed since it was
imported, code that was made by ``exec`` or rewritten on import count as having no source.
"""

from __future__ import annotations
import __future__

import ast
import copy
import functools
import hashlib
import linecache
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

Def = ast.FunctionDef | ast.AsyncFunctionDef
_SCOPES = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_FUTURE = functools.reduce(int.__or__, (getattr(__future__, n).compiler_flag for n in __future__.all_feature_names))


@dataclass(frozen=True, eq=False)
class Definition:
    """Where a function is defined.

    Attributes:
        scopes: the classes and functions around the definition, outermost first, and the definition itself.
        source: the text of the file.
        digest: changes when the text of the definition changes, wherever in the file it stands.
        imports: of the file; the compiler treats calls of what is imported in another way.
    """

    scopes: tuple[Any, ...]
    source: str
    digest: str
    imports: tuple[Any, ...]

    @property
    def tree(self) -> Def:
        found: Def = self.scopes[-1]
        return found

    @functools.cached_property
    def nodes(self) -> list[ast.AST]:
        """Everything in the definition."""
        return list(ast.walk(self.tree))

    def text(self, node: ast.expr) -> str:
        """An expression as it is written, in one line."""
        assert node.end_lineno is not None and node.end_col_offset is not None
        lines = [line.encode() for line in _lines(self.source)[node.lineno - 1 : node.end_lineno]]
        lines[-1] = lines[-1][: node.end_col_offset]
        lines[0] = lines[0][node.col_offset :]
        return " ".join(b" ".join(lines).decode().split())


def definition(function: types.FunctionType) -> Definition | None:
    """The definition of a function; None when its source is not at hand."""
    code = function.__code__
    linecache.checkcache(code.co_filename)
    source = "".join(linecache.getlines(code.co_filename, function.__globals__))
    return _definition(function.__code__, source) if source else None


@functools.lru_cache(maxsize=256)
def _definition(code: types.CodeType, source: str) -> Definition | None:
    try:
        found = _find(code.co_filename, source, code.co_name, code.co_firstlineno)
        if found is not None:
            # A console or notebook may have compiled the imports apart.
            for each in (found, replace(found, imports=())):
                if _compiled(code, each, each.tree) == code:
                    return each
    except (SyntaxError, ValueError, RecursionError):
        pass
    return None


@functools.lru_cache(maxsize=256)
def _find(filename: str, source: str, name: str, line: int) -> Definition | None:
    for chain in _chains(_parsed(filename, source), ()):
        tree = chain[-1]
        first = min([tree.lineno, *(d.lineno for d in tree.decorator_list)])
        if not isinstance(tree, ast.ClassDef) and tree.name == name and first == line:
            lines = source.splitlines()[first - 1 : tree.end_lineno]
            digest = hashlib.sha256(textwrap.dedent("\n".join(lines)).encode()).hexdigest()[:16]
            return Definition(chain, source, digest, tuple(_imports(_parsed(filename, source))))
    return None


@functools.lru_cache(maxsize=8)
def _parsed(filename: str, source: str) -> ast.Module:
    return ast.parse(source, filename)


@functools.lru_cache(maxsize=8)
def _lines(source: str) -> list[str]:
    return ast._splitlines_no_ff(source)  # type: ignore[attr-defined,no-any-return]


def _chains(node: ast.AST, above: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Every class and function in a tree, with the scopes around it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _SCOPES):
            yield (*above, child)
            yield from _chains(child, (*above, child))
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _chains(child, above)


def _imports(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.stmt | ast.excepthandler) and not isinstance(child, _SCOPES):
            yield from _imports(child)


_AROUND = "_speedup"


def _compiled(old: types.CodeType, found: Definition, tree: Def, closed: Iterable[str] = ()) -> types.CodeType | None:
    """The code of a function with a (changed) definition: compiled in its scopes, so that closures and private names
    mean the same.

    Args:
        closed: further names that are to be found in the closure.
    """
    built: Any = tree
    for inner, scope in zip(reversed(found.scopes), reversed(found.scopes[:-1]), strict=False):
        if isinstance(scope, ast.ClassDef):
            shell = copy.copy(scope)
            shell.bases, shell.keywords, shell.decorator_list, shell.body = [], [], [], [built]
            built = shell
        else:
            built = copy.deepcopy(scope, {id(inner): built})
    names: list[ast.expr] = [ast.Name(name, ast.Store()) for name in closed]
    if names:
        around: Any = ast.parse(f"def {_AROUND}(): ...").body[0]
        around.body = [ast.Assign(names, ast.Constant(None)), built]
        built = ast.fix_missing_locations(around)
    module = ast.Module(body=[*found.imports, built], type_ignores=[])
    code = compile(module, old.co_filename, "exec", flags=old.co_flags & _FUTURE, dont_inherit=True)
    for each in nested(code):
        if each.co_name == old.co_name and each.co_firstlineno == old.co_firstlineno:
            return _inside_of(f"{_AROUND}.<locals>.", each) if names else each
    return None


def _inside_of(around: str, code: types.CodeType) -> types.CodeType:
    """Code, and all that is defined inside it, by the names that it has without what was put around it."""
    consts = tuple(_inside_of(around, c) if isinstance(c, types.CodeType) else c for c in code.co_consts)
    return code.replace(co_qualname=code.co_qualname.removeprefix(around), co_consts=consts)


def nested(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and all that is defined inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from nested(constant)


def changed(
    function: types.FunctionType, change: Callable[[Definition, Def], None], closed: Mapping[str, Any] | None = None
) -> types.FunctionType | None:
    """A copy of a function whose definition was changed: same globals, closure, defaults, file and line numbers.

    Args:
        change: gets the definition and a copy of its tree, which it may change.
        closed: what further names in the changed definition stand for.
    """
    found = definition(function)
    if found is None:
        return None
    tree = copy.deepcopy(found.tree)
    change(found, tree)
    ast.fix_missing_locations(tree)
    closed = closed or {}
    code = _compiled(function.__code__, found, tree, closed)
    return None if code is None else with_code(function, code, more=closed)


def with_code(
    function: types.FunctionType, code: types.CodeType, cells: Any = None, more: Mapping[str, Any] | None = None
) -> types.FunctionType:
    """A copy of a function with other code, or other and more contents in its closure."""
    held = dict(zip(function.__code__.co_freevars, cells or function.__closure__ or (), strict=False))
    held |= {name: types.CellType(value) for name, value in (more or {}).items()}
    closure = tuple(held[name] for name in code.co_freevars) or None
    made = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    made.__annotations__ = function.__annotations__
    made.__qualname__, made.__module__, made.__doc__ = function.__qualname__, function.__module__, function.__doc__
    return made
