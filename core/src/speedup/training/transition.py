"""From the tensors of a model to those of the small one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import torch
from torch import nn

from speedup import walk
from speedup.cutting import laid_out_like
from speedup.errors import InputError
from speedup.keep import KeepSets
from speedup.node import Value


class Transition:
    """Where every entry of the model's tensors has gone. Made before the small parts are put in.

    Attributes:
        old: the parameters and buffers as they were, by name; a tied one under each of its names.
    """

    def __init__(self, model: nn.Module, keeps: KeepSets, masks: Mapping[str, torch.Tensor]) -> None:
        self.model = model
        self.old = dict(walk.named_tensors(model))
        self._given = masks
        self._keeps = keeps

    @cached_property
    def _masks(self) -> dict[int, torch.Tensor]:
        """By identity of the old ones: of a tied parameter all masks are the same, and not every name of it need have
        one."""
        return {id(self.old[name]): mask for name, mask in self._given.items()}

    @cached_property
    def _values(self) -> dict[str, Value]:
        return {name: value for value in self._keeps.graph.sources for name in value.names}

    @cached_property
    def new(self) -> dict[str, torch.Tensor]:
        """The parameters and buffers of the small model, by name; not to be asked for before it is there."""
        return dict(walk.named_tensors(self.model))

    def renewed(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """The tensors that others have taken the place of: a name, the old and the new one, each once."""
        new = self.new
        seen: set[int] = set()
        for name, old in self.old.items():
            if id(old) not in seen and name in new and new[name] is not old:
                seen.add(id(old))
                yield name, old, new[name]

    def cut(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What is left of a tensor of the old shape, such as a momentum."""
        value = self._values.get(name)
        if value is None or not value.is_read:
            return tensor.detach().clone()
        sparse = tensor.layout != torch.strided
        dense = tensor.detach().to_dense() if sparse else tensor.detach()
        small = laid_out_like(dense, self._keeps.cut(value, dense).contiguous()).clone()
        return small.to_sparse(tensor.sparse_dim()) if sparse and tensor.layout == torch.sparse_coo else small

    def cut_factor(self, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        """The same for a tensor that broadcasts to the old shape (the rows of a factored moment); None when what is
        left of it depends on the entry that it is broadcast to."""
        shape = self.old[name].shape
        single = [a for a, s in enumerate(tensor.shape) if s == 1 != shape[a]]
        wide = self.cut(name, tensor.expand(shape))
        small = wide
        for axis in single:
            small = small.narrow(axis, 0, 1)
        return small.clone() if torch.equal(small.expand_as(wide), wide) else None

    def average(self, name: str, average: torch.Tensor) -> torch.Tensor:
        """An averaged copy of a tensor made small: cut at the same places, and shifted by what folding added."""
        new, old = self.new[name], self.old[name]
        if average.shape != old.shape:
            raise InputError(f"the averaged copy of {name} is {_text(average)}, and the model's is {_text(old)}")
        if new is old:
            return average.detach().clone()
        mask = self._masks.get(id(old), torch.ones(()))
        kept, before = (self.cut(name, t * mask.to(t)) for t in (average, old))
        if not kept.is_floating_point():
            return kept
        shift = new.detach().to(torch.float64) - before.to(torch.float64)
        return (kept + shift.to(kept.device)).to(average.dtype) if bool(shift.any()) else kept


def _text(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
