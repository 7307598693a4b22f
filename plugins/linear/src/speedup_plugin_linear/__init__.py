"""speedup rules for linear layers and matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speedup import (
    Bools,
    Constant,
    Fact,
    Floats,
    Node,
    NodeFacts,
    NodeKeep,
    Rule,
    SignatureError,
    hookimpl,
    rows_of_one,
    variants,
)
from speedup_plugin_linear import forms
from speedup_plugin_linear.einsum import Einsum
from speedup_plugin_linear.experts import Experts
from speedup_plugin_linear.products import RULES as OTHERS


class MatMul(Rule):
    """A product of two activations, or of an activation and a raw parameter: nothing but a contraction."""

    name = "matmul"
    functions = (*variants("matmul", "mm", "bmm", "mv", "dot"), torch.sparse.mm)

    def signature(self, node: Node) -> str:
        left, right = (v.ndim for v in node.operands if v is not None)
        if left == 0 or right == 0:
            raise SignatureError("matmul of a scalar")
        row, column = ("" if left == 1 else "i"), ("" if right == 1 else "j")
        batch = "" if left <= 2 and right <= 2 else "*"
        a = f"{batch if left > 2 else ''} {row} k"
        b = f"{batch if right > 2 else ''} k {column}"
        return f"{a}, {b} -> {batch} {row} {column}"

    def folds(self, node: Node) -> bool:
        return super().folds(node) and not forms.inner(node) and not forms.outer(node)

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        super().constrain(node, keep)
        kept = np.broadcast_to(keep.sets[0], node.operands[0].shape if node.operands[0] is not None else ())
        if kept.any() and not kept.all() and forms.inner(node) and forms.ratio(node, keep) is None:
            keep.grow(0, np.ones_like(kept), "the number that is made of it counts it", 0)

    def refit(self, node: Node, keep: NodeKeep) -> Mapping[str, torch.Tensor]:
        """What is left of a number that is made of the model's own tensors alone is made the whole again."""
        ratio, v = forms.ratio(node, keep) if forms.inner(node) else None, node.operands[1]
        return {} if ratio in (None, 1.0) or v is None else {node.operand_names[1]: v.contents() * ratio}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """Where one side is the weights of means, what the other has at all positions comes out (attention)."""
        found = super().infer_from_input(node, facts)
        for side, axis in ((0, -1), (1, -2)):
            weights, other = node.operands[side], 1 - side
            if weights is None or weights.ndim < 2 or rows_of_one(weights) != axis % weights.ndim:
                continue
            mask, value = _alike_along(node, facts, other, "k")
            if not mask.any():
                continue
            known = found.get("output")
            if isinstance(known, Constant):
                value = np.where(known.mask, known.value, value)
                mask = mask | known.mask
            found["output"] = Constant(*np.broadcast_arrays(mask, value))
        return found


def _alike_along(node: Node, facts: NodeFacts, k: int, name: str) -> tuple[Bools, Floats]:
    """Where an operand is constant, and the same, all along a name; in the shape of the output."""
    layout = node.layout
    over = layout.axes({name})
    mask = layout.to_named(k, facts.mask(k))
    value = np.where(mask, layout.to_named(k, facts.value(k)), 0.0)
    low, high = value.min(axis=over, keepdims=True), value.max(axis=over, keepdims=True)
    mask = mask.all(axis=over, keepdims=True) & (low == high)
    out = layout.n_inputs
    return layout.from_named(out, mask), layout.from_named(out, low)


