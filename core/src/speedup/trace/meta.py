"""Models on the meta device: shapes without contents. They run there, on inputs without contents, and take no memory.

A model of which any parameter or buffer is there runs on meta as a whole. What is known of it then are the masks: an
entry that they take out is 0 whatever the weights are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

Tree = TypeVar("Tree")


def on_meta(model: nn.Module) -> bool:
    """Whether some of a model's tensors have no contents."""
    return any(t.is_meta for t in (*model.parameters(), *model.buffers()))


def to_meta(tree: Tree) -> Tree:
    """The same with every tensor on the meta device."""
    moved: Tree = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), tree)
    return moved


@contextlib.contextmanager
def all_on_meta(model: nn.Module) -> Iterator[None]:
    """The parameters and buffers that have contents go to meta for now, where any is there already."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    moved = [(t, t.data) for t in tensors if not t.is_meta] if on_meta(model) else []
    try:
        for tensor, data in moved:
            tensor.data = data.to("meta")
        yield
    finally:
        for tensor, data in moved:
            tensor.data = data


def made_there(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """For a run of the model: what its code makes (``torch.arange(n)``) is on meta too, where the model is."""
    return torch.device("meta") if on_meta(model) else contextlib.nullcontext()
