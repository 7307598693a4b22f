"""Entries that go to an index that is data: sums over the neighbours in a graph, tokens that come back from experts.

The axis that is indexed stays whole; the others pass entry for entry, so that channels can go.
"""

from __future__ import annotations

import numpy as np

from speedup import Bools, Constant, Fact, Node, NodeFacts, Rule, SignatureError, Unused


class Scatter(Rule):
    """Into the entries of ``input`` along ``dim`` go those of ``source``: they are added, take their place, ..."""

    call = "input, dim, index, source, *args, **kwargs"
    operands = ("input", "index", "source")

    def signature(self, node: Node) -> str:
        value, index, source = node.operands
        dim = node.arg("dim")
        if value is None or index is None or source is None or not value.ndim or not isinstance(dim, int):
            raise SignatureError("a tensor, an index and a source are wanted")
        axes = [f"a{n}" for n in range(value.ndim)]
        axes[dim % value.ndim] = "~"
        along = " ".join(axes)
        return f"{along}, {self.indexed(along)}, {along} -> {along}"

    def indexed(self, along: str) -> str:
        """The axes of the index."""
        return along

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """What is 0 in both stays 0, wherever it goes."""
        mask = node.layout.from_named(node.layout.n_inputs, _both_zero(node, facts))
        return {"output": Constant(mask, np.zeros(mask.shape))} if mask.any() else {}

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """Where zeros go does not matter."""
        layout, out = node.layout, node.layout.n_inputs
        unused = layout.project_all(out, layout.to_named(out, facts.unused(out)))
        found: dict[str, Fact] = {}
        for k, idle in enumerate((unused, unused | _both_zero(node, facts), unused)):
            mask = layout.from_named(k, layout.project_all(k, idle))
            if mask.any():
                found[node.operand_names[k]] = Unused(mask)
        return found


def _both_zero(node: Node, facts: NodeFacts) -> Bools:
    """Where input and source are 0 all along the axis, in named space."""
    layout, out = node.layout, node.layout.n_inputs
    zeros = [layout.project_all(out, layout.to_named(k, facts.zero(k))) for k in (0, 2)]
    both: Bools = zeros[0] & zeros[1]
    return both


class ScatterRows(Scatter):
    """The same with one index for everything that stands at a place of the axis."""

    def indexed(self, along: str) -> str:
        return "~"
