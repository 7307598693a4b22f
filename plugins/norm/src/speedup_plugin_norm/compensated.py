"""Norm layers whose statistics still count the channels that were removed.

A layer norm over N channels of which n are left: the others were constants, R = N - n of them, with mean m and sum of
squared deviations s. Then over all N

    mean = (n · mean_kept + R · m) / N
    N · var = n · (var_kept + (mean_kept - mean)²) + s + R · (m - mean)²

which is what these modules compute; where no gradients are asked for, layer norms do it as ``inference`` has it. They
are of a subclass of the class that they replace, with the same parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speedup import Overlay, overlaid, plain_class
from speedup_plugin_norm.inference import HALF, counting_layer_norm, is_inference, widened

PLAIN = ("weight", "bias")
REMOVED = ("removed", "removed_mean", "removed_spread")
CARRIED = ("removed_by", "removed_shares", "removed_rows")
EITHER = 0
"""The axis of the channels of a module that takes images, (n, c, h, w), and tokens, (..., c)."""


def along(axis: int, ndim: int) -> int:
    """The axis of the channels in a tensor of so many axes."""
    return axis if axis != EITHER else 1 if ndim == 4 else -1


class Compensated(Overlay):
    """``removed`` counts what went, per group; ``removed_mean`` and ``removed_spread`` are its m and s.

    Attributes:
        removed, removed_mean, removed_spread: numbers, or tensors of one entry per group.
        stat_eps: the eps of the original.
        stat_tail: the children that are called on the result: activations.
        stat_offset: what is added to the weight.
        stat_names: the names of weight and bias.
        stat_spread: how the original divides, see ``divisor``.
        removed_by, removed_shares, removed_rows: buffers, where what went is a combination of channels that are left:
            at which places these are; what their entries add to the mean of what went; and rows, the constant last, of
            which the sum of squares adds to the squared deviations.
        stat_total: the width of the original, where the calls of a module lose different channels, all of them zeros;
            else None.
    """

    label = "Compensated{}"
    weight: Any
    bias: Any
    removed: Any
    removed_mean: Any
    removed_spread: Any
    removed_by: torch.Tensor
    removed_shares: torch.Tensor
    removed_rows: torch.Tensor
    stat_eps: float
    stat_tail: tuple[str, ...] = ()
    stat_offset: float = 0.0
    stat_names: tuple[str, ...] = PLAIN
    stat_spread: str = "var"
    stat_total: int | None = None

    def gone(self, left: int) -> Any:
        """How many channels went, of which so many are left."""
        return self.removed if self.stat_total is None else self.stat_total - left

    def finish(self, y: torch.Tensor, shape: list[int]) -> torch.Tensor:
        """Scale, shift, and what the original calls after it."""
        return self.behind(scale(self, y, shape))

    def behind(self, y: torch.Tensor) -> torch.Tensor:
        """What the original calls after scale and shift."""
        for name in self.stat_tail:
            y = getattr(self, name)(y)
        return y

    def normalize(self, x: torch.Tensor, axes: tuple[int, ...], positions: int = 1) -> torch.Tensor:
        """(x - mean) / deviation over ``axes`` and what was removed, which counts once at each position."""
        mean, spread = self.removed_mean, self.removed_spread
        if self.is_carried:
            carriers = x.index_select(axes[0], self.removed_by).movedim(axes[0], -1)
            more = F.linear(carriers, self.removed_shares.to(x)[None])
            away = F.linear(carriers, self.removed_rows[:, :-1].to(x), self.removed_rows[:, -1].to(x))
            mean = mean + more.movedim(-1, axes[0])
            spread = spread + away.square().sum(-1, keepdim=True).movedim(-1, axes[0])
        return normalized(
            x, axes, self.stat_eps, self.gone(x.shape[axes[0]]), mean, spread, self.stat_spread, positions
        )

    @property
    def is_carried(self) -> bool:
        """Whether channels that are left say what went."""
        return "removed_by" in vars(self)["_buffers"]


def normalized(
    x: torch.Tensor,
    axes: tuple[int, ...],
    eps: float,
    gone: Any,
    gone_mean: Any,
    gone_spread: Any,
    form: str = "var",
    positions: int = 1,
) -> torch.Tensor:
    """(x - mean) / deviation over ``axes`` and what was removed.

    Args:
        gone, gone_mean, gone_spread: how many were removed at each position, their mean and sum of squared deviations.
        form: how it is divided, see ``divisor``.
        positions: how many there are, where statistics are taken over them too.
    """
    here, gone = 1, gone * positions
    for axis in axes:
        here = here * x.shape[axis]
    total = here + gone
    var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    overall = (here * mean + gone * gone_mean) / total
    spread = here * (var + (mean - overall) ** 2) + gone * (gone_mean - overall) ** 2
    spread = spread + gone_spread * positions
    result: torch.Tensor = (x - overall) / divisor(spread, total, eps, form)
    return result


class LayerNormForward(Compensated):
    """Over one axis, see ``along``."""

    stat_axis: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        axis = along(self.stat_axis, x.ndim)
        last = self.stat_eps > 0 and axis in (-1, x.ndim - 1) and self.stat_spread == "var"
        if last and not self.is_carried and is_inference(x):
            weight, bias = (t if t is None or t.ndim == 1 else t.reshape(-1) for t in _scale_of(self))
            gone = self.gone(x.shape[-1]), self.removed_mean, self.removed_spread
            return self.behind(counting_layer_norm(x, weight, bias, self.stat_eps, *gone))
        wide = widened(x)
        y = self.normalize(wide, (axis,)).to(x.dtype)
        shape = [-1 if a == axis % x.ndim else 1 for a in range(x.ndim)]
        result = self.finish(y, shape)
        return result if x.dtype in HALF else result.to(x.dtype)


# What ``ZerosForward`` does not ask for again.
_USUAL = {
    **{"stat_axis": -1, "removed_mean": 0.0, "removed_spread": 0.0, "stat_tail": (), "stat_offset": 0.0},
    **{"stat_names": PLAIN, "stat_spread": "var", "stat_total": None},
}


class ZerosForward(LayerNormForward):
    """What most become: over the last axis, with no more than a weight and a bias, and all that went were zeros.

    Little is looked up and called before the numbers are: when a norm is reached, nothing of it is in the caches.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not is_inference(x):
            return super().forward(x)
        parameters = vars(self)["_parameters"]
        try:
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # it is computed from others since
            weight, bias = self.weight, self.bias
        return counting_layer_norm(x, weight, bias, self.stat_eps, self.removed)

    @staticmethod
    def fits(module: nn.Module, numbers: Mapping[str, Any]) -> bool:
        """Whether it is what a module becomes that is compensated with these numbers."""
        scale = vars(module)["_parameters"]
        usual = all(numbers[name] == value for name, value in _USUAL.items()) and numbers["stat_eps"] > 0
        held = all(name in scale and (scale[name] is None or scale[name].ndim == 1) for name in PLAIN)
        return usual and held and not numbers.keys() & set(CARRIED)


