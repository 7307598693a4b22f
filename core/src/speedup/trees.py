"""Nested containers with other leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils import _pytree as pytree

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


def _is_named_tuple(item: Any) -> bool:
    return isinstance(item, tuple) and hasattr(item, "_fields") and hasattr(item, "_make")
