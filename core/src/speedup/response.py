"""The response of a contraction to constants: what they add to its output by way of a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import torch

from speedup.cutting import cut_indices
from speedup.facts import Bools, Floats, Indices, along, some
from speedup.graph import Node
from speedup.layout import Layout
from speedup.masking import product

# Entries of a weight that are read at a time in float64.
AT_ONCE = 1 << 17
# To gather entries takes so many times as long as to multiply them with 0.
_GATHERING = 4


def response(
    node: Node, k: int, weight: int, values: Floats, wanted: Bools, contents: torch.Tensor | None = None
) -> Floats:
    """What a contraction adds to its output for operand ``k`` at these constant values (named space; zero elsewhere).

    Only the rows of the weight for outputs that are asked for are read, a part of them at a time, and of its columns
    those with a nonzero value, where they are few.

    Args:
        wanted: the outputs that are asked for; others may be 0.
        contents: of the weight, if others than its own.
    """
    layout = node.layout
    source = node.values[weight]
    assert source is not None
    nothing = np.zeros((1,) * len(layout.names))
    if not some(values) or not some(wanted):
        return nothing
    names = [n for dim in layout.operands[weight] or () for n in dim]
    mask = None
    if contents is None:
        assert source.tensor is not None
        contents = source.tensor.detach()
        if contents.is_meta:  # asked where, not what: see ``infer.unseen``
            contents = torch.zeros(()).expand(contents.shape)
        mask = by_names(layout, weight, source.mask)
    tensor = contents.reshape([layout.sizes[n] for n in names])
    rows: dict[str, Indices] = {}
    columns: dict[str, Indices] = {}
    for axis, name in enumerate(names):
        p = layout.names.index(name)
        if name in layout.mixed:
            continue
        if mask is not None and mask.size == mask.shape[axis] > 1:  # what is masked whole adds nothing
            line = mask.reshape([-1 if q == p else 1 for q in range(values.ndim)])
            values, wanted = (values * line, wanted) if name in layout.contracted else (values, wanted & line)
            mask = None
        chosen = values != 0 if name in layout.contracted else wanted
        if chosen.shape[p] == 1:
            continue
        at = np.flatnonzero(along(chosen, p))
        if not len(at):  # all nonzero values are in groups that are not asked for
            return nothing
        if len(at) < layout.sizes[name]:
            (columns if name in layout.contracted else rows)[name] = at
    few = {n: at for n, at in columns.items() if _GATHERING * len(at) < layout.sizes[n]}
    with np.errstate(invalid="ignore"):
        result = _summed(layout, names, tensor, mask, rows | few, values)
    if len(few) < len(columns) and not np.isfinite(result).all():  # 0 times a column that nobody asks for is no number
        result = _summed(layout, names, tensor, mask, rows | columns, values)
    for name, at in rows.items():
        result = spread(result, layout.names.index(name), at, layout.sizes[name])
    return result


def _summed(
    layout: Layout,
    names: Sequence[str],
    tensor: torch.Tensor,
    mask: Bools | None,
    chosen: Mapping[str, Indices],
    values: Floats,
) -> Floats:
    """The same for some indices of a weight that has one axis for each of its names, part by part.

    One matrix product per index of the names that the values have as well and that stay.
    """
    sizes = {n: layout.sizes[n] for n in names}
    for name, at in chosen.items():
        sizes[name], p = len(at), layout.names.index(name)
        values = np.take(values, at, axis=p) if values.shape[p] > 1 else values
    shape = dict(zip(layout.names, values.shape, strict=True))
    summed = [n for n in names if n in layout.contracted or n in layout.mixed]
    each = [n for n in names if n not in summed and shape[n] > 1]
    further = [n for n in layout.names if n not in sizes and shape[n] > 1]
    free = sorted([n for n in names if n not in summed and shape[n] == 1], key=lambda n: -sizes[n])
    # The weight writes all its contracted names out: every term is there once.
    width = prod([sizes[n] for n in summed])
    if any([shape[n] != sizes[n] for n in summed]):
        values = np.broadcast_to(values, [sizes[n] if n in summed else s for n, s in shape.items()])
    right = _with_first(values, layout.names, [*each, *summed, *further]).reshape(
        -1, width, prod(shape[n] for n in further)
    )
    order = [names.index(n) for n in (*each, *free, *summed)]
    here = {names.index(n): at for n, at in chosen.items()}
    count = sizes[free[0]] if free else 1
    step, results = max(1, AT_ONCE * count // max(1, prod(sizes.values()))), []
    for start in range(0, count, step):
        if step < count:
            split = names.index(free[0])
            line = chosen[free[0]] if free[0] in chosen else np.arange(count)
            here[split] = line[start : start + step]
        part = masked_part(tensor, mask, here).to("cpu").permute(order).to(torch.float64)
        results.append(np.matmul(part.reshape(len(right), -1, width).numpy(), right))
    made = results[0] if len(results) == 1 else np.concatenate(results, 1)
    made = made.reshape([*(sizes[n] for n in (*each, *free)), *(shape[n] for n in further)])
    named = [n for n in layout.names if (n in sizes and n not in summed) or n in further]
    made = made.transpose([[*each, *free, *further].index(n) for n in named])
    found = dict(zip(named, made.shape, strict=True))
    return made.reshape([found.get(n, 1) for n in layout.names])


def _with_first(array: Floats, names: Sequence[str], first: Sequence[str]) -> Floats:
    """The array with these of its axes first."""
    order = [names.index(n) for n in first]
    return array.transpose([*order, *(p for p in range(len(names)) if p not in order)])


def spread(array: Floats, axis: int, at: Indices, size: int) -> Floats:
    """The array with its entries at these indices of an axis of ``size``, 0 elsewhere."""
    full = np.zeros([size if a == axis else s for a, s in enumerate(array.shape)])
    full[(slice(None),) * axis + (at,)] = array
    return full


def masked_part(tensor: torch.Tensor, mask: Bools | None, chosen: Mapping[int, Indices]) -> torch.Tensor:
    """Some indices of some axes, with 0 where the mask is False."""
    for axis, at in chosen.items():
        if mask is not None and mask.shape[axis] > 1:
            mask = mask.take(at, axis)
    part = cut_indices(tensor, chosen)
    return part if mask is None or mask.all() else product(part, torch.from_numpy(np.ascontiguousarray(mask)))


def by_names(layout: Layout, k: int, mask: torch.Tensor | None) -> Bools | None:
    """The mask of operand ``k`` with one axis for each of its names."""
    if mask is None:
        return None
    dims = layout.operands[k] or ()
    sizes = [1 if size == 1 else layout.sizes[n] for size, dim in zip(mask.shape, dims, strict=True) for n in dim]
    return mask.cpu().numpy().reshape(sizes)
