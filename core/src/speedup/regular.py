"""Regular sets: what can be cut out of a dense tensor and be a dense tensor again.

A set of entries is a *box* when it is a product of one list per axis, the common and cheap case. It is *regular* when
one axis may be *ragged*: along it every non-empty fibre keeps the same count, at positions that may differ from fibre
to fibre (the heads of an attention that each keep other dimensions, the groups of a grouped convolution). A weight can
be cut along several such axes, one after the other (a matrix per group, with rows and columns of its own). Arrays here
broadcast to the tensor's shape: an axis of size 1 is kept whole, unless the entry is False.
"""

from __future__ import annotations

from collections.abc import Collection
from math import prod

import numpy as np
import torch

from speedup.arrays import Bools, Indices, along, any_of, count
from speedup.cached import cached_property


def varied(keep: Bools) -> list[int]:
    """The axes along which ``keep`` is written out."""
    return [a for a, size in enumerate(keep.shape) if size > 1]


def hull(keep: Bools) -> Bools:
    """The smallest box around ``keep``."""
    out = np.ones((1,) * keep.ndim, dtype=bool)
    for axis in varied(keep):
        out = out & any_of(keep, tuple(a for a in range(keep.ndim) if a != axis))
    return out & keep.any()


def is_box(keep: Bools) -> bool:
    axes = varied(keep)
    # Counting is several times as fast as to sum up truth values.
    return len(axes) <= 1 or prod([count(along(keep, a)) for a in axes]) == count(keep)


def ragged_axis(keep: Bools, allowed: Collection[int] | None = None) -> int | None:
    """The ragged axis of a regular set that is no box; None for a box.

    Args:
        allowed: the axes that may be ragged, all by default.

    Raises:
        ValueError: the set is not regular.
    """
    axes = ragged_axes(keep, allowed)
    if len(axes) > 1:
        raise ValueError("not a regular set")
    return axes[0] if axes else None


def ragged_axes(keep: Bools, allowed: Collection[int] | None = None) -> list[int]:
    """The axes along which a set is cut fibre by fibre, in this order; none for a box, one where one will do.

    Args:
        allowed: the axes that may be ragged, all by default.

    Raises:
        ValueError: it cannot be cut to a dense tensor.
    """
    axes = _cuts(keep, allowed)
    if axes is None:
        raise ValueError("not a regular set")
    return axes


def _cuts(keep: Bools, allowed: Collection[int] | None) -> list[int] | None:
    """As ``ragged_axes``; None where there are none."""
    if is_box(keep):
        return []
    axes = [a for a in reversed(varied(keep)) if (allowed is None or a in allowed) and _is_even(keep, a)]
    rests = [any_of(keep, axis) for axis in axes]
    for axis, rest in zip(axes, rests, strict=True):
        if is_box(rest):
            return [axis]
    for axis, rest in zip(axes, rests, strict=True):
        more = _cuts(rest, allowed)
        if more is not None:
            return [axis, *more]
    return None


def _is_even(keep: Bools, axis: int) -> bool:
    """Whether all fibres along an axis that are not empty keep the same count."""
    counts = keep.sum(axis)
    most = counts.max(initial=0)
    return count(counts) == count(counts == most)


def is_regular(keep: Bools, allowed: Collection[int] | None = None) -> bool:
    axes = _cuts(keep, allowed)
    return axes is not None and len(axes) <= 1


def can_be_cut(keep: Bools, allowed: Collection[int]) -> bool:
    """Whether a set can be cut to a dense tensor along some of these axes, one after the other."""
    return _cuts(keep, allowed) is not None


def regularize(keep: Bools, allowed: Collection[int] | None = None) -> Bools:
    """The set grown to the nearest regular one: fibres that keep fewer are filled up, along the axis that takes least.

    Args:
        allowed: the axes that may be ragged, all by default; with none the result is a box.
    """
    if is_regular(keep, allowed):
        return keep
    axes = [a for a in varied(keep) if allowed is None or a in allowed]
    if not axes:
        return hull(keep)
    able = [a for a in reversed(axes) if is_box(any_of(keep, a))]
    return min((_filled(keep, a) for a in able or axes[-1:]), key=count)


def _filled(keep: Bools, axis: int) -> Bools:
    """The set with every fibre along an axis filled up to the longest one."""
    fibres = hull(any_of(keep, axis))
    target = keep.sum(axis).max()
    elsewhere = any_of(keep, tuple(a for a in range(keep.ndim) if a != axis))
    # First what the fibre keeps, then what another one keeps at this index, then the rest.
    order = np.argsort(2 * ~keep + ~elsewhere, axis, kind="stable")
    place = np.argsort(order, axis, kind="stable")
    filled: Bools = keep | (fibres & (place < target))
    return filled


def kept_shape(keep: Bools, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what remains of a tensor of ``shape``."""
    if keep.size > 1 and keep.size in keep.shape:  # it varies along one axis
        axis = keep.shape.index(keep.size)
        return (*shape[:axis], count(keep), *shape[axis + 1 :])
    ragged: dict[int, int] = {}
    for axis in ragged_axes(keep):
        ragged[axis] = int(keep.sum(axis=axis).max())
        keep = any_of(keep, axis)
    sizes = [count(along(keep, a)) if keep.shape[a] > 1 else shape[a] for a in range(keep.ndim)]
    return tuple([ragged.get(a, size) for a, size in enumerate(sizes)])


class Lines(dict[int, Bools]):
    """A box by the lines (1-D) of the axes that lose indices. Several tensors may share it."""

    @cached_property
    def indices(self) -> dict[int, Indices]:
        """By axis, the indices that are kept."""
        return {axis: line.nonzero()[0] for axis, line in self.items()}

    @cached_property
    def places(self) -> torch.Tensor:
        """The same of the only axis, as a tensor."""
        (indices,) = self.indices.values()
        return torch.from_numpy(indices)

    @cached_property
    def listed(self) -> dict[int, list[int]]:
        """The same as lists, not to be changed."""
        return {axis: indices.tolist() for axis, indices in self.indices.items()}
