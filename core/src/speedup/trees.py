"""Nested containers with other leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

_TUPLES = (tuple, torch.Size)
PLAIN = frozenset((int, float, bool, str, type(None)))


def replaced(kind: type, function: Callable[[Any], Any], tree: Any) -> Any:
    """The same containers with ``function(leaf)`` for every leaf of type ``kind``.

    A named tuple is made without its constructor, which may look at its fields: that of a packed sequence takes
    nothing but tensors.
    """
    if isinstance(tree, kind):
        return function(tree)
    if type(tree) in (tuple, list):  # most calls have no other containers, and there are many calls
        return type(tree)([replaced(kind, function, item) for item in tree])
    if type(tree) is dict:
        return {key: replaced(kind, function, item) for key, item in tree.items()}
    if type(tree) in PLAIN:
        return tree

    def one(leaf: Any) -> Any:
        if _is_named_tuple(leaf):
            return type(leaf)._make(replaced(kind, function, item) for item in leaf)
        return function(leaf) if isinstance(leaf, kind) else leaf

    return pytree.tree_map(one, tree, is_leaf=_is_named_tuple)


def alike(a: Any, b: Any, leaf: Callable[[Any, Any], bool]) -> bool:
    """Whether two arguments are the same containers with leaves that are alike; slices are containers too.

    Args:
        leaf: whether two leaves are.
    """
    if type(a) is not type(b):
        if torch.Size in (type(a), type(b)):  # a copy of it is a tuple
            return type(a) in _TUPLES and type(b) in _TUPLES and alike(tuple(a), tuple(b), leaf)
        return leaf(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(alike(x, y, leaf) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(x, b[key], leaf) for key, x in a.items())
    if isinstance(a, slice):
        return alike((a.start, a.stop, a.step), (b.start, b.stop, b.step), leaf)
    return leaf(a, b)


def equal(a: Any, b: Any) -> bool:
    """Whether two leaves are of one type and equal; False of what does not say so in a word (arrays)."""
    try:
        return a is b or (type(a) is type(b) and bool(a == b))
    except (RuntimeError, ValueError):
        return False


def _is_named_tuple(item: Any) -> bool:
    return isinstance(item, tuple) and hasattr(item, "_fields") and hasattr(item, "_make")
