"""Where a model is planned for several ways at once: the new tensors of one way, to be shared with the others."""

from __future__ import annotations

import torch

from speedup.keep import KeepSets
from speedup.node import Value


class Made:
    """New tensors that were made for one way of the model, so that the others need not hold them a second time."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[KeepSets, Value, torch.Tensor]] = {}
        self._folded: dict[int, list[torch.Tensor]] = {}

    def find(self, keeps: KeepSets, value: Value) -> torch.Tensor | None:
        """The one that was made of the same entries of a parameter or buffer."""
        if value.number not in self._made or value in keeps.orders:
            return None
        others, other, made = self._made[value.number]
        return made if value.is_read == other.is_read and keeps.same(value, others, other) else None

    def add(self, keeps: KeepSets, value: Value, made: torch.Tensor) -> None:
        """Take one in, if its entries stand in their order."""
        if value not in keeps.orders:
            self._made[value.number] = keeps, value, made

    def alike(self, value: Value, folded: torch.Tensor) -> torch.Tensor:
        """New contents into which something was folded, or those of another way that are the same, entry for entry."""
        known = self._folded.setdefault(value.number, [])
        for other in known:
            if other.shape == folded.shape and other.dtype == folded.dtype and torch.equal(other, folded):
                return other
        known.append(folded)
        return folded
