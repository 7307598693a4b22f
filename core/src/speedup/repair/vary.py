"""Does a repaired model hold at other sizes? Inputs like the dummy input with more samples, smaller, or larger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from speedup.trace.outputs import tensors_in

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

Axes = Callable[[torch.Tensor], tuple[int, ...]]

_BATCH = "more samples"
_IMAGE = 4  # axes of a batch of images, at least


def varied(inputs: Inputs) -> list[dict[str, Inputs]]:
    """Inputs of other sizes by name, made of entries of the given ones: of each group the first that works is enough.

    A position that the code holds may be right for all that is smaller, or larger: both are tried. Of an image one side
    is doubled first, which is cheaper.
    """
    tensors = [t for t in tensors_in(inputs) if t.ndim]
    found = []
    if tensors and len({t.shape[0] for t in tensors}) == 1:
        found.append({_BATCH: _doubled(inputs, lambda _: (0,))})
    images = [t for t in tensors if t.ndim >= _IMAGE]
    if images:
        sides = tuple(range(2, min(t.ndim for t in images)))
        found.append({f"smaller {sides}": _halved(inputs, _of_images(images, sides))})
        some = dict.fromkeys((sides[-1:], sides))
        found.append({f"larger {axes}": _doubled(inputs, _of_images(images, axes)) for axes in some})
    sequences = [t for t in tensors if t.ndim > 1 and t.ndim < _IMAGE and not any(_is_over(t, i) for i in images)]
    for axis in range(1, min((t.ndim for t in sequences), default=0)):
        found.append({f"shorter {axis}": _halved(inputs, _of_sequences(images, axis))})
        found.append({f"longer {axis}": _doubled(inputs, _of_sequences(images, axis))})
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


def _is_over(tensor: torch.Tensor, image: torch.Tensor) -> bool:
    """Whether a tensor has an entry for every pixel of an image, and no channels: a mask."""
    return tensor.shape == image.shape[:1] + image.shape[2:]


def _of_images(images: Sequence[torch.Tensor], sides: tuple[int, ...]) -> Axes:
    """These axes of images, and those of masks over them; nothing of other tensors."""

    def axes(tensor: torch.Tensor) -> tuple[int, ...]:
        if tensor.ndim >= _IMAGE:
            return sides
        return tuple([side - 1 for side in sides]) if any(_is_over(tensor, i) for i in images) else ()

    return axes


def _of_sequences(images: Sequence[torch.Tensor], axis: int) -> Axes:
    """An axis of all that is no image and no mask over one."""

    def axes(tensor: torch.Tensor) -> tuple[int, ...]:
        return (axis,) if tensor.ndim < _IMAGE and not any(_is_over(tensor, i) for i in images) else ()

    return axes


def _halved(inputs: Inputs, axes: Axes) -> Inputs:
    def halve(tensor: torch.Tensor) -> torch.Tensor:
        for axis in axes(tensor):
            if axis < tensor.ndim and tensor.shape[axis] > 1:
                tensor = tensor.narrow(axis, 0, tensor.shape[axis] // 2)
        return tensor

    smaller: Inputs = pytree.tree_map_only(torch.Tensor, halve, inputs)
    return smaller


def _doubled(inputs: Inputs, axes: Axes) -> Inputs:
    def double(tensor: torch.Tensor) -> torch.Tensor:
        for axis in axes(tensor):
            if axis < tensor.ndim:
                tensor = torch.cat([tensor, tensor.flip(axis)], axis)
        return tensor

    larger: Inputs = pytree.tree_map_only(torch.Tensor, double, inputs)
    return larger
