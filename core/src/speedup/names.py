"""The names of ops: every spelling of a torch function, and one public name for any op.

`variants` is for rules, which claim functions; `op_name` is for people, who read reports.
"""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, GetSetDescriptorType, MethodDescriptorType, WrapperDescriptorType
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import resolve_name

Function = Callable[..., Any]

# The operators of Python that stand for a torch function: its name -> the middle of the special methods.
_BINARY = {
    "add": ("add",),
    "sub": ("sub",),
    "mul": ("mul",),
    "div": ("truediv", "div"),
    "floor_divide": ("floordiv",),
    "remainder": ("mod",),
    "pow": ("pow",),
    "matmul": ("matmul",),
    "bitwise_and": ("and",),
    "bitwise_or": ("or",),
    "bitwise_xor": ("xor",),
    "bitwise_left_shift": ("lshift",),
    "bitwise_right_shift": ("rshift",),
}
_OTHER = {
    "neg": ("neg",),
    "positive": ("pos",),
    "abs": ("abs",),
    "bitwise_not": ("invert",),
    **{name: (name,) for name in ("eq", "ne", "lt", "le", "gt", "ge", "getitem", "setitem")},
}

OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_BUILTIN = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType)
_OPERATOR = re.compile(r"torch\.ops\.\w+\.\w+")

_NAMESPACES: dict[str, Any] = {
    "torch": torch,
    "torch.Tensor": torch.Tensor,
    "torch.nn.functional": F,
    "torch.special": torch.special,
    "torch.linalg": torch.linalg,
}


def variants(name: str, *more: str, missing_ok: bool = False) -> tuple[Function, ...]:
    """Collect every spelling of a torch function, in the form in which it arrives when a model runs.

    For each name these are, as far as they exist: the function in ``torch``, ``torch.nn.functional``,
    ``torch.special`` and ``torch.linalg``, the method of ``Tensor``, the in-place form (``name_``) of each, the Python
    operators that mean the same (``div``: ``x / y``, ``2 / x``, ``x /= y``), and the getter of a ``Tensor`` property
    (``T``, ``mT``).

    An operator goes by the name of its torch function: ``//`` is ``floor_divide``, ``%`` is ``remainder``, ``&`` is
    ``bitwise_and``, ``~`` is ``bitwise_not``; ``x[i]`` and ``x[i] = y`` are ``getitem`` and ``setitem``.
    Mind the operators that arrive with their operands swapped (``2 - x``): see `is_reflected`.
    Other names for the same function (``divide``, ``true_divide``) are names of their own, and given as ``more``.

    Args:
        name: the plain name of the function, such as ``"relu"``.
        more: further names, whose spellings are added.
        missing_ok: skip a name that this version of torch does not know.

    Returns:
        The functions without repetition, in a stable order.

    Raises:
        ValueError: torch has nothing of that name, and ``missing_ok`` is false.

    Example:
        >>> import torch
        >>> torch.nn.functional.relu_ in variants("relu")
        True
    """
    found: dict[Function, None] = {}
    for each in (name, *more):
        spellings = dict.fromkeys(_spellings(each))
        if not spellings and not missing_ok:
            raise ValueError(f"torch has no function called {each!r}{_nearest(each)}")
        found |= spellings
    return tuple(found)


def is_reflected(function: Function) -> bool:
    """Tell whether a function takes its operands swapped, as ``Tensor.__rsub__(x, 2)`` does, which is ``2 - x``.

    Args:
        function: a function as `variants` gives it.

    Example:
        >>> is_reflected(torch.Tensor.__rsub__), is_reflected(torch.sub)
        (True, False)
    """
    try:
        return function in _REFLECTED
    except TypeError:  # not hashable
        return False


def names_operator(name: str) -> bool:
    """Whether a text is the name of a custom operator."""
    return _OPERATOR.fullmatch(name) is not None


def operator_name(op: Any) -> str:
    """How rules call a custom operator, whichever overload it is: ``torch.ops.mylib.my_op``; '' for anything else."""
    packet = op.overloadpacket if isinstance(op, torch._ops.OpOverload) else op
    return op_name(packet) if isinstance(packet, torch._ops.OpOverloadPacket) else ""


@functools.lru_cache(maxsize=4096)
def is_torchs_own(op: Any) -> bool:
    """Whether a function or a module type is part of torch itself."""
    return isinstance(op, _BUILTIN) or (getattr(op, "__module__", None) or "").startswith("torch.nn.")


def op_name(op: Any) -> str:
    """Give the public name of an op, a module type or a function, for messages and lists.

    The name does not depend on where torch happens to keep the implementation, nor on the process.

    Args:
        op: a module type, or a function as it arrives when a model runs, or the name of a custom operator
            (``"torch.ops.mylib.my_op"``). Anything else gets the name of its type.

    Example:
        >>> op_name(torch.nn.Conv2d), op_name(torch.Tensor.add_), op_name(torch.nn.functional.relu)
        ('torch.nn.Conv2d', 'torch.Tensor.add_', 'torch.nn.functional.relu')
    """
    try:
        return _known_name(op)
    except TypeError:  # not hashable
        return _path_of(op)


@functools.lru_cache(maxsize=1024)
def _known_name(op: Any) -> str:
    if isinstance(op, str):
        return op
    if isinstance(op, OPERATORS):
        return f"torch.ops.{op}"
    if isinstance(op, type):
        return _public_path(op)
    own = getattr(op, "__name__", "")
    for prefix, namespace in _NAMESPACES.items():
        if getattr(namespace, own, None) is op:
            return f"{prefix}.{own}"
    name = resolve_name(op)
    if name is not None:
        return str(name).removesuffix(".__get__")
    return _path_of(op)


def _spellings(name: str) -> Iterator[Function]:
    plain = [name] if name.endswith("_") else [name, f"{name}_"]
    for namespace in _NAMESPACES.values():
        for spelling in plain:
            yield from _function(namespace, spelling)
    for stem in _BINARY.get(name, ()):
        for method in (f"__{stem}__", f"__r{stem}__", f"__i{stem}__"):
            yield from _function(torch.Tensor, method)
    for stem in _OTHER.get(name, ()):
        yield from _function(torch.Tensor, f"__{stem}__")


def _function(namespace: Any, name: str) -> Iterator[Function]:
    found = getattr(namespace, name, None)
    if callable(found) and not isinstance(found, type):
        yield found
    elif isinstance(found, (property, GetSetDescriptorType)):
        yield found.__get__  # a property: torch hands its getter to the function mode


def _nearest(name: str) -> str:
    known = {each for namespace in _NAMESPACES.values() for each in dir(namespace) if not each.startswith("_")}
    close = difflib.get_close_matches(name, sorted(known | set(_BINARY) | set(_OTHER)), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _path_of(op: Any) -> str:
    return _public_path(op if hasattr(op, "__qualname__") else type(op))


def _public_path(op: Any) -> str:
    """Find the shortest module path under which an object is offered."""
    module = getattr(op, "__module__", None) or ""
    qualname: str = op.__qualname__
    parts = module.split(".")
    for end in range(1, len(parts)):
        prefix = ".".join(parts[:end])
        if prefix in sys.modules and vars(sys.modules[prefix]).get(qualname) is op:
            return f"{prefix}.{qualname}"
    return f"{module}.{qualname}" if module and module != "builtins" else qualname


_REFLECTED = frozenset(
    function for stems in _BINARY.values() for stem in stems for function in _function(torch.Tensor, f"__r{stem}__")
) | frozenset(_function(torch, "rsub"))
