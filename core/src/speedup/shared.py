"""Tensors that stand in the memory of a masked parameter: what is cut gets memory of its own, and they would part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from speedup.errors import InputError
from speedup.graph import Graph
from speedup.masking import memory_of
from speedup.node import Value


def check_shared(graph: Graph) -> None:
    """Refuse a model of which a call reads masked entries of a parameter through another tensor.

    Raises:
        InputError: a view of a masked parameter is held as an attribute or buffer, say, or two parameters with
            different masks are one piece of memory.
    """
    together: dict[int, list[Value]] = defaultdict(list)
    for value in graph.values:
        if value.tensor is not None and not value.tensor.is_meta and value.tensor.layout is torch.strided:
            together[memory_of(value.tensor)].append(value)
    together.pop(0, None)
    for values in [vs for vs in together.values() if len(vs) > 1]:
        for masked in [v for v in values if v.mask is not None]:
            dropped = _places(masked, of_dropped=True)
            for other in _readers(values, masked):
                if np.isin(_places(other), dropped).any():
                    raise InputError(
                        f"{other.label!r} is in the memory of {masked.label!r}, and a call reads entries there that "
                        f"the mask of {masked.label!r} drops. What is cut gets memory of its own, and they would be "
                        "two: hold a copy (clone), or read the parameter itself"
                    )


def _readers(values: Iterable[Value], masked: Value) -> list[Value]:
    assert masked.tensor is not None
    first, last = _span(masked.tensor)
    spans = [(v, *_span(v.tensor)) for v in values if v is not masked and v.uses and v.tensor is not None]
    return [v for v, low, high in spans if low <= last and first <= high]


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The first and the last byte of a tensor."""
    reach = sum((s - 1) * step for s, step in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else -1
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size() - 1


def _places(value: Value, of_dropped: bool = False) -> npt.NDArray[np.int64]:
    """Where the entries of a tensor stand that its mask keeps, or drops."""
    tensor, mask = value.tensor, value.mask
    assert tensor is not None
    places = np.full((1,) * tensor.ndim, tensor.data_ptr(), dtype=np.int64)
    for axis, (size, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        along = np.arange(size, dtype=np.int64) * step * tensor.element_size()
        places = places + along.reshape([-1 if a == axis else 1 for a in range(tensor.ndim)])
    if mask is None:
        return places.reshape(-1)
    kept = mask.expand(tensor.shape).cpu().numpy()
    found: npt.NDArray[np.int64] = places[~kept if of_dropped else kept]
    return found
