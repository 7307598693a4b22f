"""Convolutions and transposed convolutions whose weight is a parameter as it is."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import nn

from speedup import Constant, Fact, Node, NodeFacts, Rule, Value, overlaid, says_nothing
from speedup_plugin_conv.band import Band, BandForward, is_band
from speedup_plugin_conv.borders import at_borders
from speedup_plugin_conv.fixed import FixedForward
from speedup_plugin_conv.geometry import per_axis


class Conv(Rule):
    """out[n, g, o, .] = sum over i and the window of x[n, g, i, .] w[g, o, i, .] + b[g, o]."""

    operands: tuple[str, ...] = ("input", "weight", "bias")
    sizes = {"in_channels": "g i", "out_channels": "g o", "groups": "g"}  # noqa: RUF012
    bias = "bias"
    makes: tuple[type, ...] = (FixedForward, BandForward)
    band = Band(name="conv over channels", axes="* 1 p, 1 1 ~1, 1? -> * 1 p", operands=operands, bias=None)

    def claim(self, node: Node) -> None:
        if is_band(node.module):
            self.band.claim(node)
        else:
            super().claim(node)

    def fixed(self, node: Node, module: nn.Module) -> nn.Module | None:
        module.register_parameter("weight", None)
        module.__class__ = overlaid(FixedForward, type(module))
        return module

    def signature(self, node: Node) -> str:
        d = dims_of(node.operand("weight"))
        if _is_pointwise(node):  # a linear layer at every position
            at = " ".join(f"p{n}" for n in range(d))
            return f"* (g i) {at}, (g o) i {'1 ' * d}, (g o)? -> * (g o) {at}"
        return f"* (g i) ~{d}, (g o) i ~{d}, (g o)? -> * (g o) ~{d}"

    infer_from_weight = says_nothing  # what is derived for inputs says it too

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """As derived; and what zero padding makes of constants."""
        found = super().infer_from_input(node, facts)
        known = None if self.uniform(node) else at_borders(node, facts)
        if known is None:
            return found
        plain = found.get("output")
        return {"output": known.with_constants(plain.mask, plain.value) if isinstance(plain, Constant) else known}

    def uniform(self, node: Node) -> bool:
        """Zero padding sets the border apart from the inside."""
        padding = node.arg("padding", 0)
        if node.module is not None and node.arg("padding_mode") != "zeros":
            return True
        if padding == "same":
            weight = node.operand("weight")
            return weight is not None and all(k == 1 for k in weight.shape[2:])
        several = type(padding) is tuple or isinstance(padding, Sequence)  # most are tuples, which is found out faster
        return padding == "valid" or not any(padding if several else (padding,))


class ConvTranspose(Conv):
    """As a convolution, with the weight stored input channels first; the window is spread, so borders always differ."""

    makes = ()

    def fixed(self, node: Node, module: nn.Module) -> nn.Module | None:
        return None

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return Rule.infer_from_input(self, node, facts)

    def signature(self, node: Node) -> str:
        d = dims_of(node.operand("weight"))
        return f"* (g i) ~{d}, (g i) o ~{d}, (g o)? -> * (g o) ~{d}"

    def uniform(self, node: Node) -> bool:
        weight = node.operand("weight")
        assert weight is not None
        ones = (1,) * dims_of(weight)
        plain = all(
            per_axis(node.arg(name, default), len(ones)) == (default,) * len(ones)
            for name, default in (("stride", 1), ("padding", 0), ("output_padding", 0))
        )
        return plain and weight.shape[2:] == ones

    def multiply_accumulates(self, node: Node, shapes: Sequence[tuple[int, ...] | None]) -> int:
        d = dims_of(node.operand("weight"))
        inputs, weight = shapes[0] or (), shapes[1] or ()
        return prod(inputs) * prod(weight[1:]) if d else 0


def dims_of(weight: torch.Tensor | Value | None) -> int:
    """How many axes of positions a convolution with this weight has."""
    assert weight is not None
    return weight.ndim - 2


def _is_pointwise(node: Node) -> bool:
    """Whether an output entry reads its own position alone."""
    weight, padding = node.operand("weight"), node.arg("padding", 0)
    assert weight is not None
    ones = (1,) * dims_of(weight)
    unpadded = padding in ("same", "valid") or not any(per_axis(padding, len(ones)))
    return weight.shape[2:] == ones and per_axis(node.arg("stride", 1), len(ones)) == ones and unpadded
