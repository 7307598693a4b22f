"""Does code go another way where the input is larger? ``if h % 8: x = F.pad(x, ...)``, ``if q.shape[1] > 1: ...``.

A size is a plain number to Python, so that no run shows what becomes of it. The source does, roughly: it is looked for
a condition that has to do with a size, in an ``if`` or as a comparison that is returned (``is_large(x)``) or kept in a
name. Where there is one, the model is run at other sizes to see (``speedup.resized``): what is found here for nothing
costs time, and no more.
"""

from __future__ import annotations

import ast
import inspect
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType

from torch import nn

from speedup.conditions import Conditions, conditions, decides, is_of_self, limits_in
from speedup.graph import Graph
from speedup.trace.source import is_installed, names_in, of_user

_MOST = 300  # functions that are looked at


@dataclass(frozen=True)
class Questions:
    """What is asked for.

    Attributes:
        limits: whole numbers that stand in such conditions.
        attributes: names of attributes that stand in them, which may hold other limits.
    """

    limits: tuple[int, ...] = ()
    attributes: frozenset[str] = frozenset()


def questions(codes: Collection[CodeType]) -> Questions | None:
    """What the code of some functions asks for sizes; None where no condition has to do with one.

    Args:
        codes: functions that the forwards of a model run.

    Example::

        >>> questions([Net.forward.__code__])  # if x.shape[2] > 32: ...
        Questions(limits=(32,), attributes=frozenset())
    """
    found = [conditions(code) for code in codes if decides(code)]
    names = {(code.co_filename, code.co_qualname) for code in codes}
    if any(each.stands_in is not None and each.stands_in not in names for each in found):
        return Questions()
    held = _held([conditions(code) for code in codes]) if found else frozenset()
    tests = [t for each in found for t in each.about_sizes(held)]
    if not tests and not any(each.is_hidden for each in found):
        return None
    attributes = {n.attr for t in tests for n in ast.walk(t) if is_of_self(n)} - held
    return Questions(tuple(sorted({n for t in tests for n in limits_in(t)})), frozenset(attributes))


def _held(found: Collection[Conditions]) -> frozenset[str]:
    """Names of attributes that are made of sizes, and of functions and properties that give such."""
    held = frozenset[str]()
    while True:
        more = held.union(*(each.holding(held) for each in found))
        if more == held:
            return held
        held = more


def code_of(model: nn.Module, graph: Graph) -> set[CodeType]:
    """The functions that the forwards of a model run, and those that they name: methods, functions of their files, and
    what stands in classes and modules that they name.

    Args:
        graph: a run.
    """
    found = {*graph.asking_code} | {code for node in graph.nodes for code, _ in node.sites}
    methods: dict[str, list[FunctionType]] = defaultdict(list)
    for kind in {type(m) for m in model.modules()}:
        for function in _functions(kind):
            methods[function.__name__].append(function)
    # A module that is called may make no call at this size.
    functions = [f for name, each in methods.items() for f in each if name == "forward" or f.__code__ in found]
    seen = {f.__code__ for f in functions}
    packages = {_package(f) for f in functions}
    asked = set(seen)
    while functions and len(seen) < _MOST:
        function = functions.pop()
        for other in _named(function, methods):
            if other.__code__ not in asked and _may_have_sizes(other, packages):
                seen.add(other.__code__)
                functions.append(other)
            asked.add(other.__code__)
    return found | seen


def _may_have_sizes(function: FunctionType, packages: Collection[str]) -> bool:
    """Not so what Python itself brings, and packages that compare versions, say, or read texts.

    Args:
        packages: those that the modules of the model come from.
    """
    code = function.__code__
    return of_user(code) and (not is_installed(code) or _package(function) in packages or _knows_torch(function))


def _package(function: FunctionType) -> str:
    return str(function.__module__).partition(".")[0]


def _knows_torch(function: FunctionType) -> bool:
    """Whether the file of a function has anything of torch."""
    kinds = ModuleType, type, FunctionType
    held = [h for h in function.__globals__.values() if isinstance(h, kinds)]
    return any((h.__name__ if isinstance(h, ModuleType) else str(h.__module__)).startswith("torch") for h in held)


def _functions(kind: type) -> Iterator[FunctionType]:
    """The methods and properties of a class."""
    for base in kind.__mro__:
        for held in vars(base).values():
            function = inspect.unwrap(getattr(held, "fget", None) or getattr(held, "__func__", held))
            if isinstance(function, FunctionType) and of_user(function.__code__):
                yield function


def _named(function: FunctionType, methods: Mapping[str, Collection[FunctionType]]) -> Iterator[FunctionType]:
    """The functions that a function names."""
    names = set(names_in(function.__code__))
    there = [function.__globals__.get(name) for name in names]
    there += [vars(m).get(name) for m in there if isinstance(m, ModuleType) for name in names]
    for name in names - {"__init__"}:  # modules are there by now
        yield from methods.get(name, ())
    for held in there:
        if isinstance(held, FunctionType):
            yield held
        elif isinstance(held, type) and not issubclass(held, nn.Module):
            yield from _functions(held)
