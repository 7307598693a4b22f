"""speedup rules for linear layers and matrix products."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import nn

from speedup import Node, Rule, SignatureError, hookimpl, variants


class MatMul(Rule):
    """A product of two activations, or of an activation and a raw parameter: nothing but a contraction."""

    name = "matmul"
    functions = variants("matmul", "mm", "bmm", "mv", "dot", "inner_product", missing_ok=True)

    def signature(self, node: Node) -> str:
        left, right = (v.ndim for v in node.operands if v is not None)
        if left == 0 or right == 0:
            raise SignatureError("matmul of a scalar")
        row, column = ("" if left == 1 else "i"), ("" if right == 1 else "j")
        batch = "" if left <= 2 and right <= 2 else "*"
        a = f"{batch if left > 2 else ''} {row} k"
        b = f"{batch if right > 2 else ''} k {column}"
        return f"{a}, {b} -> {batch} {row} {column}"


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    return [
        Rule(
            name="linear",
            modules=(nn.Linear,),
            functions=(F.linear,),
            call="input, weight, bias=None",
            operands=("input", "weight", "bias"),
            axes="* i, o i, o? -> * o",
            sizes={"in_features": "i", "out_features": "o"},
            bias="bias",
        ),
        Rule(
            name="bilinear",
            modules=(nn.Bilinear,),
            operands=("input1", "input2", "weight", "bias"),
            axes="* ~a, * ~b, o ~1 ~1, o? -> * o",
            sizes={"out_features": "o"},
        ),
        MatMul(),
    ]
