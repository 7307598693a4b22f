"""Norm layers whose statistics still count the channels that were removed.

A layer norm over N channels of which n are left: the others were constants, R = N - n of them, with mean m and sum of
squared deviations s. Then over all N

    mean = (n · mean_kept + R · m) / N
    N · var = n · (var_kept + (mean_kept - mean)²) + s + R · (m - mean)²

which is what these modules compute. Written with the shares p = n / N and q = R / N it is

    var = p · var_kept + p · q · (mean_kept - m)² + s / N
    x - mean = (x - mean_kept) + q · (mean_kept - m)

so that a layer norm over what is left, torch's own kernel, needs only be scaled and shifted once more, by two numbers
per position. They are of a subclass of the class that they replace, with the same parameters.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speedup import Overlay, overlaid, plain_class

PLAIN = ("weight", "bias")
REMOVED = ("removed", "removed_mean", "removed_spread")
CARRIED = ("removed_by", "removed_shares", "removed_rows")
HALF = (torch.float16, torch.bfloat16)
EITHER = 0
"""The axis of the channels of a module that takes images, (n, c, h, w), and tokens, (..., c)."""
_AT_ONCE = 1 << 18  # numbers that several passes are made over while they are in the cache
# Zeros for each channel that is left, and numbers in all, up to which to write the zeros out takes less than passes.
_FEW_ZEROS, _FEW = 2, _AT_ONCE // 2


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


def is_plain() -> bool:
    """Whether nothing but an answer is asked for.

    A compiler fuses the plain calls better by itself. ``torch.jit.trace`` compares what it records with gradients with
    what it records without, and is to see the same calls.
    """
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return not torch.is_grad_enabled() and not recorded


def corrected(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    gone: int,
    gone_mean: float,
    gone_spread: float,
) -> torch.Tensor:
    """The kernel over the last axis, corrected for what was removed. It gives no gradients of its statistics.

    With u = (mean_kept - m) / kernel's deviation, of which the eps is such that p times its square is eps + s / N more
    than p · var_kept: y = (kernel(x) + weight · q · u) / sqrt(p + p · q · u²) + bias, in few passes and small calls.

    Args:
        gone, gone_mean, gone_spread: how many were removed, their mean and sum of squared deviations.
    """
    left, dtype = x.shape[-1], x.dtype
    if x.numel() > max(_AT_ONCE, left) and type(x) is torch.Tensor:
        return _in_parts(x, weight, bias, eps, gone, gone_mean, gone_spread)
    if dtype in HALF:
        few_zeros = 0 < gone <= _FEW_ZEROS * left and x.numel() <= _FEW and not (gone_mean or gone_spread)
        if few_zeros and all([t is None or t.dtype == dtype for t in (weight, bias)]):
            return _padded(x, weight, bias, eps, gone)
        if weight is not None and weight.dtype != dtype:
            dtype = torch.promote_types(dtype, weight.dtype)
        x = x.float()
    # The kernel takes one type. An original with a forward of its own may bring weights to that of the input.
    if weight is not None and weight.dtype != x.dtype:
        weight = weight.to(x.dtype)
    if bias is not None and bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    if not gone:
        return F.layer_norm(x, (left,), weight, bias, eps).to(dtype)
    total = left + gone
    p, q = left / total, gone / total
    y, mean, inverse = torch.native_layer_norm(x, (left,), weight, None, (eps + gone_spread / total) / p)
    u = (mean - gone_mean if gone_mean else mean).mul_(inverse)
    whole, unit = u.square().add_(1 / q).rsqrt_(), (p * q) ** -0.5
    y = y.add_(u, alpha=q) if weight is None else y.addcmul_(u, weight, value=q)
    y = y.mul_(whole.mul_(unit)) if bias is None else torch.addcmul(bias, y, whole, value=unit)
    return y if y.dtype == dtype else y.to(dtype)


def _in_parts(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """As ``corrected``, some positions at a time: several passes are made over each while it is in the cache."""
    left = x.shape[-1]
    rows, step = x.reshape(-1, left), max(1, _AT_ONCE // left)
    made: torch.Tensor | None = None
    for start in range(0, len(rows), step):
        part = corrected(rows[start : start + step], *arguments)
        made = part.new_empty(rows.shape) if made is None else made
        made[start : start + step] = part
    assert made is not None
    return made.view(x.shape)


def _padded(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, gone: int
) -> torch.Tensor:
    """The kernel over the last axis and as many zeros as went, for little that would else be made in a wider type."""
    left = x.shape[-1]
    total = left + gone
    if weight is not None and bias is not None:  # one call for both: how the zeros are scaled does not matter
        scales = torch.cat([weight, bias] * (gone // left + 2))
        weight, bias = scales.narrow(0, 0, total), scales.narrow(0, left, total)
    else:
        weight, bias = (t if t is None else torch.constant_pad_nd(t, (0, gone)) for t in (weight, bias))
    y = F.layer_norm(torch.constant_pad_nd(x, (0, gone)), (total,), weight, bias, eps)
    return y.narrow(-1, 0, left).contiguous()


class LayerNormForward(Compensated):
    """Over one axis, see ``along``."""

    stat_axis: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        axis = along(self.stat_axis, x.ndim)
        last = self.stat_eps > 0 and axis in (-1, x.ndim - 1) and self.stat_spread == "var"
        if last and not self.is_carried and is_plain():
            weight, bias = (t if t is None or t.ndim == 1 else t.reshape(-1) for t in _scale_of(self))
            gone = self.gone(x.shape[-1])
            return self.behind(corrected(x, weight, bias, self.stat_eps, gone, self.removed_mean, self.removed_spread))
        wide = x.float() if x.dtype in HALF else x
        y = self.normalize(wide, (axis,)).to(x.dtype)
        shape = [-1 if a == axis % x.ndim else 1 for a in range(x.ndim)]
        result = self.finish(y, shape)
        return result if x.dtype in HALF else result.to(x.dtype)


class RMSNormForward(Compensated):
    """Over the last axis or the second, without a weight that could take up the change of scale.

    ``removed_spread`` is the sum of squares of what went, which ``removed_mean`` is no part of.
    """

    stat_axis: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float() if x.dtype in HALF else x
        axis = along(self.stat_axis, x.ndim)
        total = x.shape[axis] + self.gone(x.shape[axis])
        squares = wide.square().sum(axis, keepdim=True) + self.removed_spread
        y = (wide * torch.rsqrt(squares / total + self.stat_eps)).to(x.dtype)
        return self.finish(y, [-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])


class GroupNormForward(Compensated):
    """Over the channels of each group and all positions."""

    num_groups: int = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float() if x.dtype in HALF else x
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