class AddMatMul(Rule):
    """input + a @ b, where the input broadcasts to the product. With factors, or summed over a batch, in parts."""

    bias = "input"

    def in_parts(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Callable[..., Any] | None:
        factors = [kwargs.get(name, 1) for name in ("beta", "alpha")]
        plain = factors == [1, 1] and not function.__name__.startswith("addbmm")
        numbers = args and isinstance(args[0], int | float)  # an old form, with factors in front
        if plain or numbers or "out" in kwargs or function.__name__.endswith("_"):
            return None
        return _summed if function.__name__.startswith("addbmm") else _scaled

    def signature(self, node: Node) -> str:
        if node.arg("beta", 1) != 1 or node.arg("alpha", 1) != 1:
            raise SignatureError("beta and alpha other than 1")
        left, right, added = (v.ndim for v in node.operands if v is not None)
        batch = ["n"] if left == 3 else []
        out = [*batch, "i", *(["j"] if right > 1 else [])]
        a, b = " ".join([*batch, "i", "k"]), " ".join([*batch, "k", *out[len(batch) + 1 :]])
        return f"{a}, {b}, {' '.join(out[len(out) - added :])} -> {' '.join(out)}"


def _scaled(input: Any, a: Any = None, b: Any = None, *, beta: float = 1, alpha: float = 1, **named: Any) -> Any:
    return _plus(input, beta, torch.matmul(*_factors(a, b, named)), alpha)


def _summed(input: Any, a: Any = None, b: Any = None, *, beta: float = 1, alpha: float = 1, **named: Any) -> Any:
    return _plus(input, beta, torch.bmm(*_factors(a, b, named)).sum(0), alpha)


def _factors(a: Any, b: Any, named: Mapping[str, Any]) -> list[Any]:
    """Both factors, which have other names in each of these functions."""
    given = [x for x in (a, b) if x is not None]
    return given + [named[n] for n in ("mat1", "mat", "batch1", "mat2", "vec", "batch2") if n in named]


def _plus(input: torch.Tensor, beta: float, product: torch.Tensor, alpha: float) -> torch.Tensor:
    # What is multiplied with 0 is not read, and may be no number.
    input = input if beta == 1 else torch.zeros_like(input) if beta == 0 else input * beta
    return input + (product if alpha == 1 else product * alpha)


class Inner(Rule):
    """The sum of products along the last axes of both."""

    name = "inner"
    functions = variants("inner")

    def signature(self, node: Node) -> str:
        left, right = (
            [f"{side}{n}" for n in range(v.ndim - 1)] for side, v in zip("ab", node.operands, strict=True) if v
        )
        return f"{' '.join(left)} k, {' '.join(right)} k -> {' '.join(left + right)}"


class Bilinear(Rule):
    """out[o] = sum over a and b of input1[a] * weight[o, a, b] * input2[b], plus bias[o]."""

    operands = ("input1", "input2", "weight", "bias")
    axes = "* a, * b, o a b, o? -> * o"
    sizes = {"in1_features": "a", "in2_features": "b", "out_features": "o"}  # noqa: RUF012
    annihilates = {  # noqa: RUF012
        "input1": ("input2", "weight"),
        "input2": ("input1", "weight"),
        "weight": ("input1", "input2"),
    }

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """The bias comes out where every product has a factor 0."""
        one, two, weight = facts.zero(0), facts.zero(1), facts.zero(2)
        nothing = (one[..., None, :, None] | two[..., None, None, :] | weight).all(axis=(-2, -1))
        if not nothing.any():
            return {}
        value = facts.value(3) if facts.present(3) else np.zeros(1)
        known = facts.mask(3) if facts.present(3) else np.ones(1, dtype=bool)
        mask, value = np.broadcast_arrays(nothing & known, value)
        return {"output": Constant(mask, value)}

    def multiply_accumulates(self, node: Node, shapes: Sequence[tuple[int, ...] | None]) -> int:
        first, weight = shapes[0] or (), shapes[2] or ()
        return prod(first[:-1]) * prod(weight)


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
        Bilinear(
            name="bilinear",
            modules=(nn.Bilinear,),
            functions=variants("bilinear"),
            call="input1, input2, weight, bias=None",
        ),
        MatMul(),
        AddMatMul(
            name="addmm",
            functions=variants("addmm"),
            call="input, mat1, mat2, *, beta=1, alpha=1",
            operands=("mat1", "mat2", "input"),
        ),
        AddMatMul(
            name="addmv",
            functions=variants("addmv"),
            call="input, mat, vec, *, beta=1, alpha=1",
            operands=("mat", "vec", "input"),
        ),
        AddMatMul(
            name="baddbmm",
            functions=variants("baddbmm", "addbmm"),
            call="input, batch1, batch2, *, beta=1, alpha=1",
            operands=("batch1", "batch2", "input"),
        ),
        Inner(),
        Einsum(),
        Experts(),
        *OTHERS,
    ]
