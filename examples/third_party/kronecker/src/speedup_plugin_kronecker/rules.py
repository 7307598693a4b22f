"""The rule of KroneckerLinear: y[p q] = sum over a, b of left[p, a] · right[q, b] · x[a b], plus bias[p q]."""

from __future__ import annotations

import numpy as np
import torch
from speedup import Bools, Constant, Fact, Kept, Node, NodeFacts, NodeKeep, Rule, Unused
from torch import nn

from .layers import KroneckerLinear


class Kronecker(Rule):
    """Three operands are multiplied, so what follows from zeros is said here; what shrinks together, by the axes."""

    name = "kronecker"
    modules = (KroneckerLinear,)
    operands = ("input", "left", "right", "bias")
    axes = "* (a b), p a, q b, (p q)? -> * (p q)"
    sizes = {"in_features": "a b", "out_features": "p q"}  # noqa: RUF012

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        left, right = (np.broadcast_to(facts.zero(k), node.operands[k].shape) for k in (1, 2))
        line = (1,) * (node.outputs[0].ndim - 1) + (-1,)  # facts have all axes of the tensor that they are about
        rows, columns = (np.logical_or.outer(left.all(k), right.all(k)).reshape(line) for k in (1, 0))
        bias = facts.value(3).reshape(line) if facts.present(3) else 0.0
        return {"output": Constant(rows, np.broadcast_to(bias, rows.shape)), "input": Unused(columns)}

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        (p, a), (q, b) = (node.operands[k].shape for k in (1, 2))
        unused, zero = grid(facts.unused(4), p, q), grid(facts.zero(0), a, b)
        found: dict[str, Fact] = {
            "left": Unused(unused.all(1)[:, None] | zero.all(1)),
            "right": Unused(unused.all(0)[:, None] | zero.all(0)),
        }
        return {**found, "bias": Unused(unused.reshape(-1))} if facts.present(3) else found

    def folds(self, node: Node) -> bool:
        return False  # the engine folds products of two; here `replace` does it

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        """What is constant goes into the bias, if there is one; what is known in a wider sense stays."""
        affine = keep.facts.affine(0)
        stays = np.zeros((1,) * node.operands[0].ndim, dtype=bool) if affine is None else affine.mask & ~affine.constant
        if not keep.facts.present(3):
            stays = stays | (keep.facts.mask(0) & (keep.facts.value(0) != 0))
        keep.grow(0, stays & ~keep.facts.unused(0), "nothing takes up what it contributes", 0)
        super().constrain(node, keep)

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = super().replace(node, keep)
        gone = np.where(keep.facts.mask(0) & ~keep.sets[0], keep.facts.value(0), 0.0).reshape(-1)
        if gone.any():
            left, right = (node.operands[k].tensor.detach().double().cpu() for k in (1, 2))
            share = torch.kron(left, right) @ torch.from_numpy(gone).expand(keep.module.in_features)
            share = share[torch.from_numpy(np.broadcast_to(keep.sets[3], share.shape).copy())]
            module.bias = nn.Parameter(module.bias.detach() + share.to(module.bias))
        return module


def grid(fact: Bools, rows: int, columns: int) -> Bools:
    """What holds along the last axis, (rows columns), at all positions."""
    line = fact.all(axis=tuple(range(fact.ndim - 1)))
    return np.broadcast_to(line, (rows * columns,)).reshape(rows, columns)


RULES = [Kronecker()]
