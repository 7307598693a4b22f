"""Rigid axes: those that can never lose an index."""

from __future__ import annotations

from speedup.ask import ask
from speedup.graph import Graph, Value


def rigid_axes(graph: Graph) -> dict[Value, tuple[bool, ...]]:
    """An axis is rigid when it can never lose an index: the inputs' axes are, and what follows from them."""
    rigid = {value: (not value.is_source,) * value.ndim for value in graph.values}
    for node in graph.nodes:
        if node.rule is not None:
            found = ask(node, "rigid", [rigid[v] if v is not None else () for v in node.operands])
            for value, flags in zip(node.outputs, found, strict=True):
                rigid[value] = tuple(flags)
    return rigid
