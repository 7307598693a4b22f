"""Fourier transforms along some axes, as over the positions of an image (GFNet, Fourier neural operators).

All entries along these axes mix, and the others pass: a channel that is 0 stays 0. Of other constants nothing is said,
for what they become is not the same at all frequencies.
"""

from __future__ import annotations

from speedup import Node, Rule


class Mixing(Rule):
    """Linear, with axes that mix."""

    operands = ("input",)
    keeps_zeros = True

    def over(self, node: Node) -> set[int]:
        """The axes that mix."""
        raise NotImplementedError

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        over = self.over(node)
        axes = " ".join(f"~x{a}" if a in over else f"a{a}" for a in range(value.ndim))
        return f"{axes} -> {axes}"


class Fourier(Mixing):
    """Along one axis."""

    call = "input, n=None, dim=-1, norm=None, *, out=None"

    def over(self, node: Node) -> set[int]:
        value = node.operands[0]
        assert value is not None
        return {node.arg("dim") % value.ndim}


class FourierOfMany(Mixing):
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


class Complex(Mixing):
    """view_as_complex: the last axis has real and imaginary part."""

    call = "input"

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        axes = " ".join(f"a{a}" for a in range(value.ndim - 1))
        return f"{axes} ~part -> {axes}"


class Real(Mixing):
    """view_as_real, the other way round."""

    call = "input"

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        axes = " ".join(f"a{a}" for a in range(value.ndim))
        return f"{axes} -> {axes} ~part"


class Part(Mixing):
    """real, imag."""

    call = "input"
    axes = "* -> *"

    def signature(self, node: Node) -> str:
        return self.axes
