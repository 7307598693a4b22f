"""Norms that have lost channels in an earlier round, and go on counting them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from speedup import Bools, Floats, Node, NodeFacts, Plain, SignatureError
from speedup_plugin_norm.combined import Gone
from speedup_plugin_norm.compensated import (
    CARRIED,
    PLAIN,
    REMOVED,
    Compensated,
    GroupNormForward,
    LayerNormForward,
    RMSNormForward,
)
from speedup_plugin_norm.counting import Counting
from speedup_plugin_norm.norms import GroupNorm, LayerNorm, RMSNorm
from speedup_plugin_norm.plain import plain
from speedup_plugin_norm.recognised import OverOneAxis, channel_of

_ON_META = "what it lost in an earlier round is on the meta device: load that model with weights"


class _Compensated(Counting):
    """A norm that has lost channels in an earlier round, and goes on counting them."""

    forward: type[Compensated]

    def may_claim(self, kind: type[nn.Module], held: frozenset[str]) -> bool:
        return issubclass(kind, self.forward)

    def claims(self, module: nn.Module) -> bool:
        return isinstance(module, self.forward)

    def tail(self, node: Node) -> tuple[str, ...]:
        return tuple(node.arg("stat_tail"))

    def eps(self, node: Node) -> float:
        return float(node.arg("stat_eps"))


class _CompensatedChannels(OverOneAxis, _Compensated):
    """One over a single axis."""

    def claims(self, module: nn.Module) -> bool:
        names = self.operands[1:]
        return isinstance(module, self.forward) and tuple(module.stat_names[: len(names)]) == names

    def stat_axis(self, node: Node) -> int:
        return int(node.arg("stat_axis"))

    def channel(self, node: Node) -> int:
        return channel_of(node, self.stat_axis(node))

    def before(self, node: Node) -> tuple[Floats, Floats, Floats]:
        return _numbers(node)


class CompensatedLayerNorm(_CompensatedChannels, LayerNorm):
    name = "compensated layer_norm"
    forward = LayerNormForward

    def plain(self, node: Node, facts: NodeFacts) -> list[Plain]:
        return plain(self, node, facts, self.eps(node))

    def carriers(self, node: Node) -> Bools:
        found = super().carriers(node)
        if node.arg("is_carried"):
            found[_contents(node, "removed_by")] = True
        return found

    def earlier(self, node: Node) -> Gone:
        gone = super().earlier(node)
        if not node.arg("is_carried"):
            return gone
        shares, rows = (_contents(node, name) for name in CARRIED[1:])
        constants = np.pad(gone.away, ((0, 0), (len(shares), 0)))
        return Gone(gone.count, np.append(shares, gone.mean), np.vstack([rows, constants]))

    def added(self, node: Node) -> float:
        return float(node.arg("stat_offset"))

    def spread(self, node: Node) -> str:
        return str(node.arg("stat_spread"))


class CompensatedRMSNorm(_CompensatedChannels, RMSNorm):
    name = "compensated rms_norm"
    forward = RMSNormForward
    operands = ("input", *PLAIN)


class CompensatedGroupNorm(_Compensated, GroupNorm):
    name = "compensated group_norm"
    forward = GroupNormForward

    def claims(self, module: nn.Module) -> bool:
        names = self.operands[1:]
        return isinstance(module, self.forward) and tuple(module.stat_names[: len(names)]) == names

    def before(self, node: Node) -> tuple[Floats, Floats, Floats]:
        shape = [-1 if name == "g" else 1 for name in node.layout.names]
        if any(getattr(node.module, n).is_meta for n in REMOVED):
            raise SignatureError(_ON_META)
        arrays = (getattr(node.module, n).detach().double().cpu().numpy().reshape(shape) for n in REMOVED)
        count, mean, spread = arrays
        return count, mean, spread


class _CountingCall(Counting):
    """A call of a function that has lost channels in an earlier round, and goes on counting them."""

    def before(self, node: Node) -> tuple[Floats, Floats, Floats]:
        count = node.arg("total") - node.layout.sizes["c"]
        mean, spread = node.arg("gone_mean", 0.0), node.arg("gone_spread", 0.0)
        return tuple(np.full((1,) * len(node.layout.names), float(n)) for n in (count, mean, spread))  # type: ignore[return-value]


class CountingLayerNorm(_CountingCall, LayerNorm):
    name = "counting layer_norm"
    call = f"{LayerNorm.call}, *, total, gone_mean=0.0, gone_spread=0.0"


class CountingRMSNorm(_CountingCall, RMSNorm):
    name = "counting rms_norm"
    call = f"{RMSNorm.call}, *, total, gone_squares=0.0"

    def before(self, node: Node) -> tuple[Floats, Floats, Floats]:
        count, mean, spread = super().before(node)
        return count, mean, spread + node.arg("gone_squares")


class CountingGroupNorm(_CountingCall, GroupNorm):
    name = "counting group_norm"
    call = f"{GroupNorm.call}, *, total, gone_mean=0.0, gone_spread=0.0"


def _contents(node: Node, name: str) -> Any:
    tensor = getattr(node.module, name)
    if tensor.is_meta:
        raise SignatureError(_ON_META)
    array = tensor.detach().cpu()
    return array.numpy() if name == CARRIED[0] else array.double().numpy()


def _numbers(node: Node) -> tuple[Floats, Floats, Floats]:
    """What a compensated module lost in earlier rounds."""
    count, mean, spread = (np.full((1,) * len(node.layout.names), float(node.arg(n))) for n in REMOVED)
    if node.arg("stat_total") is not None:
        count = np.full_like(count, node.arg("stat_total") - node.layout.sizes["c"])
    return count, mean, spread
