"""What a call costs: multiply-accumulates, by its axes signature."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from speedup.layout import Layout
from speedup.node import Node

if TYPE_CHECKING:
    pass


def multiply_accumulates(node: Node, shapes: Sequence[tuple[int, ...] | None]) -> int:
    """MACs of a contraction: one per output entry and term; other ops count none."""
    layout = node.layout
    factors = layout.factors
    if len(factors) != 2:
        return 0
    weight = factors[1]
    window = 1
    summed = layout.form.once("terms", weight, lambda: _summed_axes(layout, weight))
    for size, (is_whole, is_one, terms) in zip(shapes[weight] or (), summed, strict=True):
        if is_whole and (size > 1 or is_one):  # else it may be broadcast
            window *= size
        elif terms:
            sizes = layout_at(node, shapes).sizes
            window *= prod(sizes[n] for n in terms)
    return prod(shapes[layout.n_inputs] or ()) * window


def _summed_axes(layout: Layout, weight: int) -> list[tuple[bool, bool, frozenset[str]]]:
    """Per axis of a weight whether all of its names are summed along, whether it has size 1, and those names."""
    inner = layout.mixed | layout.contracted
    dims = layout.operands[weight] or ()
    return [(inner.issuperset(dim), all(layout.sizes[n] == 1 for n in dim), inner.intersection(dim)) for dim in dims]


def layout_at(node: Node, shapes: Sequence[tuple[int, ...] | None]) -> Layout:
    """The layout of the call at other shapes."""
    from speedup.axes import parse

    assert node.rule is not None
    n = len(node.operands)
    if all(s == (None if v is None else v.shape) for s, v in zip(shapes, node.values, strict=True)):
        return node.layout
    return parse(node.rule.signature(node)).bind(list(shapes[:n]), [s or () for s in shapes[n:]])
