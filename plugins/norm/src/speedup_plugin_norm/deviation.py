"""Norms that divide by a deviation and subtract no mean, recognised by what they compute (EvoNorm, timm's SimpleNorm).

    out[c] = f(x[c]) / sqrt(spread + eps) * weight[c] + bias[c]

where f is x * sigmoid(v[c] * x), an activation or nothing, and the spread is the variance or the mean of squares of a
group of channels at all positions, or of all channels at one. A channel that is 0 gives its bias and is counted; the
module that takes the layer's place goes on counting it. With n of N channels left, p = n / N and q = 1 - p,

    mean of squares = p · mean of squares that are left,   variance = p · (variance_left + q · mean_left²)

Source: Liu et al., Evolving Normalization-Activation Layers (2020), https://arxiv.org/abs/2004.02967, table 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from speedup import Bools, Kept, Node, NodeFacts
from speedup_plugin_norm.compensated import Compensated, compensate
from speedup_plugin_norm.custom import tail_of, takes_one
from speedup_plugin_norm.inference import widened
from speedup_plugin_norm.zeros import ZerosGo


@dataclass(frozen=True)
class Deviation:
    """What a module computes.

    Attributes:
        axis: of the channels, 1 or -1.
        groups: of channels that are counted together, at all positions; 0 where all are, at each position.
        spread: ``var``, ``var1`` (divided by one less) or ``squares``.
        eps: the name of the attribute.
        tail: the children that make f.
    """

    axis: int
    groups: int
    spread: str
    eps: str
    tail: tuple[str, ...]


class DeviationForward(Compensated):
    """``removed`` counts the channels that went of every group; all of them were 0."""

    stat_form: tuple[Any, ...]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return divided(self, x, Deviation(*self.stat_form), self.stat_eps, self.removed)


def divided(module: Any, x: torch.Tensor, form: Deviation, eps: float, removed: int) -> torch.Tensor:
    """What the layer computes where ``removed`` channels of every group were 0."""
    wide = widened(x)
    grouped, over = wide, [form.axis]
    if form.groups:
        grouped = wide.reshape(x.shape[0], form.groups, x.shape[1] // form.groups, *x.shape[2:])
        over = list(range(2, grouped.ndim))
    left = grouped.shape[over[0]]
    p = left / (left + removed)
    if form.spread == "squares":
        spread = p * grouped.square().mean(over, keepdim=True)
    else:
        var, mean = torch.var_mean(grouped, over, correction=0, keepdim=True)
        spread = p * (var + (1 - p) * mean.square())
    if form.spread == "var1":
        spread = spread * ((left + removed) / (left + removed - 1))
    made = (spread + eps).rsqrt().expand(grouped.shape).reshape(x.shape).to(x.dtype) * _numerator(module, x, form)
    for name, join in (("weight", torch.mul), ("bias", torch.add)):
        tensor = getattr(module, name, None)
        if tensor is not None:
            made = join(made, _along(tensor, x, form.axis))
    return made


def _numerator(module: Any, x: torch.Tensor, form: Deviation) -> torch.Tensor:
    v = getattr(module, "v", None)
    if v is not None:
        return x * (x * _along(v, x, form.axis)).sigmoid()
    for name in form.tail:
        x = getattr(module, name)(x.clone())  # which may write into what it is given
    return x


def _along(tensor: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    return tensor.reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)]).to(x.dtype)


# -- recognition ------------------------------------------------------------------------------------------------------

_known: WeakKeyDictionary[nn.Module, Deviation | None] = WeakKeyDictionary()


def deviation_of(module: nn.Module) -> Deviation | None:
    """What a module of this kind computes; None for any other."""
    own = {n: p for n, p in module._parameters.items() if p is not None}
    if "weight" not in own or not set(own) <= {"weight", "bias", "v"} or module._buffers:
        return None
    if isinstance(module, Compensated) or any(p.ndim != 1 or not p.is_floating_point() for p in own.values()):
        return None
    if len({len(p) for p in own.values()}) > 1 or tail_of(module) is None or not takes_one(module):
        return None
    if module not in _known:
        _known[module] = _recognise(module)
    return _known[module]


def _recognise(module: nn.Module) -> Deviation | None:
    weight = module._parameters["weight"]
    assert weight is not None
    width, tail = len(weight), tail_of(module) or ()
    like = torch.empty(0, dtype=weight.dtype) if weight.is_meta else weight
    numbers = torch.Generator().manual_seed(0)
    epsilons = [n for n, v in vars(module).items() if isinstance(v, float) and 0 < v < 1]
    groups = vars(module).get("groups")
    grouped = [groups] if isinstance(groups, int) and groups > 0 and width % groups == 0 else []
    for axis, shape in ((1, (2, width, 3, 2)), (-1, (2, 3, 2, width))):
        if width in (2, 3):
            return None  # the axes could not be told apart
        for name in epsilons:
            # As small as eps asks for, so that it matters, and of ordinary size.
            sizes = (getattr(module, name) ** 0.5, 1.0)
            probes = [(torch.randn(shape, generator=numbers) * s + s).to(like) for s in sizes]
            made = [_made(module, x) for x in probes]
            for count in (*grouped, 0) if axis == 1 else (0,):
                # Over the mean of squares of each position it is an RMS norm, of which more is known.
                for spread in ("var", "squares", "var1") if count else ("var", "var1"):
                    form = Deviation(axis, count, spread, name, tail)
                    if all(_is_close(module, x, got, form) for x, got in zip(probes, made, strict=True)):
                        return form
    return None


def _contents(module: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Parameters of their own: those of a new layer are 0 and 1, which would tell nothing."""
    numbers = torch.Generator().manual_seed(1)
    own = {n: torch.randn(p.shape, generator=numbers).to(x) for n, p in module._parameters.items() if p is not None}
    if "v" in own:
        own["v"] = own["v"] / x.abs().amax()
    return own


