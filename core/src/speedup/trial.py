"""What a call makes of constants, found out by running it on tensors of the smallest shapes at which it makes sense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TypeAlias

import numpy as np
import torch

from speedup.arrays import Floats
from speedup.layout import Layout, Shape
from speedup.node import Node


def run_on_constants(node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
    """Run the call in float64 on constants. Mixed axes get two small extents: only what is the same for both counts.

    Where the rule says that the number of entries counts, they have the extent that they have (None). What comes with
    another size than 1 and the full one is so many cases next to each other.
    """
    results = None
    layout = node.layout
    assert node.rule is not None
    number_of = {v: k for k, v in enumerate(node.operands)}
    given = tuple([None if a is None else a.shape for a in arrays])
    cases: _Cases = layout.once("cases", given, partial(_find_cases, layout, given))
    for extent in (1,) if not layout.mixed else (None,) if node.rule.counts else (2, 3):
        shapes: list[Shape] = layout.once(
            "trial", (given, extent), partial(_trial_shapes, layout, given, extent, cases)
        )
        tensors: list[torch.Tensor] = []
        for value in node.tensors:
            k = number_of.get(value)
            if k is not None:
                array = arrays[k]
                assert array is not None
                tensors.append(_operand_tensor(array, shapes[k], value.dtype))
            elif value.is_known:
                tensors.append(value.contents())
            else:
                return None
        try:
            found = node.run(tensors)
        except (RuntimeError, ValueError, TypeError, IndexError):
            return None
        now = _uniform_outputs(node, [found] if isinstance(found, torch.Tensor) else list(found), cases)
        if now is None or (results is not None and not all(map(_alike, now, results))):
            return None
        results = now
    return results


def _alike(a: Floats, b: Floats) -> bool:
    return a.shape == b.shape and (np.array_equal(a, b) or bool(np.allclose(a, b, rtol=1e-12, atol=0, equal_nan=True)))


@dataclass(frozen=True)
class _Extent:
    """An axis of an operand when a call is tried on constants.

    Attributes:
        names: that stand behind it.
        full: its size.
        named: whether it counts in full, as it is neither mixed nor of the ``*``.
        mixed: whether all of it is.
    """

    names: tuple[str, ...]
    full: int
    named: bool
    mixed: bool


_Cases: TypeAlias = Mapping[tuple[str, ...], int]


def _extents(layout: Layout, k: int) -> list[_Extent]:
    found: list[_Extent] = layout.once(
        "extents",
        k,
        lambda: [
            _Extent(
                dim,
                prod(layout.sizes[n] for n in dim),
                any("*" not in n and n not in layout.mixed for n in dim),
                bool(dim) and layout.mixed.issuperset(dim),
            )
            for dim in layout.operands[k] or ()
        ],
    )
    return found


def _trial_shapes(layout: Layout, given: Sequence[Shape | None], extent: int | None, cases: _Cases) -> list[Shape]:
    """The smallest shapes of operands at which the call makes sense: names that any of them varies along in full."""
    wide = {n for k, shape in enumerate(given) if shape is not None for n in layout.varying(k, shape)}

    def size_of(axis: _Extent, size: int) -> int:
        if axis.names in cases:
            return cases[axis.names]
        if size > 1 or axis.named or not wide.isdisjoint(axis.names) or (axis.mixed and extent is None):
            return axis.full
        return extent if axis.mixed and extent is not None else 1

    return [
        tuple([size_of(axis, size) for axis, size in zip(_extents(layout, k), shape or (), strict=shape is not None)])
        for k, shape in enumerate(given)
    ]


def _find_cases(layout: Layout, given: Sequence[Shape | None]) -> _Cases:
    """The axes along which cases stand next to each other, by their names, and how many."""
    return {
        axis.names: size
        for k, shape in enumerate(given)
        for axis, size in zip(_extents(layout, k) if shape is not None else (), shape or (), strict=True)
        if size not in (1, axis.full)
    }


def _operand_tensor(array: Floats, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of this shape with the numbers of an array that broadcasts to it."""
    whole = array if array.shape == shape else np.broadcast_to(array, shape)
    tensor = torch.from_numpy(whole.copy())
    return tensor if dtype.is_floating_point else tensor.to(dtype)


def _is_as_it_is(layout: Layout, k: int, shape: Shape) -> bool:
    """Whether an output of this shape has nothing that is mixed, and every axis in full or with size 1."""
    axes = _extents(layout, k)
    return len(axes) == len(shape) and all(
        s == 1 or (s == axis.full and not axis.mixed) for s, axis in zip(shape, axes, strict=True)
    )


def _uniform_outputs(node: Node, outputs: Sequence[torch.Tensor], cases: _Cases) -> list[Floats] | None:
    """The outputs with their mixed axes reduced to size 1; None where they are not the same along them."""
    layout = node.layout
    results: list[Floats] = []
    for k, out in enumerate(outputs, layout.n_inputs):
        if out.is_meta:
            return None
        if out.is_complex():  # of which only a 0 counts
            out = torch.where(out == 0, 0.0, torch.nan)
        array = (out if out.dtype is torch.float64 else out.double()).numpy(force=True)
        if layout.once("as it is", (k, array.shape), partial(_is_as_it_is, layout, k, array.shape)):
            results.append(array)
            continue
        axes = _extents(layout, k)
        if array.ndim != len(axes):
            return None
        for number, axis in enumerate(axes):
            size = array.shape[number]
            if axis.mixed and size != 1:
                first = array.take([0], axis=number)
                if not np.allclose(array, first, rtol=1e-12, atol=0, equal_nan=True):
                    return None
                array = first
            elif size not in (1, axis.full, cases.get(axis.names)):
                return None
        results.append(array)
    return results
