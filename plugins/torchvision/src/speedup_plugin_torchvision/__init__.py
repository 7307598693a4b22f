"""speedup rules for operators of torchvision, which need not be installed: deformable convolutions, pooled regions.

Operators are claimed by name, so that nothing is imported. What is not here (``nms``, say) has no channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from torch import nn

from speedup import Node, Ref, Rule, SignatureError, Value, hookimpl


class DeformConv(Rule):
    """As a convolution whose window is sampled at places that are data; between entries, and beyond the border, where
    there are zeros. All channels are sampled at the same places, so a channel that is constant is folded into another.

    With several groups of offsets it is a barrier: each samples its own channels.
    """

    axes = "* (g i) ~2, (g o) i ~2, (g o)? -> * (g o) ~2"
    operands = ("input", "weight", "bias")
    places = ("offset", "mask")
    bias = "bias"
    sizes = {"in_channels": "g i", "out_channels": "g o", "groups": "g"}  # noqa: RUF012

    def claims(self, module: nn.Module) -> bool:
        kind = type(module)
        return kind.__name__ == "DeformConv2d" and kind.__module__.startswith("torchvision.")

    def uniform(self, node: Node) -> bool:
        return False

    def check(self, node: Node) -> None:
        super().check(node)
        weight, offsets = node.operand("weight"), _offsets(node)
        assert weight is not None
        if offsets.shape[-3] != 2 * prod(weight.shape[2:]):
            raise SignatureError("it has several groups of offsets, each for its own channels")


def _offsets(node: Node) -> Value:
    if node.module is not None:
        return node.tensors[1]
    ref = node.arguments["offset"]
    assert isinstance(ref, Ref)
    return node.tensors[ref.number]


def _regions(name: str, axes: str) -> Rule:
    """Every channel is sampled at the same places, wherever the regions are. A region may reach over the border, where
    there are zeros: of constants only 0 comes out as it was."""
    return Rule(
        name=name,
        functions=(f"torch.ops.torchvision.{name}",),
        axes=axes,
        call="input, rois, *args, **kwargs",
        operands=("input",),
        keeps_zeros=True,
        places=("rois",),
    )


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    return [
        _regions("roi_align", "~1 c ~2 -> ~1 c ~2"),
        _regions("roi_pool", "~1 c ~2 -> ~1 c ~2, ~1 c ~2"),
        DeformConv(
            name="deform_conv2d",
            functions=("torch.ops.torchvision.deform_conv2d",),
            call="input, weight, offset, mask, bias, *args, **kwargs",
        ),
    ]
