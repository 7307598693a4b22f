"""How much a call computes, before and after."""

from __future__ import annotations

from speedup.ask import ask
from speedup.graph import Node
from speedup.keep import KeepSets


def count_macs(node: Node, keeps: KeepSets) -> tuple[int, int]:
    """Multiply-accumulate operations of a call, before and after; 0 where no rule knows them."""
    if node.rule is None:
        return 0, 0
    full = [v.shape if v is not None else None for v in node.values]
    small = [keeps.shape(v) if v is not None else None for v in node.values]
    before: int = ask(node, "multiply_accumulates", full)
    return before, ask(node, "multiply_accumulates", small) if small != full and before else before
