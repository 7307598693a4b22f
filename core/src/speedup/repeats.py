"""Whether a call of one run of a model is a call of another run, made again."""

from __future__ import annotations

from typing import Any

from speedup.node import Node
from speedup.trees import alike, equal


def repeats(node: Node, other: Node, sized: bool = False) -> bool:
    """Whether two calls are made at the same place, and given the same beside tensors, with tensors of as many axes.

    Args:
        node, other: the calls, each of a run of its own.
        sized: whether numbers may differ that are sizes of what comes out, which hang on the data (how many places were
            found), in calls that only move entries or make a tensor.
    """
    if (node.place, node.op) != (other.place, other.op):
        return False
    if not (node.is_given(other) or (sized and _is_given_sizes(node, other))):
        return False
    if node.module is None and node.where != other.where:
        return False
    return [(v.ndim, v.dtype) for v in node.tensors] == [(v.ndim, v.dtype) for v in other.tensors]


def _is_given_sizes(node: Node, other: Node) -> bool:
    """Whether what two calls are given differs by sizes of what comes out of them."""
    rule = node.rule or other.rule
    if node.tensors and (rule is None or not rule.moves):
        return False
    pairs = zip(node.outputs, other.outputs, strict=False)
    sizes = {size for a, b in pairs for size in zip(a.shape, b.shape, strict=False)}

    def leaf(a: Any, b: Any) -> bool:
        return equal(a, b) or (type(a) is type(b) is int and (a, b) in sizes)

    return alike((node.args, node.kwargs), (other.args, other.kwargs), leaf)
