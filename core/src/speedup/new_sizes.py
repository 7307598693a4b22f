"""The sizes that axes of a signature have in the small model."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from speedup.arrays import Bools, along, count, some
from speedup.errors import RuleError
from speedup.layout import Layout
from speedup.node import Node
from speedup.regular import ragged_axis


def new_size(node: Node, sets: Sequence[Bools], names: str, known: dict[str, int] | None = None) -> int:
    """The size, in the small model, of an axis of a node's signature, or of a product of axes.

    Args:
        known: by axis, what was found before with the same sets; what is found now is added.
    """
    known, found = {} if known is None else known, 1
    for name in node.layout.once("split", names, names.split):
        if name not in known:
            known[name] = _axis_size(node, sets, name)
        found *= known[name]
    return found


def _axis_size(node: Node, sets: Sequence[Bools], name: str) -> int:
    layout = node.layout
    full = layout.sizes.get(name)
    if full is None:
        raise RuleError(f"the signature has no axis {name!r}; it has {', '.join(layout.sizes)}")
    if full == 1:
        return full
    axis, known = layout.form.once("with", name, lambda: _places(layout, name))
    operands = node.operands
    # Weights last: their sets are products, which are written out only where nothing else has the name.
    for weights in (False, True):
        for k in known:
            is_weight = k < layout.n_inputs and (v := operands[k]) is not None and v.is_source
            if is_weight is weights and (keep := sets[k]).size > 1 and (found := _kept(layout.to_named(k, keep), axis)):
                return found
    return full


def _places(layout: Layout, name: str) -> tuple[int, list[int]]:
    """Where a name stands in named space, and the operands that have it."""
    return layout.names.index(name), [k for k in range(len(layout.operands)) if name in layout.names_of(k)]


def _kept(named: Bools, axis: int) -> int:
    """How many indices of an axis are kept; 0 where the set does not say so."""
    if named.shape[axis] == 1:
        return 0
    if named.size == named.shape[axis]:
        return count(named)
    if some(named):
        with contextlib.suppress(ValueError):  # not a regular set
            if ragged_axis(named) == axis:
                return int(named.sum(axis=axis).max())
            return count(along(named, axis))
    return 0
