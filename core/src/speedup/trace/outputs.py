"""Finding the tensors inside what a call takes or returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size, type)


def tensors_in(tree: Any, depth: int = 8) -> Iterator[torch.Tensor]:
    """Every tensor in nested tuples, lists, dicts, registered containers, and the attributes of other objects."""
    seen: set[int] = set()

    def walk(item: Any, level: int) -> Iterator[torch.Tensor]:
        if isinstance(item, torch.Tensor):
            yield item
            return
        if isinstance(item, _PLAIN) or level > depth or id(item) in seen:
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
        if isinstance(item, torch.nn.Module) or callable(item):
            return
        seen.add(id(item))
        held = getattr(item, "__dict__", None)
        if isinstance(held, dict):
            yield from walk(list(held.values()), level + 1)
        for name in getattr(type(item), "__slots__", ()):
            if isinstance(name, str) and hasattr(item, name):
                yield from walk(getattr(item, name), level + 1)

    return walk(tree, 0)
