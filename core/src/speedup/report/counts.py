"""How much a call computes, before and after."""

from __future__ import annotations

from math import prod

from speedup.ask import ask
from speedup.graph import Graph
from speedup.keep import KeepSets
from speedup.layout import Shape
from speedup.node import Node
from speedup.rule import leaves_to_layout


def count_macs(node: Node, keeps: KeepSets) -> tuple[int, int]:
    """Multiply-accumulate operations of a call, before and after; 0 where no rule knows them, and in training alone."""
    if _has_none(node) or node in keeps.graph.beside:
        return 0, 0
    shapes = _shapes(node)
    before = int(ask(node, "multiply_accumulates", shapes))
    if not before:
        return 0, 0
    small = [keeps.shape(v) if v is not None else None for v in node.values]
    return before, ask(node, "multiply_accumulates", small) if small != shapes else before


def macs_of(graph: Graph) -> int:
    """Multiply-accumulate operations of a run of the masked model, as far as rules know them."""
    return sum(map(_macs_before, graph.nodes))


def _macs_before(node: Node) -> int:
    return 0 if _has_none(node) else int(ask(node, "multiply_accumulates", _shapes(node)))


def _has_none(node: Node) -> bool:
    """Whether it is known without a question that a call has no such operations: most are no contractions."""
    return node.rule is None or (leaves_to_layout(node, "multiply_accumulates") and not node.layout.contracted)


def _shapes(node: Node) -> list[Shape | None]:
    return [v.shape if v is not None else None for v in node.values]


def sizes_of(graph: Graph, keeps: KeepSets) -> dict[str, tuple[int, int]]:
    """Parameters and multiply-accumulates (``macs``) of a model, before and after."""
    used = [v for v in graph.sources if v.kind == "parameter"]
    after = sum(prod(keeps.shape(v) if v.is_read else v.shape) for v in used)
    macs = [count_macs(node, keeps) for node in graph.nodes]
    return {
        "parameters": (sum(prod(v.shape) for v in used), after),
        "macs": (sum(b for b, _ in macs), sum(a for _, a in macs)),
    }
