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

from speedup import walk

Tree = TypeVar("Tree")

HERE = contextlib.nullcontext()  # the place of a model that is not on meta


def on_meta(model: nn.Module) -> bool:
    """Whether some of a model's tensors have no contents."""
    return any([t.is_meta for t in walk.places(model)])


def to_meta(tree: Tree) -> Tree:
    """The same with every tensor on the meta device."""
    moved: Tree = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), tree)
    return moved


class StandIns:
    """Tensors without contents that stand for those of a model that have some, while it runs on meta.

    Attributes:
        originals: by the identity of the stand-in.
    """

    def __init__(self, model: nn.Module, always: bool = False) -> None:
        self.originals: dict[int, torch.Tensor] = {}
        self._alive: dict[int, torch.Tensor] = {}  # by the identity of the original
        self._held: list[dict[str, Any]] = (
            [h for m in walk.modules(model) for h in (m._parameters, m._buffers)] if always or on_meta(model) else []
        )

    def put_in(self) -> None:
        for held in self._held:
            for name, tensor in held.items():
                if tensor is not None and not tensor.is_meta:
                    held[name] = self._for(tensor)

    def take_out(self) -> None:
        for held in self._held:
            self.give_back(held)

    def give_back(self, held: dict[str, Any]) -> None:
        """Put the originals where stand-ins are."""
        for name, tensor in held.items():
            if id(tensor) in self.originals:
                held[name] = self.originals[id(tensor)]

    def _for(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in self._alive:
            made = tensor.detach().to("meta")
            if isinstance(tensor, nn.Parameter):
                made = nn.Parameter(made, tensor.requires_grad)
                made.__dict__.update(tensor.__dict__)
            self._alive[id(tensor)] = made
            self.originals[id(made)] = tensor
        return self._alive[id(tensor)]


@contextlib.contextmanager
def all_on_meta(model: nn.Module, always: bool = False) -> Iterator[StandIns]:
    """Where any parameter or buffer is on meta, the others have stand-ins there for now.

    Args:
        always: also where none is.
    """
    stands = StandIns(model, always)
    try:
        stands.put_in()
        yield stands
    finally:
        stands.take_out()


def made_there(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """For a run of the model: what its code makes (``torch.arange(n)``) is on meta too, where the model is."""
    return torch.device("meta") if on_meta(model) else HERE
