"""Cutting kept entries out of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from speedup.arrays import Bools, Indices, along, any_of
from speedup.regular import kept_shape, ragged_axes, varied

Line: TypeAlias = tuple[int, Indices]  # an axis, and what is kept of it

_FEW = 1 << 12  # entries, up to which the way to NumPy and back takes longer than what torch does
_MANY = 1 << 16  # entries, up to which memory of torch is as good as that of NumPy
_BLOCK = 1 << 20  # bytes of what two cuts in turn leave between them: what cores have at hand
_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# As which type NumPy is shown entries: one of the same width where it has none of their own.
_SHOWN = {dtype: dtype for dtype in (*_INTEGERS, torch.float16, torch.float32, torch.float64)} | {
    torch.bfloat16: torch.int16,
    torch.float8_e4m3fn: torch.uint8,
    torch.float8_e5m2: torch.uint8,
}
_NUMPY = {dtype: torch.empty(0, dtype=shown).numpy().dtype for dtype, shown in _SHOWN.items()}


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
    if len(axes) == 2 and tensor.nbytes > _BLOCK and _is_plain(tensor):
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
    if tensor.numel() <= (_MANY if _is_cut_by_torch(tensor, axis) else _FEW) or not _is_plain(tensor):
        at = torch.from_numpy(indices)
        return tensor.detach().index_select(axis, at if tensor.is_cpu else at.to(tensor.device))
    made = new_empty(tensor, _shape(tensor.shape, (axis, indices)))
    take_into(made, tensor, axis, indices)
    return made


def take_into(made: torch.Tensor, tensor: torch.Tensor, axis: int, indices: Indices) -> None:
    """As ``take``, into a tensor that is there."""
    tensor = tensor.detach()
    if not _is_cut_by_torch(tensor, axis) and _is_plain(tensor):
        _entries(tensor).take(indices, axis, out=_entries(made), mode="clip")  # "raise" would fill a buffer first
        return
    if axis > 0 and tensor.is_contiguous() and made.is_contiguous():
        # As fast as said below only along the first axis, or the second one.
        new = int(prod(tensor.shape[:axis]) > 1)
        tensor, made, axis = tensor.flatten(0, axis - new), made.flatten(0, axis - new), new
    at = torch.from_numpy(indices)
    torch.index_select(tensor, axis, at if tensor.is_cpu else at.to(tensor.device), out=made)


def _is_cut_by_torch(tensor: torch.Tensor, axis: int) -> bool:
    """Whether torch is at least as fast as NumPy: it takes whole lines in several threads, and has a way of its own for
    single entries of float32."""
    shape = tensor.shape
    return axis == 0 or prod(shape[:axis]) == 1 or (tensor.dtype is torch.float32 and prod(shape[axis + 1 :]) == 1)


def taken(tensor: torch.Tensor, axis: int, indices: Indices) -> torch.Tensor:
    """As ``take``, of a tensor that fills its memory; what comes lies in memory as it does."""
    if tensor.is_contiguous():
        return take(tensor, axis, indices)
    order = outer_first(tensor)
    return take(tensor.permute(order), order.index(axis), indices).permute([order.index(a) for a in range(tensor.ndim)])


def _take_both(tensor: torch.Tensor, first: Line, second: Line) -> torch.Tensor:
    """Some indices of two axes, block by block, as they lie in memory: what the first cut leaves is never there as a
    whole."""
    given = tensor.detach().contiguous()  # else each block would make it so
    made = new_empty(given, _shape(given.shape, first, second))
    (axis, indices), (other, others) = first, second
    step = max(1, _BLOCK * given.shape[axis] // max(given.nbytes, 1))
    block = None
    for at in range(0, len(indices), step):
        some = indices[at : at + step]
        if block is None or len(some) < step:  # the last one has less
            block = new_empty(given, _shape(given.shape, (axis, some)))
        take_into(block, given, axis, some)
        take_into(made.narrow(axis, at, len(some)), block, other, others)
    return made


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


def new_empty(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """As ``tensor.new_empty(shape)``, in ``room`` where that can be."""
    if not _is_plain(tensor):
        return tensor.new_empty(shape)
    return torch.from_numpy(room(tuple(shape), _NUMPY[tensor.dtype])).view(tensor.dtype)


def by_numpy(tensor: torch.Tensor) -> bool:
    """Whether NumPy is some times faster than torch."""
    return tensor.is_cpu and tensor.dtype in (torch.float32, torch.float64)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether NumPy can be shown the entries of a tensor."""
    plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout is torch.strided
    return plain and tensor.is_cpu and tensor.dtype in _SHOWN


def _entries(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The entries of a plain tensor, as NumPy is shown them."""
    found: np.ndarray[Any, Any] = tensor.detach().view(_SHOWN[tensor.dtype]).numpy()
    return found


def _shape(shape: tuple[int, ...], *lines: Line) -> tuple[int, ...]:
    sizes = list(shape)
    for axis, indices in lines:
        sizes[axis] = len(indices)
    return tuple(sizes)
