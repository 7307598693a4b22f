"""Norms whose channels can go where they are 0: such a channel gives its bias, and the smaller module goes on counting
it among those that are left."""

from __future__ import annotations

import numpy as np

from speedup import Bools, Constant, Fact, Node, NodeFacts, NodeKeep, Rule, unused_operands


class ZerosGo(Rule):
    """Operands are the input, with an axis ``c``, and parameters for it, of which the third operand is the bias.

    Attributes:
        counts_it: the reason why a channel that is not 0 stays, for users.
    """

    counts_it = ""

    def zero(self, node: Node, facts: NodeFacts) -> Bools:
        """The channels that are 0, in named space."""
        return node.layout.project_all(0, node.layout.to_named(0, facts.zero(0)))

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """A channel that is 0 gives its bias."""
        layout, zero = node.layout, self.zero(node, facts)
        if not zero.any():
            return {}
        bias = layout.to_named(2, facts.value(2)) if facts.present(2) else np.zeros((1,) * len(layout.names))
        mask, bias = (layout.from_named(layout.n_inputs, a) for a in np.broadcast_arrays(zero, bias))
        return {"output": Constant(mask, np.where(mask, bias, 0.0))}

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """An input is read by every output that counts it; parameters by their own."""
        layout, out = node.layout, node.layout.n_inputs
        unused = layout.project_all(out, layout.to_named(out, facts.unused(out)))
        uncounted = np.all(unused, axis=layout.axes({"c"}), keepdims=True)
        return unused_operands(node, {k: unused if k else uncounted for k in range(len(node.operands))})

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        super().constrain(node, keep)
        layout, out = node.layout, node.layout.n_inputs
        own = node.calls == 1 and all(v is None or len(v.uses) == 1 for v in node.operands[1:])
        zero = self.zero(node, keep.facts) if own else np.zeros((1,) * len(layout.names), dtype=bool)
        counted = np.any(layout.to_named(out, keep.sets[out]), axis=layout.axes({"c"}), keepdims=True)
        read = counted & ~zero & ~layout.to_named(0, keep.sets[0])
        if read.any():
            keep.grow(0, layout.from_named(0, layout.project_any(0, read)), self.counts_it, 0)
