"""Carriers: kept entries of an operand that stand for those that go, see ``speedup.fold``.

x[i] = row[i] · first · sum over k of second[k] · x[k], with the kept entries k (``Rows.spanning``): what the weight has
at [.., i] is added to its columns of the carriers, by way of one column per unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

from speedup.cutting import cut, cut_indices, take
from speedup.facts import Bools, Floats, Indices, along, any_of, some
from speedup.graph import Node
from speedup.kept import kept_of
from speedup.masking import product
from speedup.pieces import contents
from speedup.response import AT_ONCE, by_names, spread

if TYPE_CHECKING:
    from speedup.fold import Removed
    from speedup.keep import KeepSets, NodeKeep

# A row that takes more than this of what is kept is not spanned: the weights would grow by it, and rounding with them.
_MOST = 1e3
_ROUNDING = 1e-10


class Rows:
    """The known entries of an operand as rows of numbers, per group of the weight: arrays (groups, entries, unknowns).

    Attributes:
        all: every row, 0 where nothing is known.
        gone, kept: bool (groups, entries): the rows to be represented, and those that can carry them.
        offset: (groups, entries), the constant part where it goes into a bias.
    """

    def __init__(self, node: Node, gone: Removed, keep: NodeKeep, bias: bool) -> None:
        layout = self.layout = node.layout
        assert gone.weight is not None
        (self.contracted,) = layout.contracted & layout.names_of(gone.weight)
        common = layout.names_of(gone.k) & layout.names_of(gone.weight) - {self.contracted}
        self.outer = [n for n in layout.names if n in common]
        self.scope = layout.axes(layout.names_of(gone.k) - layout.names_of(gone.weight))
        self.gone = self._grid(gone.mask).astype(bool)
        alike = self._alike(gone)
        # What nobody reads may hold anything; where no output matters that is no harm.
        live = ~layout.to_named(layout.n_inputs, keep.facts.unused(layout.n_inputs))
        live = any_of(live, layout.axes(set(layout.names) - {layout.names[p] for p in self.scope}))
        sound = ~(layout.to_named(gone.k, keep.facts.unused(gone.k)) & live)
        kept = (layout.to_named(gone.k, keep.sets[gone.k]) & sound).all(self.scope, keepdims=True)
        self.kept = self._grid(kept & alike).astype(bool)
        first = tuple(slice(0, 1) if p in self.scope else slice(None) for p in range(len(layout.names)))
        terms = [np.where(alike, t[first], 0.0) for t in gone.terms]
        offset = np.where(alike, gone.offset[first], 0.0)
        self.offset = self._grid(offset)
        columns = [self._grid(t) for t in (terms if bias else [*terms, offset])]
        self.all = np.stack(columns, -1) if columns else np.zeros((*self.gone.shape, 0))
        # Unknowns of different size weigh alike.
        largest = np.abs(self.all * self.gone[..., None]).max(axis=(0, 1), keepdims=True)
        self.all = self.all / np.where(largest == 0, 1.0, largest)

    def _alike(self, gone: Removed) -> Bools:
        """Known, and the same all along the axes that the weight does not have."""
        alike = gone.known.all(axis=self.scope, keepdims=True)
        for array in (gone.offset, *gone.terms):
            array = np.where(gone.known, array, 0.0)
            same = array.max(axis=self.scope, keepdims=True) == array.min(axis=self.scope, keepdims=True)
            alike = alike & same
        return np.asarray(alike)

    def _grid(self, array: Floats | Bools) -> Floats:
        """A named array as (groups, entries)."""
        names, sizes = self.layout.names, self.layout.sizes
        wide = [sizes[n] if n == self.contracted or n in self.outer else 1 for n in names]
        order = [names.index(n) for n in (*self.outer, self.contracted)]
        rest = [p for p in range(len(names)) if p not in order]
        return np.broadcast_to(array, wide).transpose([*order, *rest]).reshape(-1, sizes[self.contracted])

    def named(self, grid: Bools) -> Bools:
        """The way back."""
        names, sizes = self.layout.names, self.layout.sizes
        here = [*self.outer, self.contracted]
        array = grid.reshape([sizes[n] for n in here])
        array = array.transpose([here.index(n) for n in names if n in here])
        return array.reshape([sizes[n] if n in here else 1 for n in names])

    def spanning(self, kept: Bools) -> tuple[Floats, Floats]:
        """How rows are made of kept ones: row · first · second^T gives how much of each, per group.

        The factors of a singular value decomposition, without directions in which there is nothing but rounding. The
        inverse of the Gram matrix would be the same, and as far off as the square of what the rows are alike.
        """
        rows, largest = self.all_of(kept), self._largest()
        if rows.shape[-1] == 1:  # mostly: one number
            sizes, ways = np.sqrt(np.square(rows).sum(1)), np.ones((len(rows), 1, 1))
            left = rows / np.where(sizes == 0, 1.0, sizes)[:, None]
        else:
            left, sizes, ways = np.linalg.svd(rows, full_matrices=False)
        least = np.maximum(_ROUNDING * largest, 1e-3 * _ROUNDING * sizes.max(axis=1, initial=0.0, keepdims=True))
        strong = sizes > np.maximum(least, np.finfo(np.float64).tiny)
        return np.swapaxes(ways, 1, 2) * np.where(strong, 1 / np.where(strong, sizes, 1), 0)[:, None], left

    def _largest(self) -> Floats:
        """Per group the length of the longest row that goes."""
        lengths: Floats = np.sqrt((np.square(self.all).sum(-1) * self.gone).max(axis=1, keepdims=True))
        return lengths

    def lacking(self) -> Bools:
        """The fewest further rows that must be kept so that the kept ones span those that go."""
        chosen, least = np.zeros_like(self.gone), _ROUNDING * self._largest()
        for _ in range(self.all.shape[-1]):
            kept = self.kept | chosen
            first, second = self.spanning(kept)
            shares = self.all @ first
            goes = self.gone & ~chosen
            spanned = shares @ (np.swapaxes(second, 1, 2) @ self.all_of(kept))
            rest = (self.all - spanned) * goes[..., None]
            more = _independent(rest, least)
            share = np.abs(shares).max(axis=-1, initial=0.0) * goes
            if some(share > _MOST):  # those that are spanned, but by large multiples, come last
                more |= _first_largest(np.where(more.any(axis=1, keepdims=True) | (share <= _MOST), 0.0, share))
            if not some(more):
                break
            chosen = chosen | more
        return chosen

    def all_of(self, kept: Bools) -> Floats:
        """The kept rows of each group, and 0 for those that another group keeps."""
        return np.where(kept[..., None], self.all, 0.0)[:, kept.any(axis=0)]


def _independent(rest: Floats, least: Floats) -> Bools:
    """Rows of which all others are combinations, those that are farthest from the ones before first.

    Gram-Schmidt with pivots.

    Args:
        rest: (groups, entries, unknowns).
        least: (groups, 1), the length that is more than rounding.
    """
    found = np.zeros(rest.shape[:2], dtype=bool)
    for _ in range(rest.shape[-1]):
        lengths = np.sqrt(np.square(rest).sum(-1))
        apart = (lengths > least) & ~found
        if not some(apart):
            break
        longest = _first_largest(np.where(apart, lengths, 0.0))
        found |= longest
        size = np.where(longest, lengths, 0.0).max(axis=1)[:, None, None]
        way = (rest * longest[..., None]).sum(axis=1, keepdims=True) / np.where(size == 0, 1.0, size)
        rest = rest - (rest @ np.swapaxes(way, 1, 2)) * way
    return found


def _first_largest(array: Floats) -> Bools:
    """The first of the largest entries in every row that is not 0."""
    best = (array > 0) & (array == array.max(axis=1, keepdims=True))
    first: Bools = best & (np.cumsum(best, axis=1) == 1)
    return first


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
    weight = _Weight(node, gone.weight, rows, keeps, bias)
    sources, targets = (np.flatnonzero(chosen.any(axis=0)) for chosen in (rows.gone, rows.kept))
    first, staying = rows.spanning(rows.kept)
    going = weight.numbers(np.where(rows.gone[..., None], rows.all, 0.0)[:, sources] @ first).transpose(1, 2)
    shares, at = weight.numbers(staying), weight.numbers(np.searchsorted(weight.columns, targets))
    ways = []
    for part, new in weight.parts(sources, max(len(sources), len(targets))):
        # By way of one column per unknown.
        way = torch.bmm(going, weight.factored(part))
        carriers = weight.factored(new.index_select(weight.axis, at))
        weight.put(torch.baddbmm(carriers, shares, way), at, new)
        if bias:
            ways.append(way.reshape(*way.shape[:2], *(part.shape[a] for a in weight.rest)).cpu().numpy())
    made = weight.made(keeps)
    if not bias:
        return made, None
    offset = np.einsum("gk,gkr->gr", np.where(rows.kept, rows.offset, 0.0)[:, targets], staying)
    joined = np.concatenate(ways, axis=2) if weight.rest else ways[0]  # a vector has no rest, and is one part
    return made, weight.named(np.einsum("gr,gr...->g...", offset, joined))


class _Weight:
    """A weight by its names, of which no more is computed with at a time than there is room for.

    Attributes:
        order: its axes with those of the groups first, then the contracted one.
        axis: that of the contracted name.
        rest: those of the rest, in their order.
        is_cut: whether only what is kept is made: it is a box, and groups and parts of axes stay whole.
        columns: the indices of the contracted name that are made.
        new: what is made; first what is kept as it is.
        dims: its sizes by axis of the weight.
    """

    def __init__(self, node: Node, k: int, rows: Rows, keeps: KeepSets, bias: bool) -> None:
        layout = self._layout = node.layout
        value, dims = node.values[k], layout.operands[k]
        assert value is not None and dims is not None
        self._value = value
        names = self._names = [n for dim in dims for n in dim]
        outer = [names.index(n) for n in rows.outer]
        self.axis = names.index(rows.contracted)
        self.rest = [a for a in range(len(names)) if a != self.axis and a not in outer]
        self.order = [*outer, self.axis, *self.rest]
        self._groups = len(rows.gone)
        lines = keeps.box(value) if value.is_source else None
        long = {a: [names.index(n) for n in dims[a] if layout.sizes[n] > 1] for a in lines or ()}
        self.is_cut = lines is not None and all(len(axes) == 1 and axes[0] not in outer for axes in long.values())
        self._kept: dict[int, Indices] = {}
        if lines is not None and self.is_cut:
            self._kept = {long[a][0]: indices for a, indices in lines.indices.items()}
        sizes = [layout.sizes[n] for n in names]
        whole = contents(value) if value.tensor is None else value.tensor.detach()
        self._whole, mask = whole.reshape(sizes), value.mask if value.is_source else None
        self._mask = by_names(layout, k, names, mask)
        self.columns = self._at(self.axis)
        self._lines: Bools | None = None
        if self.is_cut:
            new = kept_of(keeps, value)
        else:
            if not bias and dims[0][:-1] == tuple(rows.outer) and self.axis >= len(dims[0]) == len(outer) + 1:
                self._lines = self._even_lines(keeps)
            if self._lines is not None:
                at = self._lines.nonzero()[0]
                new, sizes[len(outer)] = take(whole, 0, at), len(at) // self._groups
                mask = mask[torch.from_numpy(at)] if mask is not None and len(mask) > 1 else mask
            else:
                new = whole if value.tensor is None else whole.clone()
            new = new if mask is None else product(new, mask, out=new)
        self.new = new.reshape([len(self._at(a)) if self.is_cut else s for a, s in enumerate(sizes)])
        each = iter(self.new.shape)
        self.dims = [[next(each) for _ in dim] for dim in dims]

    def _even_lines(self, keeps: KeepSets) -> Bools | None:
        """What is kept of the first axis of the weight, the same count in each group; else None."""
        if not self._value.is_source or self._value in keeps.orders:
            return None
        line = np.broadcast_to(along(keeps.sets[self._value], 0), self._value.shape[:1])
        counts = np.count_nonzero(line.reshape(self._groups, -1), axis=1)
        return line if 0 < counts[0] < line.size // self._groups and (counts == counts[0]).all() else None

    def _at(self, axis: int) -> Indices:
        """The indices of an axis that are made."""
        return self._kept[axis] if axis in self._kept else np.arange(self._whole.shape[axis])

    def parts(self, columns: Indices, most: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Some columns of some rows that are made, as they were; and where these rows are made.

        Args:
            columns: indices of the contracted name.
            most: how many columns are computed with at a time.
        """
        first = self.rest[0] if self.rest else None
        count = self.new.shape[first] if first is not None else 1
        step = max(1, AT_ONCE * count * self.new.shape[self.axis] // max(1, self.new.numel() * most))
        for start in range(0, count, step):
            new = self.new if first is None else self.new.narrow(first, start, min(step, count - start))
            if not self.is_cut:
                yield new.index_select(self.axis, self.numbers(columns)), new
                continue
            chosen = {**self._kept, self.axis: columns}
            if first is not None:
                chosen[first] = self._at(first)[start : start + step]
            yield self._read(chosen), new

    def _read(self, chosen: Mapping[int, Indices]) -> torch.Tensor:
        part, mask = self._whole, self._mask
        for axis, indices in chosen.items():
            if mask is not None and len(indices) < mask.shape[axis] > 1:
                mask = mask.take(indices, axis)
        part = cut_indices(part, chosen)
        return part if mask is None or mask.all() else product(part, self.numbers(mask))

    def put(self, sums: torch.Tensor, at: torch.Tensor, new: torch.Tensor) -> None:
        """Put what ``factored`` would make of some columns in their place."""
        sizes = [len(at) if a == self.axis else new.shape[a] for a in self.order]
        back = [self.order.index(a) for a in range(len(self.order))]
        new.index_copy_(self.axis, at, sums.to(new.dtype).reshape(sizes).permute(back))

    def made(self, keeps: KeepSets) -> torch.Tensor:
        """What is kept of the weight, or all of it where it is a piece of a parameter."""
        made = self.new.reshape([prod(sizes) for sizes in self.dims])
        if self.is_cut or not self._value.is_source:
            return made
        if self._lines is None:
            return keeps.cut(self._value, made).contiguous()
        return cut(made, np.compress(self._lines, keeps.sets[self._value], axis=0))

    def numbers(self, array: Floats | Indices | Bools) -> torch.Tensor:
        """An array as a tensor where the weight is."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._whole.device)

    def factored(self, part: torch.Tensor) -> torch.Tensor:
        """Some columns of a part as (groups, columns, rest) in float64."""
        order, count = self.order, part.shape[self.axis]
        turned = self.axis > max(self.rest, default=self.axis)  # as they lie in memory, a product takes them as well
        if turned:
            order = [a for a in self.order if a != self.axis] + [self.axis]
        wide = part.permute(order).to(torch.float64, memory_format=torch.contiguous_format)
        rest = prod(part.shape[a] for a in self.rest)
        if turned:
            return wide.reshape(self._groups, rest, count).transpose(1, 2)
        return wide.reshape(self._groups, count, rest)  # there may be no columns

    def named(self, array: Floats) -> Floats:
        """Numbers for the groups and the rest that is made, in named space; what is mixed is summed up."""
        here = [a for a in self.order if a != self.axis]
        outer = len(here) - len(self.rest)
        array = array.reshape([*(self._whole.shape[a] for a in here[:outer]), *array.shape[1:]])
        for position, axis in enumerate(here):
            if self._names[axis] in self._layout.mixed:
                array = array.sum(position, keepdims=True)
            elif axis in self._kept:
                array = spread(array, position, self._kept[axis], self._whole.shape[axis])
        at = {self._layout.names.index(self._names[a]): p for p, a in enumerate(here)}
        shape = [array.shape[at[p]] if p in at else 1 for p in range(len(self._layout.names))]
        return array.transpose([at[p] for p in sorted(at)]).reshape(shape)
