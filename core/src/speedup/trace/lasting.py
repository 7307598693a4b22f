"""What a call of the model leaves for the next one: the tensors of the model that its forward writes into or replaces.

``self.weight.div_(2)``, ``self.seen.mul_(0.9).add_(...)``, ``self.seen = ...``: the next call reads the new one
(``Value.next``) where this one has read the old one. So:

1. the two keep the same (``Graph.together``);
2. what is constant of the old one is constant in the new one too, and the same number; what the next call reads of the
   old one, this one needs of the new one (``speedup.infer``);
3. no number is folded into it, since what later calls make of it may be another one (``speedup.pieces``).

That holds if later calls do what this one does: so the model is called once more, and each of the calls that are made
then has to be one of those of the first time, in their order. There may be fewer: what the first call has divided, the
second reads as it is. Where there are others (``self.cache[self.position] = y``), and where the new tensor has another
shape, or no output of the model is made of it, so that it is there for somebody else (statistics): it is kept whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from speedup.graph import Graph
from speedup.node import Value
from speedup.repeats import repeats
from speedup.trace.tensors import Tensors


def left_over(tensors: Tensors, outputs: Sequence[Value]) -> list[Value]:
    """Find what is left for the next call, and note it of the tensors of the model.

    Args:
        outputs: what the model returns.

    Returns:
        what is to be kept as outputs are.
    """
    changed = []
    for source in tensors.touched():
        value = tensors.at_the_end(source)
        if value is not source and source.uses:  # else it is made anew by each call
            source.next = value
            changed.append(source)
    if not changed:
        return []
    used = _made_of(outputs)
    return [v for s in changed if s not in used or not s.is_replaced_alike for v in _both(s)]


def hold(graph: Graph) -> None:
    """Keep all of what a call leaves for the next one."""
    for value in [v for source in graph.replaced for v in _both(source)]:
        if not value.is_output:
            value.is_output = True
            graph.outputs.append(value)


def is_repeated(graph: Graph, again: Graph) -> bool:
    """Whether the next call of the model makes no other calls than the recorded one.

    Args:
        again: that call.
    """
    if again.branch is not None and graph.branch is None:
        return False
    held = {v.names: v for v in graph.values if v.tensor is not None}
    same = dict(zip(again.inputs, graph.inputs, strict=True))
    same |= {v: held[v.names] for v in again.values if v.tensor is not None and v.names in held}
    others = iter(graph.nodes)
    for node in again.nodes:
        other = next((n for n in others if repeats(node, n) and _reads_the_same(node.tensors, n.tensors, same)), None)
        if other is None or len(node.outputs) != len(other.outputs):
            return False
        same.update(zip(node.outputs, other.outputs, strict=True))
    return len(again.outputs) <= len(graph.outputs) and _reads_the_same(
        again.outputs[: len(again.reference)], graph.outputs[: len(graph.reference)], same
    )


def _reads_the_same(own: Sequence[Value], others: Sequence[Value], same: dict[Value, Value]) -> bool:
    """Whether these are the same values, or what the call before has left of them."""
    pairs = zip([same.get(v) for v in own], others, strict=True)
    return len(own) == len(others) and all(a is not None and b in (a, a.next) for a, b in pairs)


def _both(source: Value) -> list[Value]:
    return [v for v in (source, source.next) if v is not None]


def _made_of(outputs: Iterable[Value]) -> set[Value]:
    """The values that outputs are made of, in this call or in later ones."""
    found: set[Value] = set()
    waiting = list(outputs)
    while waiting:
        value = waiting.pop()
        if value in found:
            continue
        found.add(value)
        if value.producer is not None:
            waiting += value.producer.tensors
        if value.next is not None:
            waiting.append(value.next)
    return found
