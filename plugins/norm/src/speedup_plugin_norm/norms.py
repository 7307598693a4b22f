"""Layer, RMS and group norm, as torch has them.

Mean and variance are taken over channels, so a channel that goes must still be counted: only constants can go, and the
module that takes the layer's place counts them (``compensated``). Behind the norm they are no constants but
weight · (c · u + v) + bias with u = 1 / std and v = - mean / std, the same for all channels: an ``Affine`` fact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from speedup import Bools, Fact, Floats, Kept, Node, NodeFacts, NodeKeep, Rule
from speedup_plugin_norm import calls
from speedup_plugin_norm.combined import Gone
from speedup_plugin_norm.compensated import (
    CARRIED,
    GroupNormForward,
    LayerNormForward,
    RMSNormForward,
    ZerosForward,
    compensate,
)
from speedup_plugin_norm.counting import Counting


class LayerNorm(Counting):
    """out[c] = (x[c] - mean) / sqrt(var + eps) * weight[c] + bias[c], over all channels c of the last axis."""

    name = "layer_norm"
    knows_width = True
    combines = True
    counting = (calls.layer_norm,)
    makes = (LayerNormForward, ZerosForward, calls.layer_norm)
    call = "input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True"

    def signature(self, node: Node) -> str:
        count = len(tuple(node.arg("normalized_shape")))
        if count == 1:
            return "* c, c?, c? -> * c"
        inner = f"~{count}"
        return f"* {inner}, {inner}?, {inner}? -> * {inner}"

    def single(self, node: Node) -> bool:
        return "c" in node.layout.names

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return super().infer_from_input(node, facts) if self.single(node) else {}

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return super().infer_from_output(node, facts) if self.single(node) else {}

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        super().constrain(node, keep) if self.single(node) else Rule.constrain(self, node, keep)

    def terms(self, constants: Floats, groups: int) -> list[Floats]:
        return [constants, np.ones_like(constants)]

    def alone(self, node: Node, constants: Floats, axes: tuple[int, ...]) -> Floats:
        return self.standardized(node, constants, axes, self.eps(node))

    def eps(self, node: Node) -> float:
        return float(node.arg("eps", 1e-5))

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = super().replace(node, keep)
        if not self.single(node):
            return module
        size = keep.size("c")
        for name, value in vars(module).items():
            if name in ("normalized_shape", "dim", "num_channels", "hidden_size"):
                module.__dict__[name] = (size,) if isinstance(value, tuple) else size
        count, mean, spread = self.gone(node, keep)
        found = self.carried(node, keep, self.earlier(node))
        if not count.any() and found is None:
            return module
        numbers = {
            "stat_axis": self.stat_axis(node),
            "stat_eps": self.eps(node),
            "removed": int(count[0]),
            **self._numbers(node, found, float(mean[0]), float(spread[0])),
            "stat_tail": self.tail(node),
            "stat_offset": self.added(node),
            "stat_names": self.operands[1:],
            "stat_spread": self.spread(node),
            "stat_total": self.total(node),
        }
        return compensate(module, ZerosForward if ZerosForward.fits(module, numbers) else LayerNormForward, **numbers)

    def earlier(self, node: Node) -> Gone:
        """What went in earlier rounds."""
        count, mean, spread = (float(a.max()) for a in self.before(node))
        return Gone(count, np.array([mean]), np.array([[spread**0.5]]))

    @staticmethod
    def _numbers(node: Node, found: tuple[Bools, Gone] | None, mean: float, spread: float) -> dict[str, Any]:
        """Mean and squared deviations of what is gone, and how it is said by channels that are left."""
        if found is None:
            return {"removed_mean": mean, "removed_spread": spread}
        carriers, gone = found
        like = node.operands[1].tensor if node.operands[1] is not None else None
        made = [torch.from_numpy(a) for a in (np.flatnonzero(carriers), gone.mean[:-1], gone.away)]
        buffers = [t.to(None if like is None else like.device) for t in made]
        if like is not None:
            buffers[1:] = [t.to(like.dtype) for t in buffers[1:]]
        return {"removed_mean": float(gone.mean[-1]), "removed_spread": 0.0, **dict(zip(CARRIED, buffers, strict=True))}


class RMSNorm(Counting):
    """out[c] = x[c] / sqrt(mean of x² + eps) * weight[c].

    With n of N channels left and S the sum of squares of those that went: (S + N eps) / n for eps, and the weight times
    sqrt(N / n). Exact, and no new module but where there is no weight.
    """

    name = "rms_norm"
    knows_width = True
    counting = (calls.rms_norm,)
    makes = (RMSNormForward, calls.rms_norm)
    operands: tuple[str, ...] = ("input", "weight")
    call = "input, normalized_shape, weight=None, eps=None"

    def signature(self, node: Node) -> str:
        if len(tuple(node.arg("normalized_shape"))) != 1:
            raise TypeError("statistics over several axes")
        return "* c, c? -> * c"

    def terms(self, constants: Floats, groups: int) -> list[Floats]:
        return [constants]

    def alone(self, node: Node, constants: Floats, axes: tuple[int, ...]) -> Floats:
        gone, mean, spread = self.before(node)
        squares = np.square(constants).sum(axis=axes, keepdims=True) + spread + gone * mean**2
        total = np.prod([constants.shape[a] for a in axes]) + gone
        return np.asarray(constants / np.sqrt(squares / total + self.eps(node)))

    def told(self, count: float, mean: float, spread: float) -> dict[str, float]:
        return {"gone_squares": spread + count * mean**2}

    def eps_name(self, node: Node) -> str:
        return "eps"

    def eps(self, node: Node) -> float:
        eps = node.arg(self.eps_name(node))
        return float(torch.finfo(node.outputs[0].dtype).eps if eps is None else eps)

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = super().replace(node, keep)
        n = keep.size("c")
        count, mean, spread = self.gone(node, keep)
        squares = float(spread[0] + count[0] * mean[0] ** 2)
        total = n + int(count[0])
        if hasattr(module, "normalized_shape"):
            module.__dict__["normalized_shape"] = (n,)
        if total > n and node.operands[1] is None:
            return compensate(
                module,
                RMSNormForward,
                stat_axis=self.stat_axis(node),
                stat_eps=self.eps(node),
                removed=int(count[0]),
                removed_mean=0.0,
                removed_spread=squares,
                stat_tail=self.tail(node),
                stat_total=self.total(node),
            )
        if total > n:
            setattr(module, self.eps_name(node), (squares + total * self.eps(node)) / n)
            weight = keep.tensors[self.operands[1]]
            scaled = (weight.detach() + self.added(node)) * (total / n) ** 0.5 - self.added(node)
            scaled = nn.Parameter(scaled, requires_grad=weight.requires_grad)
            module.register_parameter(self.operands[1], scaled)
        return module


def lines_of(node: Node, name: str) -> list[str]:
    """The axes of the parameters, which may have further ones of size 1."""
    shapes = (v.shape if v is not None and v.ndim > 1 else () for v in node.operands[1:])
    return [" ".join(name if s > 1 else "1" for s in shape) or f"{name}?" for shape in shapes]


class GroupNorm(Counting):
    """As a layer norm, over the channels of each group and all positions."""

    name = "group_norm"
    counting = (calls.group_norm,)
    makes = (GroupNormForward, calls.group_norm)
    call = "input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True"
    sizes = {"num_groups": "g", "num_channels": "g c"}  # noqa: RUF012

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        rest = f"~{value.ndim - 2}" if value.ndim > 2 else ""
        parameters = ", ".join(lines_of(node, "(g c)"))
        return f"n (g={node.arg('num_groups', 1)} c) {rest}, {parameters} -> n (g c) {rest}"

    def channel(self, node: Node) -> int:
        return 1

    def terms(self, constants: Floats, groups: int) -> list[Floats]:
        return [constants, np.ones_like(constants)] if groups == 1 else []

    def alone(self, node: Node, constants: Floats, axes: tuple[int, ...]) -> Floats:
        return self.standardized(node, constants, axes, self.eps(node))

    def eps(self, node: Node) -> float:
        return float(node.arg("eps", 1e-5))

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = super().replace(node, keep)
        count, mean, spread = self.gone(node, keep)
        if not count.any():
            return module

        def per_group(array: Floats) -> torch.Tensor:
            like = node.operand(self.operands[1])
            dtype, device = (
                (like.tensor.dtype, like.tensor.device) if like and like.tensor is not None else (None, None)
            )
            return torch.from_numpy(array.astype(np.float64)).reshape(1, -1, 1, 1).to(device, dtype)

        return compensate(
            module,
            GroupNormForward,
            stat_eps=self.eps(node),
            removed=per_group(count),
            removed_mean=per_group(mean),
            removed_spread=per_group(spread),
            stat_tail=self.tail(node),
            stat_names=self.operands[1:],
        )
