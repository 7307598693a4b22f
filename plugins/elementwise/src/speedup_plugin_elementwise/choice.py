"""One of two entries, whichever a condition says: where both are the same constant, the condition does not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from speedup import Affine, Bools, Constant, Fact, Floats, Node, NodeFacts, Ref, Rule, Unused


class Chosen(Rule):
    """where(condition, a, b), a.where(condition, b), a.masked_fill(condition, b)."""

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        found = super().infer_from_input(node, facts)
        known = found.get("output")
        mask, value = self._same(node, facts)
        if not mask.any():
            return found
        if isinstance(known, Affine):
            return {"output": known.with_constants(mask, np.where(mask, value, 0.0))}
        if isinstance(known, Constant):
            value = np.where(known.mask, known.value, value)
            mask = mask | known.mask
        return {"output": Constant(*np.broadcast_arrays(mask, np.where(mask, value, 0.0)))}

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        found = super().infer_from_output(node, facts)
        condition = self._parts(node)[0]
        if not isinstance(condition, Ref):
            return found
        value = node.operands[condition.number]
        mask, _ = self._same(node, facts)
        assert value is not None
        idle = facts.unused(len(node.operands)) | mask
        name = node.operand_names[condition.number]
        mask = _back(idle, value.shape)
        return {**found, name: Unused(mask)} if mask.any() else found

    def _same(self, node: Node, facts: NodeFacts) -> tuple[Bools, Floats]:
        """Where both entries are one constant, and its value, in the shape of the output."""
        ndim = node.outputs[0].ndim
        nothing = np.zeros((1,) * ndim, dtype=bool), np.zeros((1,) * ndim)
        both = [self._constant(part, facts, ndim) for part in self._parts(node)[1:]]
        if any(b is None for b in both):
            return nothing
        (one, a), (two, b) = both  # type: ignore[misc]
        return one & two & (a == b), a

    @staticmethod
    def _constant(part: Any, facts: NodeFacts, ndim: int) -> tuple[Bools, Floats] | None:
        if isinstance(part, int | float):
            return np.ones((1,) * ndim, dtype=bool), np.full((1,) * ndim, float(part))
        if not isinstance(part, Ref):
            return None
        mask, value = facts.mask(part.number), facts.value(part.number)
        if facts.is_weight(part.number):  # the rest of a parameter may be trained further
            mask, value = facts.zero(part.number), np.zeros((1,) * mask.ndim)
        wide = (1,) * (ndim - mask.ndim)
        return mask.reshape(wide + mask.shape), np.asarray(value).reshape((1,) * (ndim - value.ndim) + value.shape)

    @staticmethod
    def _parts(node: Node) -> tuple[Any, Any, Any]:
        """The condition and what it chooses between: tensors as ``Ref``, or numbers."""
        given = dict(enumerate(node.args))
        first = 0 if node.op is torch.where else 1
        others = [0, 1, 2]
        others.remove(first)
        condition = given.get(first, node.kwargs.get("condition", node.kwargs.get("mask")))
        named = [n for n in ("input", "self", "other", "value") if n in node.kwargs]
        rest = [given[k] for k in others if k in given] + [node.kwargs[n] for n in named]
        return (condition, *rest) if len(rest) == 2 else (condition, None, None)


def _back(mask: Bools, shape: tuple[int, ...]) -> Bools:
    """What holds for all entries of an output that an operand, which broadcasts to it, stands for."""
    lead = mask.ndim - len(shape)
    own = np.all(mask, axis=tuple(range(lead)))
    found: Bools = np.all(own, axis=tuple(a for a, size in enumerate(shape) if size == 1), keepdims=True)
    return found
