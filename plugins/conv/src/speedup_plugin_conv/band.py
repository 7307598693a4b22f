"""A convolution that runs over the channels themselves, with one filter: the gates of ECA.

    gate[c] = sum over t of x[c + t] w[t]

A channel that goes takes its place with it, and its neighbours would move together. So the module that takes the
layer's place puts what is left where it stood, between the constants that went, and picks the outputs that are left.

Source: Wang et al., ECA-Net (2019), https://arxiv.org/abs/1910.03151.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speedup import Bools, Constant, Fact, Floats, Kept, Node, NodeFacts, NodeKeep, Overlay, Rule, Unused, overlaid

_OUT = 3


class BandForward(Overlay):
    """The convolution over all places.

    Attributes:
        stat_places: of the entries that are left.
        stat_between: the constants at all places, 0 at those that are left.
    """

    label = "Placed{}"
    weight: torch.Tensor
    bias: torch.Tensor | None
    padding: Any
    dilation: Any
    stat_places: torch.Tensor
    stat_between: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = self.stat_places.to(x.device)
        whole = self.stat_between.to(x).expand(*x.shape[:-1], -1).index_copy(-1, places, x)
        made = F.conv1d(whole, self.weight, self.bias, 1, self.padding, self.dilation)
        return made.index_select(-1, places)


def is_band(module: nn.Module | None) -> bool:
    """Whether a module has one filter for one channel, and gives as many positions as it is given."""
    if not isinstance(module, nn.Conv1d) or module.padding_mode != "zeros" or module.kernel_size == (1,):
        return False
    if (module.in_channels, module.out_channels, module.stride) != (1, 1, (1,)):
        return False
    return module.padding == "same" or module.padding == ((module.kernel_size[0] - 1) * module.dilation[0] // 2,)


class Band(Rule):
    """An output entry is known where all entries in its window are; one that is read by nobody may go, with the input
    at its place if that is constant."""

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        if facts.is_weight(0):
            return {}
        known, value = _line(facts.mask(0)), facts.value(0)
        # The same wherever it is known, but for its place.
        low, high = (f(np.where(facts.mask(0), value, 0.0), _others(value)) for f in (np.min, np.max))
        known = np.broadcast_to(known & (low == high), self._length(node))
        unknown = _over(node, ~known, np.ones_like)
        if unknown.all():
            return {}
        made = _over(node, np.where(known, high, 0.0), lambda w: w)
        bias = float(facts.value(2).reshape(-1)[0]) if facts.present(2) else 0.0
        return {"output": Constant(~unknown.astype(bool)[None, None], (made + bias)[None, None])}

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        unused = self._unread(node, _line(facts.unused(_OUT)))
        found: dict[str, Fact] = {"input": Unused(unused[None, None])} if unused.any() else {}
        if facts.unused(_OUT).all():
            found |= {n: Unused(np.ones((1,) * v.ndim, bool)) for n, v in self._weights(node)}
        return found

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        super().constrain(node, keep)
        kept, known = _line(~keep.sets[0]), _line(keep.facts.mask(0))
        gone = np.broadcast_to(kept, self._length(node))
        read = ~self._unread(node, np.broadcast_to(_line(~keep.sets[_OUT]), gone.shape))
        wanted = gone & read & ~known if node.calls == 1 else np.ones(gone.shape, bool)
        if wanted.any():
            keep.grow(0, wanted[None, None], "its neighbours read it", 0)

    def derived(self, node: Node) -> set[int]:
        return set()

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = super().replace(node, keep)
        kept = np.broadcast_to(_line(keep.sets[0]), self._length(node))
        if kept.all():
            return module
        between = np.where(kept | ~_line(keep.facts.mask(0)), 0.0, _line_of(keep.facts.value(0)))
        weight = keep.module.get_parameter("weight")
        module.__class__ = overlaid(BandForward, type(module))
        # Numbers, which are there also when weights are not.
        device = "cpu" if weight.is_meta else weight.device
        places = torch.from_numpy(np.flatnonzero(kept)).to(device)
        module.register_buffer("stat_places", places, persistent=False)
        module.register_buffer(
            "stat_between", torch.from_numpy(between.copy()).to(device, weight.dtype), persistent=False
        )
        return module

    def _length(self, node: Node) -> tuple[int]:
        return (node.outputs[0].shape[-1],)

    def _unread(self, node: Node, unused: Bools) -> Bools:
        """The inputs of which every output in reach is unused."""
        used = np.broadcast_to(~unused, self._length(node))
        result: Bools = ~(_over(node, used, lambda w: np.ones_like(w)[..., ::-1]) > 0)
        return result

    def _weights(self, node: Node) -> list[tuple[str, Any]]:
        return [
            (n, v) for n, v in zip(node.operand_names, node.operands, strict=True) if v is not None and n != "input"
        ]


def _others(array: Floats) -> tuple[int, ...]:
    return tuple(range(array.ndim - 1))


def _line(mask: Bools) -> Bools:
    """Where a mask holds for all of a batch, by place."""
    return np.asarray(mask.all(_others(mask)))


def _line_of(values: Floats) -> Floats:
    """Values that are the same for all of a batch where they are known, by place."""
    return np.asarray(values.reshape(-1, values.shape[-1])[0])


def _over(node: Node, line: Floats | Bools, taps: Any) -> Floats:
    """The window run over a line of numbers, with zeros around it."""
    weight = node.operand("weight")
    assert weight is not None
    numbers = weight.contents().detach().reshape(-1)
    numbers = torch.zeros(len(numbers)) if numbers.is_meta else numbers.cpu()  # asked where, not what
    kernel = np.asarray(taps(numbers.double().numpy()), np.float64)
    dilation = int(np.ravel(node.arg("dilation"))[0])
    spread = np.zeros((len(kernel) - 1) * dilation + 1)
    spread[::dilation] = kernel
    before = (len(spread) - 1) // 2
    padded = np.pad(np.asarray(line, np.float64), (before, len(spread) - 1 - before))
    return np.correlate(padded, spread, "valid")