class RMSNormForward(Compensated):
    """Over the last axis or the second, without a weight that could take up the change of scale.

    ``removed_spread`` is the sum of squares of what went, which ``removed_mean`` is no part of.
    """

    stat_axis: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = widened(x)
        axis = along(self.stat_axis, x.ndim)
        total = x.shape[axis] + self.gone(x.shape[axis])
        squares = wide.square().sum(axis, keepdim=True) + self.removed_spread
        y = (wide * torch.rsqrt(squares / total + self.stat_eps)).to(x.dtype)
        return self.finish(y, [-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])


class GroupNormForward(Compensated):
    """Over the channels of each group and all positions."""

    num_groups: int = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = widened(x)
        grouped = wide.reshape(x.shape[0], self.num_groups, x.shape[1] // self.num_groups, -1)
        y = self.normalize(grouped, (2, 3), grouped.shape[3]).reshape(x.shape).to(x.dtype)
        return self.finish(y, [1, -1] + [1] * (x.ndim - 2))


def scale(module: Any, y: torch.Tensor, shape: list[int], names: tuple[str, ...] | None = None) -> torch.Tensor:
    """Scale and shift with the parameters that the module has, of these names."""
    weight, bias = _scale_of(module, names)
    if weight is not None:
        y = y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def _scale_of(module: Any, names: tuple[str, ...] | None = None) -> tuple[Any, Any]:
    used: tuple[str, ...] = getattr(module, "stat_names", PLAIN) if names is None else names
    weight, bias = (getattr(module, name, None) for name in used)
    offset = getattr(module, "stat_offset", 0.0)
    return (weight + offset if weight is not None and offset else weight), bias


def divisor(squares: Any, total: Any, eps: float, spread: str = "var") -> Any:
    """What is divided by, of the sum of squared deviations of ``total`` numbers.

    Args:
        spread: ``var``, sqrt(var + eps), or ``std``, sqrt(var) + eps; ``var1`` and ``std1`` divide by one less than
            the total, as torch's ``var`` and ``std`` do by themselves.
    """
    var = squares / (total - 1 if spread.endswith("1") else total)
    return (var + eps) ** 0.5 if spread.startswith("var") else var**0.5 + eps


def uncompensated(module: nn.Module, kind: type[Compensated]) -> Any:
    """A copy of a compensated module that counts nothing: one of the user's class, with the same parameters."""
    made: Any = copy.deepcopy(module)
    made.__class__ = plain_class(module)
    for each in (Compensated, kind):
        for name in vars(each)["__annotations__"].keys() - PLAIN:
            made.__dict__.pop(name, None)
    return made


def compensate(module: nn.Module, kind: type[Compensated], **numbers: Any) -> nn.Module:
    """Turn a module (a shell of the original, already with its new parameters) into a compensated one."""
    module.__class__ = overlaid(kind, type(module))
    for name, value in numbers.items():
        if isinstance(value, torch.Tensor):
            module.register_buffer(name, value, persistent=False)
        else:
            module.__dict__[name] = value
    return module
