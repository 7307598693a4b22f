"""What is kept of the parameters and buffers of a model, as new tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from speedup.masking import masked, memory_of
from speedup.node import Value

if TYPE_CHECKING:
    from speedup.keep import KeepSets


def changes(keeps: KeepSets, value: Value) -> bool:
    """Whether a parameter or buffer is another one in the small model, what is folded into it aside."""
    return value in keeps.facts.masked or not _is_as_it_was(keeps, value)


def kept_of(keeps: KeepSets, value: Value, new: torch.Tensor | None = None) -> torch.Tensor:
    """What is kept of a parameter or buffer, as a new tensor.

    Args:
        new: full-size contents, if others than its own.
    """
    assert value.tensor is not None
    whole = value.tensor.detach() if new is None else new
    mask = value.mask if new is None else None
    if _is_as_it_was(keeps, value):
        return whole.clone() if mask is None else masked(whole, mask)
    small = keeps.cut(value, whole).contiguous()
    if mask is None or keeps.lacks_masked(value):  # mostly: what is masked goes
        return small
    mask = keeps.cut_mask(value, mask)
    if mask.all():
        return small
    own = memory_of(small) != memory_of(whole)
    return masked(small, mask, out=small if own else None)


def _is_as_it_was(keeps: KeepSets, value: Value) -> bool:
    """Whether a parameter or buffer keeps its shape and the order of its entries."""
    if value in keeps.orders:
        return False
    lines = keeps.sets.lines
    is_whole = not lines[value] if value in lines else keeps.whole(value)
    return is_whole or not value.is_read
