"""Decisions that rounding tips: what is sorted, compared or rounded to whole numbers may come out otherwise.

Two boxes with nearly the same score, a pixel on the border of a bin: the small model is right, and gives other numbers
than the masked one from there on. So where its outputs differ it is run once more, and each call that gets the same
numbers as in the masked run, and cannot be at fault, is made to give what it gave there. What differs then is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from speedup.arrays import nothing
from speedup.bias import is_shifted
from speedup.graph import Graph
from speedup.instead import stands_for
from speedup.keep import KeepSets
from speedup.node import Node, Value
from speedup.rounding import difference, distance, largest_entry


class Decisions:
    """Watches a run of the small model, with every intermediate result of the masked one at hand.

    Attributes:
        got: every result of the small model, call by call.
        largest: the largest number of the masked run.
        taken: the calls whose results were taken from the masked run.
    """

    def __init__(self, graph: Graph, keeps: KeepSets, wanted: Sequence[list[torch.Tensor]]) -> None:
        self.graph, self.keeps, self.wanted = graph, keeps, wanted
        self.got: list[list[torch.Tensor]] | None = []
        self.largest = max((largest_entry(t) for outputs in wanted for t in outputs), default=0.0)
        self.taken: list[Node] = []
        self._results = {
            v: t for n, ts in zip(graph.nodes, wanted, strict=False) for v, t in zip(n.outputs, ts, strict=False)
        }

    def __call__(
        self, number: int, op_name: str, tensors: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """What the call is to give: its own outputs, or those of the masked run."""
        node = self.node(number, op_name, tensors, outputs)
        if node is None or not self._may_tip(node):
            return list(outputs)
        expected = [self.expected(v) for v in node.outputs]
        if difference(expected, outputs) is None:
            return list(outputs)
        # What comes from nowhere (made out of sight, by a transform of a function) may be anything.
        pairs = [p for p in zip(node.tensors, tensors, strict=True) if p[0].kind != "input"]
        if not all(self._agrees(v, t) for v, t in pairs):
            return list(outputs)
        self.taken.append(node)
        return [e.clone().to(o) for e, o in zip(expected, outputs, strict=True)]

    def node(
        self, number: int, op_name: str, tensors: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
    ) -> Node | None:
        """The call of the masked run that this one stands for, None where there is none to compare it with."""
        node = self.graph.nodes[number] if number < len(self.graph.nodes) else None
        if node is None or not stands_for(op_name, node, self.keeps):
            return None
        if len(node.outputs) != len(outputs) or len(node.tensors) != len(tensors):
            return None
        return node if all(v in self._results for v in node.outputs) else None

    def expected(self, value: Value) -> torch.Tensor:
        """What is kept of a value in the masked run."""
        return self.keeps.cut(value, self._results[value])

    def wrong(self, value: Value, tensor: torch.Tensor) -> str:
        """What is wrong with an output of a call, '' when nothing is: what the rules say, or its numbers."""
        assert value.producer is not None
        worst = _wrong_constant(self.keeps, value, self._results[value])
        if not worst and not is_shifted(value.producer):
            worst = self.differs(value, tensor, self.allowed(tensor))
        return worst

    def allowed(self, tensor: torch.Tensor) -> float | None:
        """How far the numbers of a call may be off, relative to the largest; None for what outputs of models may."""
        return None

    def differs(self, value: Value, tensor: torch.Tensor, tolerance: float | None = None) -> str:
        """Where the kept entries of a value that somebody needs differ from the masked run; '' where they do not.

        Args:
            tolerance: as ``allowed``.
        """
        small, got = self.expected(value), tensor
        if small.shape != got.shape:
            return f"its size is {tuple(got.shape)} instead of {tuple(small.shape)}"
        unused = self.keeps.facts.unused(value) | nothing(value.ndim)
        idle = self.keeps.cut(value, torch.from_numpy(np.broadcast_to(unused, value.shape).copy())).to(got.device)
        small, got = (torch.where(idle, torch.zeros_like(t), t) for t in (small, got))
        worst = difference([small], [got])
        if worst is not None or tolerance is None or got.is_meta:
            return (worst or "").replace("output 0", "it")
        error, scale = distance(small, got)
        return f"it differs by {error:.3g} (its largest entry is {scale:.3g})" if error > tolerance * scale else ""

    def _may_tip(self, node: Node) -> bool:
        """Whether a call is as it was, with all of its weights, or gives whole numbers."""
        return is_decision(node) or all(map(self.keeps.whole, (*node.tensors, *node.outputs)))

    def _agrees(self, value: Value, tensor: torch.Tensor) -> bool:
        """Whether a call gets the numbers of the masked run, and of the model's own tensors what is kept of them,
        masked: one that is held out of reach may be as it was before."""
        if value.is_source:
            return difference([self.keeps.cut(value, value.contents())], [tensor.detach()]) is None
        return value in self._results and not self.differs(value, tensor)

    def first_difference(self) -> str:
        """The first call whose kept outputs differ, for the message of a refusal; '' when none does."""
        for node, old, new in zip(self.graph.nodes, self.wanted, self.got or (), strict=False):
            for value, _, b in zip(node.outputs, old, new, strict=False):
                worst = self.wrong(value, b)
                if worst:
                    return f"first at {place_of(node)}: {worst}{out_of_reach(node)}"
        return ""

    def first_without_number(self) -> str:
        """Where the masked model itself first makes NaN of numbers, for the message of a refusal; '' where nowhere."""
        for node, made in zip(self.graph.nodes, self.wanted, strict=False):
            if any(bool(t.isnan().any()) for t in made if t.is_floating_point() and not t.is_meta):
                return (
                    f"With these masks the model computes NaN, first at {place_of(node)}: they may leave a length or "
                    "a sum of 0 to divide by, and 0 times what is infinite is NaN, so that constants are none any "
                    "more. Leave out the masks that lead there. "
                )
        return ""


def place_of(node: Node) -> str:
    """A call, its rule and where it stands, for messages."""
    return f"{node.label}, {node.rule.label if node.rule is not None else 'no rule'}, {node.where}"


def out_of_reach(node: Node) -> str:
    """A hint where a call may read a parameter as it was, since not only its module holds it."""
    held = [f"{v.names[0]} is held by {v.aliases[0]!r} too" for v in node.tensors if v.aliases]
    why = "where it may be out of reach (in a closure, in an object): read it from its module, or keep it in a list"
    return f" ({held[0]}, {why})" if held else ""


def is_decision(node: Node) -> bool:
    """Whether a call gives only whole numbers or truth values."""
    return bool(node.outputs) and not any(v.dtype.is_floating_point or v.dtype.is_complex for v in node.outputs)


def _wrong_constant(keeps: KeepSets, value: Value, real: torch.Tensor) -> str:
    """Where the masked run itself gives another number than a rule said; '' when it does not."""
    known = keeps.facts.constants.get(value)
    if known is None or real.is_complex():
        return ""
    said = torch.from_numpy(np.broadcast_to(np.where(known.mask, known.value, 0.0), real.shape).copy())
    at = torch.from_numpy(np.broadcast_to(known.mask, real.shape).copy())
    real = torch.where(at, real.detach().to("cpu", torch.float64), 0.0).to(real.dtype)
    worst = difference([real], [said.to(real.dtype)])
    return f"the rule says that entries are constant, and the call gives others: {worst}" if worst else ""
