"""Parameters that a run writes into: as they were, to be put back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.utils import _pytree as pytree

from speedup.masking import memory_of


class Written:
    """The parameters of a model, of which those are saved that a run is about to write into.

    Args:
        parameters: those that are to be watched.
    """

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self._by_memory: dict[int, list[torch.Tensor]] = {}
        for parameter in parameters:
            self._by_memory.setdefault(memory_of(parameter), []).append(parameter)
        self._by_memory.pop(0, None)
        self._contents: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._data: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def holds(self, tensors: Sequence[torch.Tensor], count: int) -> bool:
        """Whether some of the first ``count`` of these tensors stand in the memory of parameters."""
        known = self._by_memory
        return bool(known) and any([memory_of(t) in known for t in tensors[:count]])

    def save(self, tree: object) -> None:
        """A call is about to write into some of these tensors."""
        for tensor in pytree.tree_leaves(tree):
            if isinstance(tensor, torch.Tensor):
                for parameter in self._by_memory.get(memory_of(tensor), ()):
                    if id(parameter) not in self._contents:
                        self._contents[id(parameter)] = parameter.data, parameter.detach().clone()

    def save_data(self, tensor: torch.Tensor) -> None:
        """``tensor.data = ...`` is about to be run."""
        if any(tensor is p for p in self._by_memory.get(memory_of(tensor), ())):
            self._data.setdefault(id(tensor), (tensor, tensor.data))

    def put_back(self) -> None:
        with torch.no_grad():
            for parameter, data in self._data.values():
                parameter.data = data
            for data, contents in self._contents.values():
                data.copy_(contents)
