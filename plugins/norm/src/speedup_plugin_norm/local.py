"""Local response normalisation: every channel is divided by what its neighbours are.

    out[c] = x[c] / (k + alpha / size · sum over the window around c of x²) ** beta

A channel that is 0 gives 0 and adds nothing to its neighbours, but it parts them. So the module that takes the layer's
place puts what is left where it stood, with zeros between.

Source: Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural Networks (2012).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speedup import Bools, Constant, Fact, Kept, Node, NodeFacts, NodeKeep, Overlay, Rule, Unused, overlaid


class LocalResponseForward(Overlay):
    """The norm over all places.

    Attributes:
        stat_places: of the channels that are left.
        stat_channels: how many there were.
    """

    label = "Placed{}"
    size: int
    alpha: float
    beta: float
    k: float
    stat_places: torch.Tensor
    stat_channels: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = self.stat_places.to(x.device)
        whole = x.new_zeros((x.shape[0], self.stat_channels, *x.shape[2:])).index_copy(1, places, x)
        made = F.local_response_norm(whole, self.size, self.alpha, self.beta, self.k)
        return made.index_select(1, places)


class LocalResponseNorm(Rule):
    """Channels that are 0 can go; all others are read by those around them."""

    name = "local_response_norm"
    modules = (nn.LocalResponseNorm,)
    makes = (LocalResponseForward,)
    operands = ("input",)
    axes = "n c * -> n c *"

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        zero = facts.zero(0)
        return {"output": Constant(zero, np.zeros(zero.shape))} if zero.any() else {}

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """An input is read by every output in reach."""
        unused = np.array(facts.unused(1))
        if unused.shape[1] > 1:
            reach = int(node.arg("size"))  # to one side it is less: an input more is taken for read
            used = np.pad(~unused, [(reach, reach) if a == 1 else (0, 0) for a in range(unused.ndim)])
            windows = [np.roll(used, shift, 1) for shift in range(-reach, reach + 1)]
            unused = ~np.any(windows, axis=0)[:, reach:-reach]
        return {"input": Unused(unused)} if unused.any() else {}

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        super().constrain(node, keep)
        zero: Bools = keep.facts.zero(0) if node.calls == 1 else np.zeros((1,) * len(node.outputs[0].shape), bool)
        read = ~keep.sets[0] & ~zero
        if read.any() and keep.sets[1].any():
            keep.grow(0, read, "its neighbours read it", 0)

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = super().replace(node, keep)
        channels = node.outputs[0].shape[1]
        kept = np.broadcast_to(keep.sets[0].any(tuple(a for a in range(keep.sets[0].ndim) if a != 1)), channels)
        if kept.all():
            return module
        module.__class__ = overlaid(LocalResponseForward, type(module))
        module.__dict__["stat_channels"] = channels
        module.register_buffer("stat_places", torch.from_numpy(np.flatnonzero(kept)), persistent=False)
        return module
