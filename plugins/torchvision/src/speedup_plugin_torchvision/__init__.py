"""speedup rules for operators of torchvision, which need not be installed: deformable convolutions, pooled regions.

Operators are claimed by name, so that nothing is imported. What is not here (``nms``, say) has no channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import numpy as np
from torch import nn

from speedup import Kept, Node, NodeKeep, Ref, Rule, SignatureError, Value, hookimpl


class DeformConv(Rule):
    """As a convolution whose window is sampled at places that are data; between entries, and beyond the border, where
    there are zeros. All channels are sampled at the same places, so a channel that is constant is folded into another.

    With several groups of offsets, each of which samples its own channels, all of them keep the same positions: offsets
    are not told apart by channels, and stay.
    """

    axes = "* (g i) ~2, (g o) i ~2, (g o)? -> * (g o) ~2"
    operands = ("input", "weight", "bias")
    places = ("offset", "mask")
    bias = "bias"
    sizes = {"in_channels": "g i", "out_channels": "g o", "groups": "g"}  # noqa: RUF012

    def may_claim(self, kind: type[nn.Module], held: frozenset[str]) -> bool:
        return kind.__name__ == "DeformConv2d" and kind.__module__.startswith("torchvision.")

    def claims(self, module: nn.Module) -> bool:
        kind = type(module)
        return kind.__name__ == "DeformConv2d" and kind.__module__.startswith("torchvision.")

    def uniform(self, node: Node) -> bool:
        return False

    def signature(self, node: Node) -> str:
        value, weight, offsets = node.operand("input"), node.operand("weight"), _offsets(node)
        assert value is not None and weight is not None
        count = offsets.shape[-3] // (2 * prod(weight.shape[2:]))
        if count == 1:
            return self.axes
        if value.shape[-3] != weight.shape[1]:
            raise SignatureError("it has several groups of channels, and of offsets for them")
        return f"* (g=1 ~offsets={count} i) ~2, (g o) (~offsets i) ~2, (g o)? -> * (g o) ~2"

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = super().replace(node, keep)
        weight = module.get_parameter("weight")
        module.__dict__["in_channels"] = weight.shape[1] * keep.size("g")
        return module


def _offsets(node: Node) -> Value:
    if node.module is not None:
        return node.tensors[1]
    ref = node.arguments["offset"]
    assert isinstance(ref, Ref)
    return node.tensors[ref.number]


class Regions(Rule):
    """Every channel is sampled at the same places, wherever the regions are. A region may reach over the border, where
    there are zeros: of constants only 0 comes out as it was."""

    call = "input, rois, *args, **kwargs"
    operands = ("input",)
    keeps_zeros = True
    places = ("rois",)


class ByPosition(Regions):
    """Position-sensitive: each part of a region has a channel of its own. Those of one output go and stay together."""

    axes = "~1 (c ~part) ~2 -> ~1 c ~2, ~1 c ~2"

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        """The second output has the numbers of the channels."""
        super().constrain(node, keep)
        numbers = 2
        if not keep.facts.unused(numbers).all():
            keep.grow(numbers, np.ones((1, 1, 1, 1), bool), "it numbers the channels", numbers)


_REGIONS: tuple[tuple[str, type[Regions], dict[str, str]], ...] = (
    ("roi_align", Regions, {"axes": "~1 c ~2 -> ~1 c ~2"}),
    ("roi_pool", Regions, {"axes": "~1 c ~2 -> ~1 c ~2, ~1 c ~2"}),
    ("ps_roi_align", ByPosition, {}),
    ("ps_roi_pool", ByPosition, {}),
)


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    return [
        *(rule(name=name, functions=(f"torch.ops.torchvision.{name}",), **axes) for name, rule, axes in _REGIONS),
        DeformConv(
            name="deform_conv2d",
            functions=("torch.ops.torchvision.deform_conv2d",),
            call="input, weight, offset, mask, bias, *args, **kwargs",
        ),
    ]
