"""The response of a contraction to constants: what they add to its output by way of a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import torch

from speedup.arrays import Bools, Floats, Indices, along, every, some
from speedup.cutting import by_numpy, cut_indices
from speedup.layout import Layout
from speedup.masking import masked
from speedup.node import Node

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
    if not some(values) or not some(wanted):
        return np.zeros((1,) * len(layout.names))
    source = node.values[weight]
    assert source is not None
    frame: _Frame = layout.once("weight", weight, lambda: _Frame(layout, weight))
    mask = None
    if contents is None:
        assert source.tensor is not None
        contents = source.tensor.detach()
        if contents.is_meta:  # asked where, not what: see ``infer.unseen``
            contents = torch.zeros(()).expand(contents.shape)
        mask = by_names(layout, weight, source.mask)
    tensor = contents.reshape(frame.shape)
    rows: dict[int, Indices] = {}
    columns: dict[int, Indices] = {}
    for axis, (p, size, is_summed) in frame.lines.items():
        if mask is not None and mask.size == mask.shape[axis] > 1:  # what is masked whole adds nothing
            line = mask.reshape(frame.along[axis])
            values, wanted = (values * line, wanted) if is_summed else (values, wanted & line)
            mask = None
        chosen = values != 0 if is_summed else wanted
        length = chosen.shape[p]
        if length == 1:
            continue
        (at,) = (chosen.reshape(-1) if chosen.size == length else along(chosen, p)).nonzero()
        if not len(at):  # all nonzero values are in groups that are not asked for
            return np.zeros((1,) * len(layout.names))
        if len(at) < size:
            (columns if is_summed else rows)[axis] = at
    few = {axis: at for axis, at in columns.items() if _GATHERING * len(at) < frame.shape[axis]}
    with np.errstate(invalid="ignore"):
        result = _summed(layout, frame, tensor, mask, rows | few, values)
    if len(few) < len(columns) and not np.isfinite(result).all():  # 0 times a column that nobody asks for is no number
        result = _summed(layout, frame, tensor, mask, rows | columns, values)
    for axis, at in rows.items():
        result = spread(result, frame.places[axis], at, frame.shape[axis])
    return result


class _Frame:
    """A weight with one axis for each of its names.

    Attributes:
        names, shape: of its axes.
        places: where they stand in named space.
        lines: for each axis that is not mixed, where it stands in named space, its size, and whether it is contracted.
        along: for each axis the shape in named space of what varies along it alone.
        sums: how it is multiplied with values, by their shape.
    """

    def __init__(self, layout: Layout, weight: int) -> None:
        self.names = [n for dim in layout.operands[weight] or () for n in dim]
        self.shape = [layout.sizes[n] for n in self.names]
        self.places = [layout.names.index(n) for n in self.names]
        self.lines = {
            axis: (p, layout.sizes[n], n in layout.contracted)
            for axis, (n, p) in enumerate(zip(self.names, self.places, strict=True))
            if n not in layout.mixed
        }
        self.sums: dict[tuple[int, ...], _Sum] = {}
        self.along = [[-1 if q == p else 1 for q in range(len(layout.names))] for p in self.places]


class _Sum:
    """How a weight is multiplied with values that vary along some names, as one matrix product for each index of
    ``each``: the axes of the weight in three parts, and how what comes is brought to named space.

    Attributes:
        each: its axes that the values have as well and that stay.
        free: those that the values have not.
        summed: those along which is summed.
        right: how to transpose the values to what the weight is multiplied with.
        further: the axes in named space that the values alone have.
        wide: the axes in named space along which is summed.
        is_matrix: whether the weight lies there as a matrix, the first axis by those along which is summed.
        width: how many columns it has.
        column: the only axis that is longer than 1 of those along which is summed, None if there are others.
    """

    def __init__(self, layout: Layout, frame: _Frame, shape: tuple[int, ...]) -> None:
        names, places = frame.names, frame.places
        kinds = [
            2 if n in layout.contracted or n in layout.mixed else 0 if shape[p] > 1 else 1
            for n, p in zip(names, places, strict=True)
        ]
        self.each, self.free, self.summed = ([a for a, kind in enumerate(kinds) if kind == k] for k in range(3))
        self.wide = [places[a] for a in self.summed]
        self.further = [p for p, size in enumerate(shape) if p not in places and size > 1]
        first = [*(places[a] for a in self.each), *self.wide, *self.further]
        self.right = [*first, *(p for p in range(len(shape)) if p not in first)]
        long = [a for a in self.free if frame.shape[a] > 1]
        summed = [a for a in self.summed if frame.shape[a] > 1]
        self.width = prod([frame.shape[a] for a in summed])
        self.column = summed[0] if len(summed) == 1 else None
        self.is_matrix = not self.each and not self.further and len(long) == 1 and long[0] < min(self.summed, default=0)


def _summed(
    layout: Layout,
    frame: _Frame,
    tensor: torch.Tensor,
    mask: Bools | None,
    chosen: Mapping[int, Indices],
    values: Floats,
) -> Floats:
    """What ``response`` makes of some indices of a weight that has one axis for each of its names, part by part."""
    how = frame.sums.get(values.shape)
    if how is None:
        how = frame.sums[values.shape] = _Sum(layout, frame, values.shape)
    sizes = [*frame.shape]
    for axis, at in chosen.items():
        sizes[axis], p = len(at), frame.places[axis]
        values = values.take(at, p) if values.shape[p] > 1 else values
    # The weight writes all its contracted names out: every term is there once.
    wide = [*values.shape]
    for axis, p in zip(how.summed, how.wide, strict=True):
        wide[p] = sizes[axis]
    if values.shape != tuple(wide):
        narrow, values = values, np.empty(wide)
        values[...] = narrow
    width = prod([sizes[a] for a in how.summed])
    right = values.transpose(how.right).reshape(-1, width, prod([wide[p] for p in how.further]))
    free = sorted(how.free, key=lambda a: -sizes[a]) if len(how.free) > 1 else how.free
    if how.is_matrix and mask is None and by_numpy(tensor) and tensor.is_contiguous():
        row = free[0]
        if all([a in (row, how.column) for a in chosen]):
            lines = tensor.numpy().reshape(-1, how.width)
            columns = None if how.column is None else chosen.get(how.column)
            return _of_lines(lines, chosen.get(row), columns, right[0]).reshape(frame.along[row])
    made = _of_parts(tensor, mask, chosen, right, [*how.each, *free, *how.summed], free[0] if free else None)
    here = [*how.each, *free]
    places = [*(frame.places[a] for a in here), *how.further]
    made = made.reshape([*(sizes[a] for a in here), *(wide[p] for p in how.further)])
    made = made.transpose([places.index(p) for p in sorted(places)])
    found = dict(zip(sorted(places), made.shape, strict=True))
    return made.reshape([found.get(p, 1) for p in range(len(wide))])


def _of_lines(lines: Floats, at: Indices | None, columns: Indices | None, right: Floats) -> Floats:
    """The product of some lines and columns of a matrix, by default all, with a column, some lines at a time."""
    count = len(lines) if at is None else len(at)
    made, step = np.empty((count, 1)), max(1, AT_ONCE // max(1, lines.shape[1]))
    for start in range(0, count, step):
        part = lines[start : start + step] if at is None else lines.take(at[start : start + step], 0)
        if columns is not None:
            part = part.take(columns, 1)
        np.matmul(part.astype(np.float64, copy=False), right, made[start : start + step])
    return made


def _of_parts(
    tensor: torch.Tensor,
    mask: Bools | None,
    chosen: Mapping[int, Indices],
    right: Floats,
    order: list[int],
    split: int | None,
) -> Floats:
    """The products of some indices of a weight, its axes in this order, with a matrix for each of the first ones.

    Args:
        split: the axis of which some indices at a time are read.
    """
    here = dict(chosen)
    sizes = [len(chosen[a]) if a in chosen else size for a, size in enumerate(tensor.shape)]
    count = 1 if split is None else sizes[split]
    step, results = max(1, AT_ONCE * count // max(1, prod(sizes))), []
    for start in range(0, max(1, count), step):  # a weight may have no rows
        if step < count:
            assert split is not None
            line = chosen[split] if split in chosen else np.arange(count)
            here[split] = line[start : start + step]
        part = masked_part(tensor, mask, here).to("cpu").permute(order).to(torch.float64)
        results.append(np.matmul(part.reshape(len(right), -1, right.shape[1]).numpy(), right))
    return results[0] if len(results) == 1 else np.concatenate(results, 1)


def spread(array: Floats, axis: int, at: Indices, size: int) -> Floats:
    """The array with its entries at these indices of an axis of ``size``, 0 elsewhere."""
    full = np.zeros((*array.shape[:axis], size, *array.shape[axis + 1 :]))
    full[(slice(None),) * axis + (at,)] = array
    return full


def masked_part(tensor: torch.Tensor, mask: Bools | None, chosen: Mapping[int, Indices]) -> torch.Tensor:
    """Some indices of some axes, with 0 where the mask is False."""
    for axis, at in chosen.items():
        if mask is not None and mask.shape[axis] > 1:
            mask = mask.take(at, axis)
    part = cut_indices(tensor, chosen) if chosen else tensor
    return part if mask is None or every(mask) else masked(part, torch.from_numpy(np.ascontiguousarray(mask)))


def by_names(layout: Layout, k: int, mask: torch.Tensor | None) -> Bools | None:
    """The mask of operand ``k`` with one axis for each of its names."""
    if mask is None:
        return None
    shape = tuple(mask.shape)
    sizes = layout.once("by names", (k, shape), lambda: _by_names(layout, k, shape))
    return mask.cpu().numpy().reshape(sizes)


def _by_names(layout: Layout, k: int, shape: Sequence[int]) -> list[int]:
    dims = layout.operands[k] or ()
    return [1 if size == 1 else layout.sizes[n] for size, dim in zip(shape, dims, strict=True) for n in dim]
