"""Finding the tensors, and the other leaves, inside what a call takes or returns."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from speedup.trees import PLAIN

_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size, type)

_PLAIN_LEAVES = (bool, int, float, complex, str, np.ndarray, np.generic)


def is_empty_of_tensors(item: Any) -> bool:
    """Whether an attribute is at first sight one without tensors: a number, a text, nothing, a few of them."""
    kind = type(item)
    return kind in PLAIN or (kind is tuple and PLAIN.issuperset(map(type, item)))


def tensors_in(tree: Any, depth: int = 8) -> Iterator[torch.Tensor]:
    """Every tensor in nested tuples, lists, dicts, registered containers, and the attributes of other objects.

    What a function holds (in its closure, as the object that it is a method of) counts as well.
    """
    seen: set[int] = set()

    def walk(item: Any, level: int) -> Iterator[torch.Tensor]:
        if isinstance(item, torch.Tensor):
            yield item
            return
        if isinstance(item, _PLAIN) or level > depth or id(item) in seen:
            return
        if isinstance(item, tuple | list | dict) and not item:  # most attributes of modules are: hooks
            return
        if type(item) in (tuple, list, dict):
            for inner in item.values() if type(item) is dict else item:
                yield from walk(inner, level if type(inner) in (tuple, list, dict) else level + 1)
            return
        leaves = pytree.tree_leaves(item)
        if len(leaves) != 1 or leaves[0] is not item:
            for leaf in leaves:
                yield from walk(leaf, level + 1)
            return
        if isinstance(item, tuple):  # a named tuple with a constructor of its own
            yield from walk(list(item), level + 1)
            return
        if isinstance(item, torch.nn.Module | types.BuiltinFunctionType):
            return
        seen.add(id(item))
        if callable(item):
            yield from walk(_held_by(item), level + 1)
        held = getattr(item, "__dict__", None)
        if isinstance(held, dict):
            yield from walk(list(held.values()), level + 1)
        for name in getattr(type(item), "__slots__", ()):
            if isinstance(name, str) and hasattr(item, name):
                yield from walk(getattr(item, name), level + 1)

    return walk(tree, 0)


def _held_by(function: Any) -> list[Any]:
    if isinstance(function, types.FunctionType):
        return [_content(c) for c in function.__closure__ or ()] + list(function.__defaults__ or ())
    if isinstance(function, types.MethodType):
        return [function.__self__, function.__func__]
    if isinstance(function, functools.partial):
        return [function.func, function.args, function.keywords]
    return []


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return None


def later(tree: Any) -> str:
    """The type of something in a result that makes its tensors only when it is asked for them; '' where all is made."""
    for leaf in pytree.tree_leaves(_opened(tree)):
        if isinstance(leaf, Iterator | types.CoroutineType | types.AsyncGeneratorType):
            return type(leaf).__name__
    return ""


def plain_leaves(tree: Any) -> dict[str, Any]:
    """The numbers, texts and arrays that a model returns beside its tensors, and where: by path.

    Tensors stand as None: only where they are counts.
    """
    opened = _opened(tree)
    try:
        named = [(pytree.keystr(path), leaf) for path, leaf in pytree.tree_flatten_with_path(opened)[0]]
    except ValueError:  # a container that does not name its parts
        named = [(f"[{number}]", leaf) for number, leaf in enumerate(pytree.tree_leaves(opened))]
    return {name: leaf if isinstance(leaf, _PLAIN_LEAVES) else None for name, leaf in named}


def _opened(tree: Any, depth: int = 8) -> Any:
    """The same with dataclasses, and what else has fields, as dicts of these."""

    def one(leaf: Any) -> Any:
        fields = getattr(leaf, "__dataclass_fields__", None)
        if fields is None or isinstance(leaf, type) or depth <= 0:
            return leaf
        return {name: _opened(getattr(leaf, name, None), depth - 1) for name in fields}

    return pytree.tree_map(one, tree)


@dataclass(frozen=True)
class Returned:
    """What a model returned: copies of its tensors, and the rest by where it stands."""

    tensors: list[torch.Tensor]
    plain: Mapping[str, Any]

    @classmethod
    def of(cls, result: Any) -> Returned:
        return cls([t.detach().clone() for t in tensors_in(result)], plain_leaves(result))
