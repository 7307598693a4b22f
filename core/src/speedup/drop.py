"""``constants="drop"``: what is removed is left out instead of folded, as earlier tools do, and what changes by it.

For those who train the small model further anyway: no carrier channel stays and no bias is gained, and the outputs are
not those of the masked model. The report names every call that misses something, and how far each output moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from speedup.ask import ask
from speedup.build import Parts
from speedup.commit import Transaction
from speedup.graph import Graph
from speedup.keep import KeepSets
from speedup.node import Node, Value
from speedup.node_keep import NodeKeep
from speedup.removed import removed
from speedup.rounding import distance
from speedup.trace.outputs import tensors_in
from speedup.trace.sandbox import undisturbed


@dataclass(frozen=True)
class Dropped:
    """A call that reads removed constants which were left out.

    Attributes:
        name: the call.
        where: ``file:line`` in the caller's source.
        indices: how many of its input entries (channels) are missing.
        outputs: numbers of the model's outputs that depend on it.
    """

    name: str
    where: str
    indices: int
    outputs: tuple[int, ...]


def find_dropped(graph: Graph, keeps: KeepSets) -> list[Dropped]:
    """Every call whose result changes because constants were left out."""
    found = []
    for node in graph.nodes:
        if node.rule is None or not ask(node, "folds"):
            continue
        gone = removed(node, NodeKeep(keeps, node))
        if gone:
            count = sum(int(np.count_nonzero(g.mask)) for g in gone)
            found.append(Dropped(node.label, node.where, count, _depending(graph, node)))
    return found


def _depending(graph: Graph, start: Node) -> tuple[int, ...]:
    """Numbers of the model's outputs that a call has a part in."""
    reached: set[Value] = set(start.outputs)
    for node in graph.nodes[start.index + 1 :]:
        if reached.intersection(node.tensors):
            reached.update(node.outputs)
    return tuple(i for i, v in enumerate(graph.outputs[: len(graph.reference)]) if v in reached)


def measure(
    model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], graph: Graph, parts: Parts
) -> list[float]:
    """Per output of the model its largest change on the dummy input, relative to its largest entry."""
    if any(t.is_meta for t in graph.reference):
        return []  # there are no numbers
    transaction = Transaction(model, parts)
    transaction.apply()
    try:
        with undisturbed(model):
            result = tensors_in(model(*inputs[0], **inputs[1]))
    finally:
        transaction.undo()
    errors = []
    for wanted, got in zip(graph.reference, result, strict=True):
        error, scale = distance(wanted, got)
        errors.append(error / scale if scale else error)
    return errors
