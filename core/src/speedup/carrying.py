"""What goes of an operand is carried by what stays, see ``speedup.fold``: the weight gets other numbers.

x[i] = sum over k and r of shares[r, i] · left[k, r] · x[k], with the kept entries k (``Span``): what the weight has at
[.., i] is added to its columns of the carriers, by way of one column per direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from speedup.arrays import Bools, Floats, Indices
from speedup.cutting import by_numpy, new_empty, take, take_into
from speedup.layout import Layout
from speedup.node import Node, Value
from speedup.order import in_order
from speedup.pieces import contents
from speedup.products import matmul
from speedup.response import AT_ONCE, by_names, masked_part, spread
from speedup.rows import Rows

if TYPE_CHECKING:
    from speedup.keep import KeepSets
    from speedup.removed import Removed


def carry(node: Node, gone: Removed, rows: Rows, keeps: KeepSets, bias: bool) -> tuple[torch.Tensor, Floats | None]:
    """Add the columns of what goes onto those of the carriers.

    Args:
        bias: whether constants go into a bias.

    Returns:
        what is kept of the weight, or all of it where that is a piece of a parameter; and, for the bias, what the
        output gets of the constant part of the carriers, in named space.
    """
    assert gone.weight is not None
    value = node.values[gone.weight]
    assert value is not None
    span = rows.carriers.span
    sources, targets, leaving, staying = rows.sources, rows.targets, span.shares, span.left
    if not bias:
        grouped = _Grouped.of(node, gone.weight, rows, keeps)
        if grouped is not None:
            made = grouped.carry((sources, leaving), (targets, staying))
            return in_order(made, keeps.orders.get(value, {})), None
    weight = _Weight(node, gone.weight, rows, keeps)
    # Of each group, for all of the rest in front of the contracted name in memory.
    going, shares = weight.numbers(leaving)[:, None], weight.numbers(staying)[:, None]
    at = np.searchsorted(weight.columns, targets)
    ways = []
    with np.errstate(invalid="ignore", over="ignore"):  # a weight may have anything
        for part, new in weight.parts(sources):
            # By way of one column per unknown.
            way = matmul(going, weight.factored(part))
            carriers = weight.factored(take(new, weight.axes.axis, at))
            weight.put(carriers + matmul(shares, way), at, new)
            if bias:
                ways.append(weight.by_unknown(way, part))
    made = weight.new.reshape(weight.shape)
    if value.is_source and not weight.is_cut:
        made = keeps.cut(value, made).contiguous()
    if not bias:
        return made, None
    offset = np.einsum("gk,gkr->gr", span.offset, staying)
    joined = np.concatenate(ways, axis=2) if weight.axes.rest else ways[0]  # a vector has no rest, and is one part
    return made, weight.named(np.einsum("gr,gr...->g...", offset, joined))


@dataclass(frozen=True, eq=False)
class _Grouped:
    """A weight in groups, as of a grouped convolution, of each of which as many rows and columns are kept.

    Attributes:
        value: a parameter, whose first axis is that of the groups and their rows, and whose second is the contracted.
        rows, columns: which are kept, bool (groups, rows of a group) and (groups, columns).
    """

    value: Value
    rows: Bools
    columns: Bools

    @staticmethod
    def of(node: Node, k: int, rows: Rows, keeps: KeepSets) -> _Grouped | None:
        """None where it is another one."""
        value, dims = node.values[k], node.layout.operands[k]
        assert value is not None and dims is not None
        if not value.is_source or rows.groups < 2:  # of a single group mostly few columns carry
            return None
        if dims[0][:-1] != tuple(rows.outer) or dims[1:2] != ((rows.contracted,),):
            return None
        keep, groups, width = keeps.sets[value], rows.groups, rows.width
        if prod(keep.shape[2:]) > 1:
            return None
        kept = np.broadcast_to(keep.reshape(keep.shape[:2]), value.shape[:2]).reshape(groups, -1, width)
        lines, columns = np.asarray(kept.any(axis=2)), np.asarray(kept.any(axis=1))
        most = np.count_nonzero(lines, axis=1).max() * np.count_nonzero(columns, axis=1).max()
        # As many as with the largest counts in every group: so all have these, and the set is a box in each.
        if np.count_nonzero(kept) != groups * most:
            return None
        return _Grouped(value, lines, columns)

    def carry(self, gone: tuple[Indices, Floats], kept: tuple[Indices, Floats]) -> torch.Tensor:
        """What is kept of the weight, with the columns of what goes on those of the carriers.

        Args:
            gone: columns that go, and how much each has of each unknown, (groups, unknowns, columns).
            kept: columns that carry, and how much each gets of them, (groups, columns, unknowns).
        """
        assert self.value.tensor is not None
        whole, (groups, width) = self.value.tensor.detach(), self.columns.shape
        at = self.rows.reshape(-1).nonzero()[0].reshape(groups, -1)
        all_shares = np.zeros((groups, width, kept[1].shape[2]))
        all_shares[:, kept[0]] = kept[1]
        count = int(np.count_nonzero(self.columns[0]))
        sources, going, columns, shares = (
            torch.from_numpy(np.ascontiguousarray(array)).to(whole.device)
            for array in (*gone, self.columns.reshape(-1).nonzero()[0], all_shares[self.columns])
        )
        shares = shares.reshape(groups, count, -1)
        mask = None if self.value.mask is None else self.value.mask.cpu().numpy()
        new: torch.Tensor = whole.new_empty(groups, at.shape[1], count, prod(whole.shape[2:]))
        step = max(1, AT_ONCE * at.shape[1] // (at.size * prod(whole.shape[1:])))
        for start in range(0, at.shape[1], step):
            lines = at[:, start : start + step]
            part = masked_part(whole, mask, {0: lines.reshape(-1)}).reshape(groups, lines.shape[1], width, -1)
            # By column: what is kept of a group is a product of matrices.
            wide = part.transpose(1, 2).to(torch.float64, memory_format=torch.contiguous_format)
            wide = wide.reshape(groups, width, -1)
            way = torch.bmm(going, wide.index_select(1, sources))
            sums = wide.reshape(groups * width, -1).index_select(0, columns).reshape(groups, count, -1)
            sums = torch.baddbmm(sums, shares, way).reshape(groups, count, lines.shape[1], -1)
            new.narrow(1, start, lines.shape[1]).copy_(sums.transpose(1, 2))
        return new.reshape(at.size, count, *whole.shape[2:])


class _Axes:
    """The axes of a weight by its names: the same for all calls of a layout.

    Attributes:
        names, sizes: of each.
        order: those of the groups first, the others as they lie in memory.
        back: how to transpose what stands in this order to what it was.
        axis: that of the contracted name.
        outer: those of the groups.
        rest: the others, in their order; front, behind: those in front of the contracted one, and behind it.
        long: by axis of the weight as it is, which of these are longer than 1.
    """

    def __init__(self, layout: Layout, k: int, rows: Rows) -> None:
        dims = layout.operands[k]
        assert dims is not None
        names = self.names = [n for dim in dims for n in dim]
        self.sizes = [layout.sizes[n] for n in names]
        self.outer = [names.index(n) for n in rows.outer]
        self.axis = names.index(rows.contracted)
        self.rest = [a for a in range(len(names)) if a != self.axis and a not in self.outer]
        self.front = [a for a in self.rest if a < self.axis]
        self.behind = [a for a in self.rest if a > self.axis]
        self.order = [*self.outer, *(a for a in range(len(names)) if a not in self.outer)]
        self.back = [self.order.index(a) for a in range(len(names))]
        self.long = [[names.index(n) for n in dim if layout.sizes[n] > 1] for dim in dims]

    @staticmethod
    def of(layout: Layout, k: int, rows: Rows) -> _Axes:
        found: _Axes = layout.once("axes", (k, rows.contracted, *rows.outer), lambda: _Axes(layout, k, rows))
        return found


class _Weight:
    """A weight by its names, of which no more is read at a time than is computed with.

    Attributes:
        axes: its axes.
        is_cut: whether only what is kept is made: it is a box, and groups and parts of axes stay whole.
        columns: the indices of the contracted name that are made.
        new: what is made; ``parts`` puts there what is kept, as it is.
        shape: that of what is made, with the axes that the weight has.
    """

    def __init__(self, node: Node, k: int, rows: Rows, keeps: KeepSets) -> None:
        layout = self._layout = node.layout
        value = node.values[k]
        assert value is not None
        axes = self.axes = _Axes.of(layout, k, rows)
        self._groups = rows.groups
        lines = keeps.box(value) if value.is_source else None
        self._kept: dict[int, Indices] = {}
        self.is_cut = lines is not None
        for axis, indices in lines.indices.items() if lines is not None else ():
            long = axes.long[axis]
            if len(long) != 1 or long[0] in axes.outer:
                self.is_cut, self._kept = False, {}
                break
            self._kept[long[0]] = indices
        self._whole = (contents(value) if value.tensor is None else value.tensor.detach()).reshape(axes.sizes)
        self._by_numpy = by_numpy(self._whole)
        self._mask = by_names(layout, k, value.mask if value.is_source else None)
        self.columns = self._at(axes.axis)
        self.shape = keeps.shape(value) if self.is_cut else tuple(value.shape)
        self.new = new_empty(self._whole, [len(self._at(a)) for a in range(len(axes.sizes))])

    def _at(self, axis: int) -> Indices:
        """The indices of an axis that are made."""
        return self._kept[axis] if axis in self._kept else np.arange(self._whole.shape[axis])

    def parts(self, columns: Indices) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Some columns, by index of the contracted name, of some rows that are made; and these rows, in their place.

        A row is read once: for what is kept of it, and for what is computed with.
        """
        axis = self.axes.axis
        for rows, new in self._rows():
            take_into(new, rows, axis, self.columns)
            yield take(rows, axis, columns), new

    def _rows(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The rows that are made, whole, some at a time; and where they are made."""
        if not self.axes.rest:
            yield self._read({}), self.new
            return
        axis, first = self.axes.axis, self.axes.rest[0]
        at, kept = self._at(first), {a: indices for a, indices in self._kept.items() if a != axis}
        size = prod([self._whole.shape[a] if a == axis else n for a, n in enumerate(self.new.shape) if a != first])
        step = max(1, 2 * AT_ONCE // max(1, size))  # mostly half of a row is computed with
        for start in range(0, len(at), step):
            rows = at[start : start + step]
            yield self._read(kept | {first: rows}), self.new.narrow(first, start, len(rows))

    def _read(self, chosen: Mapping[int, Indices]) -> torch.Tensor:
        return masked_part(self._whole, self._mask, chosen)

    def numbers(self, array: Floats | Indices) -> Any:
        """An array as what the weight is computed with: itself, or a tensor where the weight is."""
        return array if self._by_numpy else torch.from_numpy(np.ascontiguousarray(array)).to(self._whole.device)

    def factored(self, part: torch.Tensor) -> Any:
        """Some columns of a part in float64 as (groups, rest in front, columns, rest behind), as it lies in memory:
        that is what products take as well. Without a rest behind, what is in front counts as that."""
        axes = self.axes
        wide: Any = part.permute(axes.order)
        wide = wide.numpy().astype(np.float64, copy=False) if self._by_numpy else wide.to(torch.float64)
        shape = part.shape
        front, behind = prod([shape[a] for a in axes.front]), prod([shape[a] for a in axes.behind])
        wide = wide.reshape(self._groups, front, shape[axes.axis], behind)
        return wide.swapaxes(1, 3) if behind == 1 else wide

    def put(self, sums: Any, at: Indices, new: torch.Tensor) -> None:
        """Put what ``factored`` would make of some columns in their place."""
        axes, shape = self.axes, list(new.shape)
        if prod([shape[a] for a in axes.behind]) == 1:
            sums = sums.swapaxes(1, 3)
        shape[axes.axis] = len(at)
        made = sums.reshape([shape[a] for a in axes.order])
        if self._by_numpy:
            new.numpy()[(slice(None),) * axes.axis + (at,)] = made.transpose(axes.back)
        else:
            new.index_copy_(axes.axis, self.numbers(at), made.to(new.dtype).permute(axes.back))

    def by_unknown(self, way: Any, part: torch.Tensor) -> Floats:
        """What ``factored`` would make of one column per unknown, as (groups, unknowns, rest)."""
        if not self._by_numpy:
            way = way.cpu().numpy()
        rest = [part.shape[a] for a in self.axes.rest]
        found: Floats = way.swapaxes(1, 2).reshape(self._groups, way.shape[2], *rest)
        return found

    def named(self, array: Floats) -> Floats:
        """Numbers for the groups and the rest that is made, in named space; what is mixed is summed up."""
        names, outer = self.axes.names, self.axes.outer
        here = [*outer, *self.axes.rest]
        array = array.reshape([*(self._whole.shape[a] for a in outer), *array.shape[1:]])
        for position, axis in enumerate(here):
            if names[axis] in self._layout.mixed:
                array = array.sum(position, keepdims=True)
            elif axis in self._kept:
                array = spread(array, position, self._kept[axis], self._whole.shape[axis])
        at = {self._layout.names.index(names[a]): p for p, a in enumerate(here)}
        shape = [array.shape[at[p]] if p in at else 1 for p in range(len(self._layout.names))]
        return array.transpose([at[p] for p in sorted(at)]).reshape(shape)
