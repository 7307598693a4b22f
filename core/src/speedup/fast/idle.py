"""Layers that compute what is known, or what nobody reads.

A convolution whose weights are all 0 gives its bias, whatever comes in. Once it no longer looks at its input, what made
that is idle: its results are asked for nothing but their shape, and may be any numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from speedup.arrays import Floats
from speedup.ask import ask
from speedup.bias import flat_output
from speedup.graph import Graph
from speedup.node import Node, Value
from speedup.pieces import contents


def constants(graph: Graph) -> Iterator[tuple[Node, Floats]]:
    """Calls of modules with a weight and a bias that may give the same for every input, with what each gives, as a
    bias."""
    idle = idle_calls(graph)
    for node in graph.nodes:
        rule = node.rule
        if node.module is None or rule is None or rule.bias is None or node.calls > 1 or not ask(node, "folds"):
            continue
        nothing = np.zeros((1,) * len(node.layout.names))
        shift = nothing if node in idle else _shift(node, node.operand(rule.bias), nothing)
        if shift is not None:
            yield node, flat_output(node, shift)


def _shift(node: Node, bias: Value | None, nothing: Floats) -> Floats | None:
    """The bias in named space, where all that it is added to is 0."""
    weights = [v for v in node.operands[1:] if v is not None and v is not bias]
    if len(weights) != 1 or not _is_plain(weights[0]) or contents(weights[0]).any():
        return None
    if bias is None:
        return nothing
    numbers = contents(bias).to("cpu", torch.float64).numpy() if _is_plain(bias) else None
    return None if numbers is None else node.layout.to_named(node.operands.index(bias), numbers)


def _is_plain(value: Value) -> bool:
    return value.is_of_one_call


def idle_calls(graph: Graph) -> set[Node]:
    """Calls whose results nobody reads."""
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.outputs and all(_is_idle(v, found) for v in node.outputs):
            found.add(node)
    return found


def _is_idle(value: Value, found: set[Node]) -> bool:
    return not value.is_output and all(node in found for node, _ in value.uses)
