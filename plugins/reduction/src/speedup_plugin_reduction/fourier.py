"""Fourier transforms along some axes, as over the positions of an image (GFNet, Fourier neural operators).

All entries along these axes mix, and the others pass: a channel that is 0 stays 0. Of other constants nothing is said,
for what they become is not the same at all frequencies.
"""

from __future__ import annotations

import numpy as np

from speedup import Constant, Fact, Node, NodeFacts, Rule


class ZerosStay(Rule):
    """Linear, with axes that mix: where all is 0 along them, 0 comes out."""

    operands = ("input",)

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        layout, out = node.layout, node.layout.n_inputs
        zero = layout.project_all(out, layout.to_named(0, facts.zero(0)))
        mask = layout.from_named(out, zero)
        return {"output": Constant(mask, np.zeros(mask.shape))} if mask.any() else {}

    def over(self, node: Node) -> set[int]:
        """The axes that mix."""
        raise NotImplementedError

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        over = self.over(node)
        axes = " ".join(f"~x{a}" if a in over else f"a{a}" for a in range(value.ndim))
        return f"{axes} -> {axes}"


class Fourier(ZerosStay):
    """Along one axis."""

    call = "input, n=None, dim=-1, norm=None, *, out=None"

    def over(self, node: Node) -> set[int]:
        value = node.operands[0]
        assert value is not None
        return {node.arg("dim") % value.ndim}


class FourierOfMany(ZerosStay):
    """Along several axes, by default all."""

    call = "input, s=None, dim=None, norm=None, *, out=None"

    def over(self, node: Node) -> set[int]:
        value, dim, sizes = node.operands[0], node.arg("dim"), node.arg("s")
        assert value is not None
        if dim is None:
            dim = range(-len(sizes), 0) if sizes is not None else range(value.ndim)
        return {d % value.ndim for d in ((dim,) if isinstance(dim, int) else dim)}


class FourierOfImages(FourierOfMany):
    """Along the last two axes, if no others are named."""

    call = "input, s=None, dim=(-2, -1), norm=None, *, out=None"


class Shifted(FourierOfMany):
    """fftshift: the frequencies stand in another order."""

    call = "input, dim=None"

    def over(self, node: Node) -> set[int]:
        value, dim = node.operands[0], node.arg("dim")
        assert value is not None
        chosen = range(value.ndim) if dim is None else (dim,) if isinstance(dim, int) else dim
        return {d % value.ndim for d in chosen}


class Complex(ZerosStay):
    """view_as_complex: the last axis has real and imaginary part."""

    call = "input"

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        axes = " ".join(f"a{a}" for a in range(value.ndim - 1))
        return f"{axes} ~part -> {axes}"


class Real(ZerosStay):
    """view_as_real, the other way round."""

    call = "input"

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        axes = " ".join(f"a{a}" for a in range(value.ndim))
        return f"{axes} -> {axes} ~part"


class Part(ZerosStay):
    """real, imag."""

    call = "input"
    axes = "* -> *"

    def signature(self, node: Node) -> str:
        return self.axes
