"""Rules for packing sequences of several lengths and for padding them again: features stay apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speedup import Bools, Constant, Fact, Node, NodeFacts, Rule, Unused
from speedup_plugin_recurrent.known import uniform


class Packing(Rule):
    """data, batch sizes = pack(input, lengths), or padded, lengths = pad(data, batch sizes)."""

    operands = ("input",)

    def filler(self, node: Node) -> float | None:
        """What is put in between; None for nothing."""
        return None

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        mask, value = np.broadcast_arrays(facts.mask(0), facts.value(0))
        known = uniform(mask, value, tuple(range(mask.ndim - 1)))
        filler = self.filler(node)
        same = known.mask if filler is None else known.mask & (known.value == filler)
        shape = [1] * (node.outputs[0].ndim - 1) + [-1]
        return {"output0": Constant(same.reshape(shape), known.value.reshape(shape))} if same.any() else {}

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        unused = facts.unused(1)
        unused = np.asarray(unused.all(axis=tuple(range(unused.ndim - 1))))
        value = node.operands[0]
        assert value is not None
        return {"input": Unused(unused.reshape([1] * (value.ndim - 1) + [-1]))} if unused.any() else {}

    def fits(self, node: Node, keep: Sequence[Bools], call: Node | None = None) -> bool:
        """Batch sizes and lengths stay."""
        return bool(keep[-1].all())


class Pack(Packing):
    call = "input, lengths, batch_first"
    axes = "~2 c -> ~1 c, ~1"


class Pad(Packing):
    call = "input, batch_sizes, batch_first, padding_value, total_length"
    axes = "~1 c -> ~2 c, ~1"

    def filler(self, node: Node) -> float:
        return float(node.arg("padding_value"))
