"""Does a repaired model hold at other sizes? Inputs like the dummy input with more samples, smaller, or larger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from speedup.trace.outputs import tensors_in

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

_BATCH = "more samples"


def varied(inputs: Inputs) -> list[dict[str, Inputs]]:
    """Inputs of other sizes by name, made of entries of the given ones: of each group the first that works is enough.

    A position that the code holds may be right for all that is smaller, or larger: both are tried. Of an image one side
    is doubled first, which is cheaper.
    """
    tensors = [t for t in tensors_in(inputs) if t.ndim]
    found = []
    if tensors and len({t.shape[0] for t in tensors}) == 1:
        found.append({_BATCH: _doubled(inputs, (0,))})
    for axes in _choices(tensors):
        found.append({f"smaller {axes}": _halved(inputs, axes)})
        found.append({f"larger {some}": _doubled(inputs, some) for some in dict.fromkeys((axes[-1:], axes))})
    return found


def comparable(name: str, outputs: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> bool:
    """Whether the masked model takes this input as it takes the dummy input.

    A literal ``view(-1, 512)`` may take a larger image for more samples: what it gives then has no meaning.
    """
    if len(outputs) != len(reference):
        return False
    if name == _BATCH:
        return True
    return all(a.shape[:1] == b.shape[:1] for a, b in zip(outputs, reference, strict=True))


def _choices(tensors: Sequence[torch.Tensor]) -> Iterator[tuple[int, ...]]:
    """Axes that may hold positions: those of an image, or one of a sequence."""
    rank = min((t.ndim for t in tensors), default=0)
    if rank >= 4:
        yield tuple(range(2, rank))
    elif rank >= 2:
        yield from ((axis,) for axis in range(1, rank))


def _halved(inputs: Inputs, axes: tuple[int, ...]) -> Inputs:
    def halve(tensor: torch.Tensor) -> torch.Tensor:
        for axis in axes:
            if axis < tensor.ndim and tensor.shape[axis] > 1:
                tensor = tensor.narrow(axis, 0, tensor.shape[axis] // 2)
        return tensor

    smaller: Inputs = pytree.tree_map_only(torch.Tensor, halve, inputs)
    return smaller


def _doubled(inputs: Inputs, axes: tuple[int, ...]) -> Inputs:
    def double(tensor: torch.Tensor) -> torch.Tensor:
        for axis in axes:
            if axis < tensor.ndim:
                tensor = torch.cat([tensor, tensor.flip(axis)], axis)
        return tensor

    larger: Inputs = pytree.tree_map_only(torch.Tensor, double, inputs)
    return larger