def _made(module: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    try:
        got = torch.func.functional_call(module, _contents(module, x), (x.clone(),))
    except Exception:
        return None
    return got if isinstance(got, torch.Tensor) and got.shape == x.shape and got.dtype == x.dtype else None


class _With:
    """A module with other parameters."""

    def __init__(self, module: nn.Module, own: dict[str, torch.Tensor]) -> None:
        self.module, self.own = module, own

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__["own"]
        return own[name] if name in own else getattr(self.__dict__["module"], name)


def _is_close(module: nn.Module, x: torch.Tensor, got: torch.Tensor | None, form: Deviation) -> bool:
    if got is None:
        return False
    wanted = divided(_With(module, _contents(module, x)), x, form, float(getattr(module, form.eps)), 0)
    return torch.allclose(got, wanted, rtol=1e-2 if x.dtype.itemsize == 2 else 1e-4, atol=1e-5)


# -- the rule ---------------------------------------------------------------------------------------------------------


class DeviationNorm(ZerosGo):
    """Channels that are 0 can go; all others are counted with those of their group."""

    name = "deviation_norm"
    makes = (DeviationForward,)
    operands = ("input", "weight", "bias", "v")
    sizes = {"groups": "g"}  # noqa: RUF012
    counts_it = "the deviation counts it"

    def may_claim(self, kind: type[nn.Module], held: frozenset[str]) -> bool:
        return "weight" in held

    def claims(self, module: nn.Module) -> bool:
        return deviation_of(module) is not None

    def signature(self, node: Node) -> str:
        form, value = self._form(node), node.operands[0]
        assert value is not None
        if not form.groups:
            inner = "n c *" if form.axis == 1 else "* c"
            return f"{inner}, c, c?, c? -> {inner}"
        inner = f"n (g={form.groups} c) ~{value.ndim - 2}"
        return f"{inner}, (g c), (g c)?, (g c)? -> {inner}"

    def derived(self, node: Node) -> set[int]:
        return super().derived(node) - {0}

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module, form, layout = super().replace(node, keep), self._form(node), node.layout
        left = keep.size("c")
        if left == layout.sizes["c"]:
            return module
        now = (form.axis, keep.size("g") if form.groups else 0, form.spread, form.eps, form.tail)
        eps = float(getattr(keep.module, form.eps))
        return compensate(module, DeviationForward, stat_form=now, stat_eps=eps, removed=layout.sizes["c"] - left)

    def zero(self, node: Node, facts: NodeFacts) -> Bools:
        """The channels that are 0 at all positions, in named space."""
        layout, zero = node.layout, facts.zero(0)
        over = tuple(a for a in range(zero.ndim) if a != self._form(node).axis % zero.ndim)
        return layout.to_named(0, np.all(zero, axis=over, keepdims=True))

    def _form(self, node: Node) -> Deviation:
        known = deviation_of(node.module) if node.module is not None else None
        assert known is not None
        return known
