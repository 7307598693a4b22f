"""Distances and angles between vectors: entries go where both vectors are 0, since there they add nothing."""

from __future__ import annotations

import numpy as np

from speedup import Bools, Fact, Node, NodeFacts, NodeKeep, Rule, SignatureError, unused_operands


class Between(Rule):
    """A number of two vectors along the axis ``c``, to which an entry that is 0 in both adds nothing."""

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """An entry is read by every number that is made of its vector, whatever the other vector has there."""
        unused = node.layout.to_named(2, facts.unused(2))
        return unused_operands(node, {0: unused, 1: unused})

    def folds(self, node: Node) -> bool:
        return False

    def derived(self, node: Node) -> set[int]:
        return set()

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        super().constrain(node, keep)
        layout = node.layout
        adds = np.logical_or(*(self._adds(node, keep.facts, k) for k in (0, 1)))
        for k in (0, 1):
            vectors = np.any(layout.to_named(k, keep.sets[k]), axis=layout.axes({"c"}), keepdims=True)
            wanted = layout.from_named(k, layout.project_any(k, adds & vectors))
            keep.grow(k, wanted, "one of both vectors is not 0 there", 1 - k)

    @staticmethod
    def _adds(node: Node, facts: NodeFacts, k: int) -> Bools:
        """Where a vector is not 0, per entry of the axis, in named space."""
        layout = node.layout
        other = ~layout.to_named(k, facts.zero(k))
        over = tuple(p for p, name in enumerate(layout.names) if name != "c")
        return np.asarray(other.any(axis=over, keepdims=True))


class Distance(Between):
    """cdist: the distance of every row of one matrix to every row of another."""

    axes = "* p c, * r c -> * p r"
    call = "x1, x2, p=2.0, *args, **kwargs"
    operands = ("x1", "x2")


class Cosine(Between):
    """cosine_similarity: both vectors are divided by their own lengths."""

    call = "x1, x2, dim=1, eps=1e-8"
    operands = ("x1", "x2")

    def signature(self, node: Node) -> str:
        one, two = node.operands
        if one is None or two is None:
            raise SignatureError("two tensors are wanted")
        ndim = max(one.ndim, two.ndim)
        at = node.arg("dim") % ndim
        if min(one.ndim, two.ndim) < ndim - at or 1 in (one.shape[at - ndim], two.shape[at - ndim]):
            raise SignatureError("a vector that is one number, repeated")
        names = ["c" if axis == at else f"a{axis}" for axis in range(ndim)]
        inner = [" ".join(names[ndim - value.ndim :]) for value in (one, two)]
        return f"{inner[0]}, {inner[1]} -> {' '.join(n for n in names if n != 'c')}"
