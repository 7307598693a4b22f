"""The rule of silu_and_mul: y[c] = silu(x[0 c]) · x[1 c]."""

from __future__ import annotations

import numpy as np
import torch
from speedup import Bools, Constant, Fact, Floats, Node, NodeFacts, Rule, Unused

from . import layers  # noqa: F401  (registers the op)

OP = torch.ops.third_party.silu_and_mul


class SiluAndMul(Rule):
    """Both halves keep the same positions, and where one of them is 0 the other is not read."""

    name = "silu_and_mul"
    functions = (OP, OP.default)
    call = "x"
    axes = "* (~half c) -> * c"

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        (gate_known, known), (gate, value) = halves(facts.mask(0)), halves(facts.value(0))
        zero = (gate_known & (gate == 0)) | (known & (value == 0))
        mask = zero | (gate_known & known)
        with np.errstate(over="ignore"):
            result = np.where(zero, 0.0, gate / (1 + np.exp(-gate)) * value)
        return {"output": Constant(mask, np.broadcast_to(result, mask.shape))}

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        unused, (gate_zero, value_zero) = facts.unused(1), halves(facts.zero(0))
        shape = np.broadcast_shapes(unused.shape, gate_zero.shape)[:-1] + node.outputs[0].shape[-1:]
        both = [np.broadcast_to(unused | zero, shape) for zero in (value_zero, gate_zero)]
        return {"x": Unused(np.concatenate(both, axis=-1))}


def halves(fact: Bools | Floats) -> list[np.ndarray]:
    """A fact about both halves of the last axis, of size 1 where it does not vary along it."""
    return [fact, fact] if fact.shape[-1] == 1 else np.split(fact, 2, axis=-1)


RULES = [SiluAndMul()]
