"""The windows of a convolution, axis by axis."""

from __future__ import annotations

from collections.abc import Sequence

from speedup import Node


def geometry(node: Node, dims: int) -> list[Sequence[int]]:
    """Along each axis: the size of the kernel, the padding at either end, the stride and the dilation."""
    weight = node.operand("weight")
    assert weight is not None
    sizes = list(weight.shape[2:])
    stride, dilation = (per_axis(node.arg(name, 1), dims) for name in ("stride", "dilation"))
    padding = node.arg("padding", 0)
    if isinstance(padding, str):
        both = [(k - 1) * d if padding == "same" else 0 for k, d in zip(sizes, dilation, strict=True)]
        before = [b // 2 for b in both]
        return [sizes, before, [b - f for b, f in zip(both, before, strict=True)], stride, dilation]
    return [sizes, per_axis(padding, dims), per_axis(padding, dims), stride, dilation]


def per_axis(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    """A number for each axis, where one may stand for all."""
    found = (value,) if isinstance(value, int) else tuple(value)
    return found * count if len(found) == 1 else found
