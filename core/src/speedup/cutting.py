"""Cutting kept entries out of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from speedup.arrays import Bools, Indices, along, any_of
from speedup.regular import kept_shape, ragged_axes, varied

Line: TypeAlias = tuple[int, Indices]  # an axis, and what is kept of it

_FEW = 1 << 12  # entries, up to which the way to NumPy and back takes longer than what torch does
_BLOCK = 1 << 18  # bytes of what two cuts in turn leave between them: what a core has at hand
_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# As which type NumPy is shown entries: one of the same width where it has none of their own.
_SHOWN = {dtype: dtype for dtype in (*_INTEGERS, torch.float16, torch.float32, torch.float64)} | {
    torch.bfloat16: torch.int16,
    torch.float8_e4m3fn: torch.uint8,
    torch.float8_e5m2: torch.uint8,
}


def cut(tensor: torch.Tensor, keep: Bools) -> torch.Tensor:
    """Cut the kept entries out of a tensor; a new tensor of shape ``kept_shape(keep, tensor.shape)``."""
    ragged, axes = ragged_axes(keep), varied(keep)
    if ragged and ragged == axes[-1:] and tensor.is_contiguous():
        return _cut_fibres(tensor, keep, axes)
    lines = {a: along(keep, a) for a in axes if a not in ragged}
    tensor = cut_lines(tensor, lines)
    if not ragged:
        return tensor
    for axis, line in lines.items():
        keep = np.compress(line, keep, axis=axis)
    for axis in ragged:
        count = int(keep.sum(axis=axis).max())
        order = np.argsort(~keep, axis=axis, kind="stable")
        index = torch.from_numpy(np.ascontiguousarray(np.take(order, range(count), axis=axis))).to(tensor.device)
        shape = list(tensor.shape)
        shape[axis] = count
        tensor = gather(tensor, axis, index.expand(shape))
        keep = any_of(keep, axis)
    return tensor


def _cut_fibres(tensor: torch.Tensor, keep: Bools, axes: list[int]) -> torch.Tensor:
    """As ``cut``, where the last axis alone is ragged of those that lose entries: these stand in their order then."""
    first, last = axes[0], axes[-1] + 1
    shape = tensor.shape
    line = np.broadcast_to(keep.reshape(keep.shape[first:last]), shape[first:last]).reshape(-1)
    flat = tensor.reshape(*shape[:first], -1, *shape[last:])
    return take(flat, first, line.nonzero()[0]).reshape(kept_shape(keep, shape))


def cut_lines(tensor: torch.Tensor, lines: Mapping[int, Bools]) -> torch.Tensor:
    """Cut the kept indices of each axis out of a tensor."""
    return cut_indices(tensor, {axis: line.nonzero()[0] for axis, line in lines.items()})


def cut_indices(tensor: torch.Tensor, indices: Mapping[int, Indices]) -> torch.Tensor:
    """As ``cut_lines``, by the indices that are kept: two axes at once; else the one that loses most goes first."""
    shape = tensor.shape
    axes = [axis for axis, kept in indices.items() if len(kept) < shape[axis]]
    if len(axes) == 1:
        return take(tensor, axes[0], indices[axes[0]])
    if len(axes) == 2 and _is_cut_by_numpy(tensor, max(axes)):
        first, second = sorted(axes)
        return _take_both(tensor, (first, indices[first]), (second, indices[second]))
    for axis in sorted(axes, key=lambda axis: len(indices[axis]) / shape[axis]):
        tensor = take(tensor, axis, indices[axis])
    return tensor


def gather(tensor: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """As ``torch.gather``, of tensors of any type that is one byte wide too."""
    if tensor.dtype.itemsize == 1 and tensor.is_floating_point():
        return tensor.view(torch.uint8).gather(axis, index).view(tensor.dtype)
    return tensor.gather(axis, index)


def take(tensor: torch.Tensor, axis: int, indices: Indices) -> torch.Tensor:
    """Some indices of an axis, as a new tensor."""
    if tensor.numel() <= _FEW or not _is_cut_by_numpy(tensor, axis):
        at = torch.from_numpy(indices)
        return tensor.detach().index_select(axis, at if tensor.is_cpu else at.to(tensor.device))
    given = _entries(tensor)
    made = room((*given.shape[:axis], len(indices), *given.shape[axis + 1 :]), given.dtype)
    given.take(indices, axis, out=made, mode="clip")  # "raise" would fill a buffer first
    return torch.from_numpy(made).view(tensor.dtype)


def take_into(room: torch.Tensor, tensor: torch.Tensor, axis: int, indices: Indices) -> None:
    """As ``take``, into a contiguous tensor that is there."""
    if _is_cut_by_numpy(tensor, axis):
        _entries(tensor).take(indices, axis, out=_entries(room), mode="clip")
    else:
        torch.index_select(tensor, axis, torch.from_numpy(indices).to(tensor.device), out=room)


def taken(tensor: torch.Tensor, axis: int, indices: Indices) -> torch.Tensor:
    """As ``take``, of a tensor that fills its memory; what comes lies in memory as it does."""
    if tensor.is_contiguous():
        return take(tensor, axis, indices)
    order = outer_first(tensor)
    return take(tensor.permute(order), order.index(axis), indices).permute([order.index(a) for a in range(tensor.ndim)])


def _take_both(tensor: torch.Tensor, first: Line, second: Line) -> torch.Tensor:
    """Some indices of two axes, block by block, as they lie in memory: what the first cut leaves is never there as a
    whole."""
    given = np.ascontiguousarray(_entries(tensor))  # else each block would make it so
    made = room(_shape(given.shape, first, second), given.dtype)
    (axis, indices), (other, others) = first, second
    step = max(1, _BLOCK * given.shape[axis] // max(given.nbytes, 1))
    for at in range(0, len(indices), step):
        block = given.take(indices[at : at + step], axis)
        block.take(others, other, out=made[(slice(None),) * axis + (slice(at, at + step),)], mode="clip")
    return torch.from_numpy(made).view(tensor.dtype)


def laid_out_like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """A tensor with its axes in the order in memory that they have in another one: with channels last, say."""
    if old.ndim != new.ndim or old.layout is not torch.strided or old.is_contiguous():
        return new
    order = outer_first(old)
    if not old.permute(order).is_contiguous():
        return new
    return new.permute(order).contiguous().permute([order.index(axis) for axis in range(old.ndim)])


def outer_first(tensor: torch.Tensor) -> list[int]:
    """The axes in the order in which they lie in memory."""
    steps = tensor.stride()
    return sorted(range(tensor.ndim), key=lambda axis: -steps[axis])


def room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Memory for a tensor: that of NumPy, since that of torch takes far longer to touch where it is large."""
    return np.empty(shape, dtype)


def by_numpy(tensor: torch.Tensor) -> bool:
    """Whether NumPy is some times faster than torch."""
    return tensor.is_cpu and tensor.dtype in (torch.float32, torch.float64)


def _is_cut_by_numpy(tensor: torch.Tensor, axis: int) -> bool:
    """Whether NumPy is some times faster along an axis than torch, which takes whole lines along the first one as fast
    where entries are narrow, and along the others has a way of its own for few types."""
    plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout is torch.strided
    return plain and tensor.is_cpu and tensor.dtype in _SHOWN and (axis > 0 or by_numpy(tensor))


def _entries(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The entries of a tensor that is cut by NumPy, as NumPy is shown them."""
    found: np.ndarray[Any, Any] = tensor.detach().view(_SHOWN[tensor.dtype]).numpy()
    return found


def _shape(shape: tuple[int, ...], *lines: Line) -> tuple[int, ...]:
    sizes = list(shape)
    for axis, indices in lines:
        sizes[axis] = len(indices)
    return tuple(sizes)
