"""Layers that move entries as a pattern with named axes says: ``Rearrange("b n (h d) -> b h n d", h=8)`` of einops.

They are told by what they hold: a ``pattern`` and the lengths of some of its axes. A named length is a size of the
model, and the smaller layer has another one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from speedup import Bools, Movement, Node, kept_shape

_AXES = re.compile(r"\([^)]*\)|\S+")


class Pattern(Movement):
    """The lengths that a layer names are those of what is left."""

    name = "pattern"

    def may_claim(self, kind: type[nn.Module], held: frozenset[str]) -> bool:
        return not held

    def claims(self, module: nn.Module) -> bool:
        own = vars(module)
        lengths, pattern = own.get("axes_lengths"), own.get("pattern")
        if not isinstance(pattern, str) or pattern.count("->") != 1 or "reduction" in own:
            return False
        bare = not (module._parameters or module._buffers or module._modules)
        return bare and isinstance(lengths, dict) and all(type(v) is int for v in lengths.values())

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        lengths = dict(node.arg("axes_lengths"))
        for side, value, kept in zip(node.arg("pattern").split("->"), node.values, keep, strict=True):
            assert value is not None
            lengths.update({n: s for n, s in _alone(side, kept_shape(kept, value.shape)).items() if n in lengths})
        changed: dict[str, Any] = {"axes_lengths": lengths}
        if "_axes_lengths" in vars(node.module):
            changed["_axes_lengths"] = tuple(lengths.items())
        return changed


def _alone(side: str, shape: Sequence[int]) -> dict[str, int]:
    """The sizes of the axes of one side of a pattern that are no product of several."""
    axes = _AXES.findall(side)
    if "..." in axes:
        at = axes.index("...")
        axes[at : at + 1] = [""] * (len(shape) - len(axes) + 1)
    return {axis: size for axis, size in zip(axes, shape, strict=True) if axis.isidentifier()}
