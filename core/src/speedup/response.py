"""The response of a contraction to constants: what they add to its output by way of a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import torch

from speedup.cutting import take
from speedup.facts import Bools, Floats, Indices, along, some, sum_product
from speedup.graph import Node
from speedup.layout import Layout
from speedup.masking import product

# Entries of a weight that are read at a time in float64.
AT_ONCE = 1 << 16


def response(
    node: Node, k: int, weight: int, values: Floats, wanted: Bools, contents: torch.Tensor | None = None
) -> Floats:
    """What a contraction adds to its output for operand ``k`` at these constant values (named space; zero elsewhere).

    Only the columns of the weight with a nonzero value are read, and the rows of the outputs that are asked for, a part
    of them at a time.

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
        mask = by_names(layout, weight, names, source.mask)
    tensor = contents.reshape([layout.sizes[n] for n in names])
    rows: dict[str, Indices] = {}
    columns: dict[str, Indices] = {}
    for name in names:
        p = layout.names.index(name)
        chosen = values != 0 if name in layout.contracted else wanted
        if name in layout.mixed or chosen.shape[p] == 1:
            continue
        at = np.flatnonzero(along(chosen, p))
        if not len(at):  # all nonzero values are in groups that are not asked for
            return nothing
        if len(at) < layout.sizes[name]:
            (columns if name in layout.contracted else rows)[name] = at
            values = np.take(values, at, axis=p) if values.shape[p] > 1 else values
    sizes = {n: len(rows.get(n, columns.get(n, range(layout.sizes[n])))) for n in names}
    free = [n for n in names if n not in layout.contracted | layout.mixed and values.shape[layout.names.index(n)] == 1]
    split = max(free, key=sizes.__getitem__, default=None)
    if split is None or prod(sizes.values()) <= AT_ONCE:
        result = _product(layout, names, tensor, mask, rows | columns, values)
    else:
        at = rows.get(split, np.arange(sizes[split]))
        step = max(1, AT_ONCE * len(at) // prod(sizes.values()))
        parts = [rows | {split: at[start : start + step]} | columns for start in range(0, len(at), step)]
        results = [_product(layout, names, tensor, mask, part, values) for part in parts]
        result = np.concatenate(results, layout.names.index(split))
    for name, at in rows.items():
        result = spread(result, layout.names.index(name), at, layout.sizes[name])
    return result


def spread(array: Floats, axis: int, at: Indices, size: int) -> Floats:
    """The array with its entries at these indices of an axis of ``size``, 0 elsewhere."""
    full = np.zeros([size if a == axis else s for a, s in enumerate(array.shape)])
    full[(slice(None),) * axis + (at,)] = array
    return full


def _product(
    layout: Layout,
    names: Sequence[str],
    tensor: torch.Tensor,
    mask: Bools | None,
    chosen: Mapping[str, Indices],
    values: Floats,
) -> Floats:
    """The same for some indices of a weight that has one axis for each of its names."""
    for name, at in chosen.items():
        axis = names.index(name)
        tensor = take(tensor, axis, at)
        if mask is not None and mask.shape[axis] > 1:
            mask = np.take(mask, at, axis=axis)
    tensor = tensor.to("cpu")
    if mask is not None and not mask.all():
        tensor = product(tensor, torch.from_numpy(mask))
    mixed = [a for a, n in enumerate(names) if n in layout.mixed]
    wide = tensor.sum(mixed, dtype=torch.float64) if mixed else tensor.to(torch.float64)
    names = [n for n in names if n not in layout.mixed]
    matrix = wide.numpy().transpose([names.index(n) for n in layout.names if n in names])
    shape = iter(matrix.shape)
    matrix = matrix.reshape([next(shape) if n in names else 1 for n in layout.names])
    # The weight writes all its contracted names out, so every term is there once.
    return sum_product(matrix, values, layout.contracted_axes)


def by_names(layout: Layout, k: int, names: Sequence[str], mask: torch.Tensor | None) -> Bools | None:
    """The mask of operand ``k`` with one axis for each of its names."""
    if mask is None:
        return None
    named = layout.to_named(k, mask.cpu().numpy())
    order = [layout.names.index(n) for n in names]
    rest = [a for a in range(named.ndim) if a not in order]
    return np.ascontiguousarray(named.transpose([*order, *rest]).reshape([named.shape[a] for a in order]))
