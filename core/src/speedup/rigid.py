"""Rigid axes: those that can never lose an index."""

from __future__ import annotations

from collections.abc import Collection

from speedup.ask import ask
from speedup.graph import Graph
from speedup.node import Node, Value
from speedup.pattern import rigid_flags
from speedup.rule import leaves_to_layout

Flags = tuple[bool, ...]


def rigid_axes(graph: Graph, fixed: Collection[tuple[Value, int]] = ()) -> dict[Value, Flags]:
    """An axis is rigid when it can never lose an index: the inputs' axes are, and what follows from them.

    Args:
        fixed: axes that are to be taken for such too.
    """
    rigid = {v: (not v.is_source,) * v.ndim for v in graph.values}
    also = {v for v, _ in fixed if v in rigid}
    for value in also:
        rigid[value] = _with(fixed, value, rigid[value])
    for node in graph.nodes:
        if node.rule is not None:
            found = _outputs(node, tuple([rigid[v] if v is not None else () for v in node.operands]))
            for value, flags in zip(node.outputs, found, strict=True):
                rigid[value] = _with(fixed, value, flags) if value in also else tuple(flags)
    return rigid


def _with(fixed: Collection[tuple[Value, int]], value: Value, flags: Collection[bool]) -> Flags:
    return tuple([flag or (value, axis) in fixed for axis, flag in enumerate(flags)])


def _outputs(node: Node, rigid: tuple[Flags, ...]) -> Collection[Collection[bool]]:
    """The flags of the outputs, given those of the operands."""
    if leaves_to_layout(node, "rigid"):
        return rigid_flags(node.layout, rigid)
    found: Collection[Collection[bool]] = ask(node, "rigid", [*rigid])
    return found
