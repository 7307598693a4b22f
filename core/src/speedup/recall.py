"""Remembering what was found out about a call, for the calls that are made alike: a deep model repeats its blocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import torch

from speedup.node import Node, Ref

_PLAIN = frozenset((int, float, bool, str, type(None), type(...), torch.dtype, torch.device))

Found = TypeVar("Found")


class Recall:
    """The newest ``most`` answers by what was asked; nothing is remembered of what has no key (None)."""

    def __init__(self, most: int = 1024) -> None:
        self.most = most
        self._found: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable | None, find: Callable[[], Found]) -> Found:
        if key is None:
            return find()
        known: Any = self._found.get(key, self)  # one look: keys are long
        if known is not self:
            self._found.move_to_end(key)
            return cast(Found, known)
        found = self._found[key] = find()
        if len(self._found) > self.most:
            self._found.popitem(last=False)
        return found


def call_key(node: Node) -> Hashable | None:
    """The same for two calls of one function with the same arguments on tensors of the same shapes.

    None for calls of modules, and where an argument is of a type that may hide something.
    """
    if node.module is not None:
        return None
    shapes = tuple([(v.shape, v.dtype) for v in (*node.tensors, *node.outputs)])
    try:
        key = (node.op, frozen(node.args), frozen(node.kwargs), shapes, len(node.outputs), node.writes)
        hash(key)
    except TypeError:
        return None
    return key


def frozen(item: Any) -> Hashable:
    """An argument as a key, the same for arguments that a call cannot tell apart.

    Raises:
        TypeError: it may hide something.
    """
    kind = type(item)
    if kind is Ref:
        return Ref, item.number
    if kind in _PLAIN:
        return kind, item
    if isinstance(item, tuple | list):
        return kind, tuple([frozen(i) for i in item])
    if isinstance(item, dict):
        return dict, tuple([(k, frozen(v)) for k, v in item.items()])
    if isinstance(item, slice):
        return slice, frozen((item.start, item.stop, item.step))
    raise TypeError(f"{item!r} may hide something")
