"""Rigid axes: those that can never lose an index."""

from __future__ import annotations

from collections.abc import Collection

from speedup.ask import ask
from speedup.graph import Graph, Value


def rigid_axes(graph: Graph, fixed: Collection[tuple[Value, int]] = ()) -> dict[Value, tuple[bool, ...]]:
    """An axis is rigid when it can never lose an index: the inputs' axes are, and what follows from them.

    Args:
        fixed: axes that are to be taken for such too.
    """
    rigid = {v: tuple([not v.is_source or (v, axis) in fixed for axis in range(v.ndim)]) for v in graph.values}
    for node in graph.nodes:
        if node.rule is not None:
            found = ask(node, "rigid", [rigid[v] if v is not None else () for v in node.operands])
            for value, flags in zip(node.outputs, found, strict=True):
                rigid[value] = tuple([flag or (value, axis) in fixed for axis, flag in enumerate(flags)])
    return rigid
