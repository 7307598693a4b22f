"""Norms of other libraries, told by what they compute, see ``custom``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from speedup import Node
from speedup_plugin_norm.compensated import PLAIN, along
from speedup_plugin_norm.custom import Form, eps_of, form_of
from speedup_plugin_norm.norms import GroupNorm, LayerNorm, RMSNorm, lines_of


def channel_of(node: Node, axis: int) -> int:
    value = node.operands[0]
    assert value is not None
    return along(axis, value.ndim)


class OverOneAxis:
    """Over the last axis or the second; parameters may have further axes of size 1."""

    channel: Callable[[Node], int]

    def signature(self, node: Node) -> str:
        value = "* c" if self.channel(node) == -1 else "n c *"
        return f"{value}, {', '.join(lines_of(node, 'c'))} -> {value}"


class _Recognised:
    """A module of another library, told by what it computes."""

    kind = ""
    channels_last = True
    operands: tuple[str, ...]

    def form(self, node: Node) -> Form:
        assert node.module is not None
        form = form_of(node.module)
        assert form is not None
        return form

    def may_claim(self, kind: type[nn.Module], held: frozenset[str]) -> bool:
        return self.operands[1] == PLAIN[0] or self.operands[1] in held

    def claims(self, module: nn.Module) -> bool:
        names = self.operands[1:]
        if names[0] != PLAIN[0] and names[0] not in module._parameters:
            return False
        form = form_of(module)
        return form is not None and form.kind == self.kind and form.names[: len(names)] == names

    def stat_axis(self, node: Node) -> int:
        return self.form(node).axis

    def channel(self, node: Node) -> int:
        return channel_of(node, self.stat_axis(node))

    def eps(self, node: Node) -> float:
        return eps_of(node.module, self.form(node))

    def eps_name(self, node: Node) -> str:
        return str(self.form(node).eps)

    def tail(self, node: Node) -> tuple[str, ...]:
        return self.form(node).tail

    def spread(self, node: Node) -> str:
        return self.form(node).spread


class OtherLayerNorm(OverOneAxis, _Recognised, LayerNorm):
    name = "other layer_norm"
    kind = "layer"


class OffsetLayerNorm(OtherLayerNorm):
    """With 1 + weight in the place of the weight, as in Nemotron."""

    name = "offset layer_norm"
    kind = "layer+1"
    offset = 1.0


class OtherRMSNorm(OverOneAxis, _Recognised, RMSNorm):
    """Torch's own has no bias, others may have one."""

    name = "other rms_norm"
    kind = "rms"
    operands = ("input", *PLAIN)


class OffsetRMSNorm(OtherRMSNorm):
    """With 1 + weight in the place of the weight, as in Gemma: a masked entry scales by 1."""

    name = "offset rms_norm"
    kind = "rms+1"
    offset = 1.0


class OtherGroupNorm(_Recognised, GroupNorm):
    """A group norm with a forward of its own, or one over all channels and positions (of Conv-TasNet)."""

    name = "other group_norm"
    kind = "group"
