"""speedup rules for layer, RMS, group and instance normalisation.

Mean and variance are taken over channels, so a channel that goes must still be counted: only constants can go, and the
module that takes the layer's place counts them (``compensated``). Behind the norm they are no constants but
weight · (c · u + v) + bias with u = 1 / std and v = - mean / std, the same for all channels: an ``Affine`` fact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speedup import Bools, Fact, Floats, Kept, Node, NodeFacts, NodeKeep, Plain, Rule, SignatureError, hookimpl
from speedup_plugin_norm import calls
from speedup_plugin_norm.combined import Gone
from speedup_plugin_norm.compensated import (
    CARRIED,
    PLAIN,
    REMOVED,
    Compensated,
    GroupNormForward,
    LayerNormForward,
    RMSNormForward,
    along,
    compensate,
)
from speedup_plugin_norm.counting import Counting
from speedup_plugin_norm.custom import NAMES, Form, eps_of, form_of
from speedup_plugin_norm.deviation import DeviationNorm
from speedup_plugin_norm.local import LocalResponseNorm
from speedup_plugin_norm.plain import plain
from speedup_plugin_norm.response import ResponseNorm
from speedup_plugin_norm.spectral import SpectralNorm
from speedup_plugin_norm.weight import WeightNorm


class LayerNorm(Counting):
    """out[c] = (x[c] - mean) / sqrt(var + eps) * weight[c] + bias[c], over all channels c of the last axis."""

    name = "layer_norm"
    knows_width = True
    combines = True
    counting = (calls.layer_norm,)
    makes = (LayerNormForward, calls.layer_norm)
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
        return compensate(
            module,
            LayerNormForward,
            stat_axis=self.stat_axis(node),
            stat_eps=self.eps(node),
            removed=int(count[0]),
            **self._numbers(node, found, float(mean[0]), float(spread[0])),
            stat_tail=self.tail(node),
            stat_offset=self.added(node),
            stat_names=self.operands[1:],
            stat_spread=self.spread(node),
            stat_total=self.total(node),
        )

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


def _over(node: Node, axis: int) -> str:
    """The signature of a norm over the last axis or the second, with parameters that may have axes of size 1."""
    value = "* c" if axis == -1 else "n c *"
    return f"{value}, {', '.join(_lines(node, 'c'))} -> {value}"


def _lines(node: Node, name: str) -> list[str]:
    """The axes of the parameters, which may have further ones of size 1."""
    shapes = (v.shape if v is not None and v.ndim > 1 else () for v in node.operands[1:])
    return [" ".join(name if s > 1 else "1" for s in shape) or f"{name}?" for shape in shapes]


def _channel(node: Node, axis: int) -> int:
    value = node.operands[0]
    assert value is not None
    return along(axis, value.ndim)


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
        return _channel(node, self.stat_axis(node))

    def eps(self, node: Node) -> float:
        return eps_of(node.module, self.form(node))

    def eps_name(self, node: Node) -> str:
        return str(self.form(node).eps)

    def tail(self, node: Node) -> tuple[str, ...]:
        return self.form(node).tail

    def spread(self, node: Node) -> str:
        return self.form(node).spread


class OtherLayerNorm(_Recognised, LayerNorm):
    name = "other layer_norm"
    kind = "layer"

    def signature(self, node: Node) -> str:
        return _over(node, self.channel(node))


class OffsetLayerNorm(OtherLayerNorm):
    """With 1 + weight in the place of the weight, as in Nemotron."""

    name = "offset layer_norm"
    kind = "layer+1"
    offset = 1.0


class OtherRMSNorm(_Recognised, RMSNorm):
    name = "other rms_norm"
    kind = "rms"

    def signature(self, node: Node) -> str:
        return _over(node, self.channel(node))


class OffsetRMSNorm(OtherRMSNorm):
    """With 1 + weight in the place of the weight, as in Gemma: a masked entry scales by 1."""

    name = "offset rms_norm"
    kind = "rms+1"
    offset = 1.0


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
        parameters = ", ".join(_lines(node, "(g c)"))
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


class OtherGroupNorm(_Recognised, GroupNorm):
    """A group norm with a forward of its own, or one over all channels and positions (of Conv-TasNet)."""

    name = "other group_norm"
    kind = "group"


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


class _CompensatedChannels(_Compensated):
    """One over a single axis."""

    def claims(self, module: nn.Module) -> bool:
        names = self.operands[1:]
        return isinstance(module, self.forward) and tuple(module.stat_names[: len(names)]) == names

    def signature(self, node: Node) -> str:
        return _over(node, self.channel(node))

    def stat_axis(self, node: Node) -> int:
        return int(node.arg("stat_axis"))

    def channel(self, node: Node) -> int:
        return _channel(node, self.stat_axis(node))

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


class InstanceNorm(Rule):
    """Every channel on its own, over all positions; with running statistics, as a batch norm."""

    name = "instance_norm"
    operands = ("input", "running_mean", "running_var", "weight", "bias")
    call = (
        "input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, "
        "eps=1e-5, cudnn_enabled=True"
    )
    sizes = {"num_features": "c"}  # noqa: RUF012
    annihilates = {"weight": ("input", "running_mean", "running_var")}  # noqa: RUF012

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        dims = value.ndim - 2
        if node.module is not None:
            dims = int(type(node.module).__mro__[0].__name__[-2]) if type(node.module).__name__[-1] == "d" else dims
        batch = "n" if value.ndim == dims + 2 else ""
        return f"{batch} c ~{dims}, c?, c?, c?, c? -> {batch} c ~{dims}"

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        """A constant channel is its own mean: only the bias comes out."""
        if node.arg("use_input_stats", True) if node.module is None else not node.module.track_running_stats:
            bias = arrays[4]
            ndim = node.outputs[0].ndim
            dims = len(node.layout.mixed) // 2
            if arrays[0] is None or max(arrays[0].shape[ndim - dims :], default=1) > 1:
                return None  # a parameter, which is not the same at all positions
            if bias is None:
                return [np.zeros((1,) * ndim)]
            return [bias.reshape(-1, *(1,) * dims).reshape((1,) * (ndim - dims - 1) + (-1,) + (1,) * dims)]
        return super().evaluate(node, arrays)


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


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    return [
        LayerNorm(modules=(nn.LayerNorm,), functions=(F.layer_norm, torch.layer_norm)),
        RMSNorm(modules=(nn.RMSNorm,), functions=(F.rms_norm, torch.rms_norm)),
        OtherLayerNorm(),
        OffsetLayerNorm(),
        CompensatedLayerNorm(),
        CompensatedRMSNorm(),
        CompensatedGroupNorm(),
        OtherRMSNorm(),
        OffsetRMSNorm(),
        OtherGroupNorm(),
        GroupNorm(modules=(nn.GroupNorm,), functions=(F.group_norm, torch.group_norm)),
        *(rule(functions=rule.counting) for rule in (CountingLayerNorm, CountingRMSNorm, CountingGroupNorm)),
        ResponseNorm(),
        LocalResponseNorm(),
        DeviationNorm(),
        WeightNorm(),
        SpectralNorm(),
        *(
            rule(name=f"{rule.name}, {' and '.join(names)}", operands=("input", *names))
            for names in NAMES
            for rule in (OtherLayerNorm, CompensatedLayerNorm, OtherGroupNorm, CompensatedGroupNorm)
        ),
        InstanceNorm(
            modules=(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
            functions=(F.instance_norm, torch.instance_norm),
        ),
    ]
