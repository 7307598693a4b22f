"""Whether a class that is derived from another one behaves as that does, as far as its source tells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

# A class body may define these without changing what the module computes.
_HARMLESS = frozenset(
    [
        "__init__",
        "__repr__",
        "extra_repr",
        "reset_parameters",
        "__constants__",
        "_version",
        "__doc__",
        "__module__",
        "__qualname__",
        "__annotations__",
        "__annotate__",
        "__annotate_func__",
        "__annotations_cache__",
        "__firstlineno__",
        "__static_attributes__",
        "__parameters__",
        "__type_params__",
        "__orig_bases__",
        "__slots__",
        "__dict__",
        "__weakref__",
    ]
)


# These decide what a call of the module does, wherever they are defined.
_DECISIVE = frozenset(("forward", "__call__", "_call_impl", "__getattr__", "__getattribute__"))


def behaves_like(derived: Iterable[type], base: type, apart: Sequence[str] = ()) -> bool:
    """Tell whether the classes between a type and a claimed base leave the behaviour of the base alone, but for some
    names."""
    given = ((name, value) for between in derived for name, value in vars(between).items() if name not in apart)
    return all(_leaves_alone(name, value, base) for name, value in given)


def calls_super(forward: Any) -> bool:
    code = getattr(forward, "__code__", None)
    return code is not None and "super" in code.co_names and "forward" in code.co_names


def _leaves_alone(name: str, value: object, base: type) -> bool:
    if name in _DECISIVE:
        return False
    if name in _HARMLESS:
        return True
    if isinstance(value, property):
        return False  # it may stand in for a parameter, as in torch.nn.utils.parametrize
    overridden = [vars(each)[name] for each in _below_module(base) if name in vars(each)]
    unbound = (classmethod, staticmethod)
    return not overridden or (isinstance(value, unbound) and isinstance(overridden[0], unbound))


def _below_module(base: type) -> Iterator[type]:
    for each in base.__mro__:
        if each is nn.Module:
            return
        yield each
