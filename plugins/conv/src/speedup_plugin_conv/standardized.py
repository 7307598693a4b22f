"""Convolutions with weight standardisation (BiT, NFNet), recognised by what they compute.

Each filter is used as (w - mean) / sqrt(var + eps) · gain, with mean and variance over all its entries. Input channels
that go leave their entries of w behind in both: R of them per filter, with mean m and sum of squared deviations s,
which the module that takes the layer's place goes on counting. Trained on, the weights stay standardised.

Source: Qiao et al., Weight Standardization (2019), https://arxiv.org/abs/1903.10520; with a gain: Brock et al. (2021),
https://arxiv.org/abs/2101.08692.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speedup import Bools, Constant, Fact, Kept, Node, NodeFacts, NodeKeep, Overlay, overlaid, unused_operands
from speedup_plugin_conv.plain import Conv, dims_of

_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_EPS = (1e-5, 1e-6, 1e-8, 1e-10)  # where a module has it in its code, and not in an attribute


@dataclass(frozen=True)
class Form:
    """How a module standardises.

    Attributes:
        eps: the number.
        scale: a number that multiplies all filters.
        same: whether the input is padded so that windows begin at every multiple of the stride, as in TensorFlow.
    """

    eps: float
    scale: float = 1.0
    same: bool = False


class StandardizedForward(Overlay):
    """Statistics that still count what was removed of each filter. A filter that is 0 gives 0, as in the original.

    Attributes:
        stat_eps, stat_scale, stat_same: of the original, see ``Form``.
        removed: how many entries each filter has lost.
        removed_mean, removed_spread: of these, per filter.
    """

    label = "Compensated{}"
    stat_eps: float
    stat_scale: float
    stat_same: bool
    removed: int
    removed_mean: Any
    removed_spread: Any
    weight: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, axes = self.weight, tuple(range(1, self.weight.ndim))
        here = weight[0].numel()
        total = here + self.removed
        var, mean = torch.var_mean(weight, axes, correction=0, keepdim=True)
        overall = (here * mean + self.removed * self.removed_mean) / total
        spread = here * (var + (mean - overall) ** 2) + self.removed_spread
        spread = spread + self.removed * (self.removed_mean - overall) ** 2
        alive = (weight != 0).flatten(1).any(1).reshape(mean.shape)
        weight = (weight - overall) * torch.rsqrt(spread / total + self.stat_eps) * self.stat_scale * alive
        return convolve(self, x, weight, self.stat_same)


def convolve(module: Any, x: torch.Tensor, weight: torch.Tensor, same: bool) -> torch.Tensor:
    """The convolution with a standardised weight, of which the gain is still missing."""
    gain = getattr(module, "gain", None)
    if gain is not None:
        weight = weight * gain.reshape(-1, *(1,) * (weight.ndim - 1))
    if same:
        x = F.pad(x, _padding(x, module))
    result: torch.Tensor = module._conv_forward(x, weight, module.bias)
    return result


def _padding(x: torch.Tensor, module: Any) -> list[int]:
    """Before and after, the last axis first."""
    found = []
    given = zip(x.shape[2:], module.kernel_size, module.stride, module.dilation, strict=True)
    for size, window, stride, step in list(given)[::-1]:
        wanted = (-(-size // stride) - 1) * stride + (window - 1) * step + 1 - size
        found += [max(wanted, 0) // 2, max(wanted, 0) - max(wanted, 0) // 2]
    return found


# -- recognising ------------------------------------------------------------------------------------------------------

_known: WeakKeyDictionary[nn.Module, Form | None] = WeakKeyDictionary()


def form_of(module: nn.Module) -> Form | None:
    """The form of a module, None when it is none of these convolutions."""
    if isinstance(module, StandardizedForward):
        return Form(module.stat_eps, module.stat_scale, module.stat_same)
    if not isinstance(module, _TYPES) or type(module).forward in [t.forward for t in _TYPES]:
        return None
    own = {n for n, p in module._parameters.items() if p is not None}
    if not {"weight"} <= own <= {"weight", "bias", "gain"} or list(module.buffers()):
        return None
    if any(module.get_parameter(n).numel() != module.out_channels for n in own - {"weight"}):
        return None
    if any(list(child.parameters()) for child in module.children()):
        return None
    if module not in _known:
        _known[module] = _recognise(module)
    return _known[module]


def _recognise(module: nn.modules.conv._ConvNd) -> Form | None:
    numbers = {v for v in vars(module).values() if isinstance(v, float)}
    every = [Form(*f) for f in itertools.product({*numbers, *_EPS}, {1.0, *numbers}, (False, True)) if 0 < f[0] < 1]
    forms = set(every)
    # With large weights eps does not matter; with small ones it does.
    for size in (1.0, 1e-3, 1e-5):
        small = _smaller(module, size)
        window = max((k - 1) * d + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True))
        for length in range(window, window + 4):  # at some of them the ways of padding differ
            x = torch.randn(1, small.in_channels, *range(length, length + dims_of(small.weight)), dtype=torch.float64)
            try:
                with torch.no_grad():
                    got = small.forward(x.clone())
                    forms = {f for f in forms if _agrees(got, small, x, f)}
            except Exception:
                return None
    # Where no padding is needed both ways of padding agree.
    return min(forms, key=lambda f: (f.same, every.index(f))) if forms else None


def _agrees(got: Any, module: Any, x: torch.Tensor, form: Form) -> bool:
    try:
        wanted = convolve(module, x, _standardized(module.weight, form), form.same)
    except RuntimeError:
        return False
    return isinstance(got, torch.Tensor) and got.shape == wanted.shape and torch.allclose(got, wanted, 1e-6, 1e-12)


def _standardized(weight: torch.Tensor, form: Form) -> torch.Tensor:
    var, mean = torch.var_mean(weight, tuple(range(1, weight.ndim)), correction=0, keepdim=True)
    return (weight - mean) * torch.rsqrt(var + form.eps) * form.scale


def _smaller(module: nn.Module, size: float) -> Any:
    """A module like it with two channels in and out per group, and random numbers of this size."""
    generator = torch.Generator().manual_seed(0)
    small: Any = copy.copy(module)
    small.__dict__ = {**module.__dict__, "_parameters": dict(module._parameters)}
    small.in_channels = small.out_channels = width = 2 * int(small.groups)
    for name, value in module._parameters.items():
        if value is not None:
            shape = (width, 2, *value.shape[2:]) if name == "weight" else (width, *value.shape[1:])
            new = torch.randn(shape, generator=generator, dtype=torch.float64) * (size if name == "weight" else 1.0)
            small._parameters[name] = nn.Parameter(new, requires_grad=False)
    return small


# -- the rule ---------------------------------------------------------------------------------------------------------


class StandardizedConv(Conv):
    """A convolution of which each filter is standardised: an entry of the weight counts for all of its filter."""

    name = "standardized conv"
    operands: tuple[str, ...] = ("input", "weight", "bias", "gain")
    makes = (StandardizedForward,)

    def fixed(self, node: Node, module: nn.Module) -> nn.Module | None:
        return None

    def may_claim(self, kind: type[nn.Module], held: frozenset[str]) -> bool:
        return issubclass(kind, (StandardizedForward, *_TYPES))

    def claims(self, module: nn.Module) -> bool:
        return form_of(module) is not None

    def signature(self, node: Node) -> str:
        gain = node.operand("gain")
        ones = " 1" * (gain.ndim - 1) if gain is not None else ""
        inputs, out = super().signature(node).split("->")
        return f"{inputs}, (g o){ones}? -> {out}"

    def folds(self, node: Node) -> bool:
        return False

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """A filter that is 0, or reads nothing but zeros, gives its bias."""
        layout, out = node.layout, node.layout.n_inputs
        zeros = layout.project_all(0, layout.to_named(0, facts.zero(0)))
        zeros = np.asarray(zeros.all(axis=layout.axes({"i"}), keepdims=True))
        mask = layout.project_all(out, _silent(node, facts) | zeros)
        if not mask.any():
            return {}
        value = np.zeros((1,) * len(layout.names))
        if facts.present(2):
            mask, value = mask & layout.to_named(2, facts.mask(2)), layout.to_named(2, facts.value(2))
        mask, value = np.broadcast_arrays(mask, value)
        return {"output": Constant(layout.from_named(out, mask), layout.from_named(out, np.where(mask, value, 0.0)))}

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """An input is read by every filter of its group; of a weight, whole filters are."""
        layout, out = node.layout, node.layout.n_inputs
        unused: Bools = layout.project_all(out, layout.to_named(out, facts.unused(out)))
        unread = np.asarray((unused | _silent(node, facts)).all(axis=layout.axes({"o"}), keepdims=True))
        masks = dict(enumerate((unread, unused, unused, unused)))
        return unused_operands(node, {k: mask for k, mask in masks.items() if k < len(node.operands)})

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        """Only zeros go: no entry of the weight can take up another constant without changing its whole filter."""
        super().constrain(node, keep)
        layout, out = node.layout, node.layout.n_inputs
        kept = layout.to_named(out, keep.sets[out] & ~keep.facts.unused(out))
        reads: Bools = layout.project_any(out, kept) & ~_silent(node, keep.facts)
        reads = np.any(reads, axis=layout.axes(layout.names_of(out) - layout.names_of(0)), keepdims=True)
        counts = layout.to_named(0, ~(keep.facts.zero(0) | keep.sets[0]))
        if (counts & reads).any():
            why = "a constant that a standardized weight cannot take up"
            keep.grow(0, layout.from_named(0, layout.project_any(0, counts & reads)), why, 0)

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = super().replace(node, keep)
        form, source = form_of(keep.module), node.operand("weight")
        assert form is not None and source is not None and source.tensor is not None
        numbers = source.contents().to("cpu", torch.float64).numpy()
        kept = np.broadcast_to(keep.sets[1], numbers.shape).reshape(len(numbers), -1)
        rows = kept.any(axis=1)
        went, numbers = ~kept[rows], numbers.reshape(kept.shape)[rows]
        count = int(went.sum(axis=1).max(initial=0))
        mean = np.where(went, numbers, 0.0).sum(axis=1) / max(count, 1)
        spread = np.where(went, (numbers - mean[:, None]) ** 2, 0.0).sum(axis=1)
        earlier, earlier_mean, earlier_spread = (n[rows] if n.ndim else n for n in _before(keep.module))
        total = count + int(earlier)
        if not total:
            return module
        spread = spread + earlier_spread + count * earlier / total * (mean - earlier_mean) ** 2
        mean = (count * mean + earlier * earlier_mean) / total
        module.__class__ = overlaid(StandardizedForward, type(module))
        module.__dict__.update(stat_eps=form.eps, stat_scale=form.scale, stat_same=form.same, removed=total)
        shape = (-1, *(1,) * (source.ndim - 1))
        for name, value in (("removed_mean", mean), ("removed_spread", spread)):
            tensor = torch.from_numpy(value.reshape(shape)).to(source.tensor)
            module.register_buffer(name, tensor, persistent=False)
        return module


def _silent(node: Node, facts: NodeFacts) -> Bools:
    """The filters that are 0: all of their entries are, or the gain (named)."""
    layout = node.layout
    within = layout.axes(layout.names_of(1) - layout.names_of(layout.n_inputs))
    silent = layout.to_named(1, facts.zero(1)).all(axis=within, keepdims=True)
    return np.asarray(silent | layout.to_named(3, facts.zero(3)) if facts.present(3) else silent)


def _before(module: nn.Module) -> Sequence[Any]:
    """What went in earlier rounds: how many entries, and per filter their mean and sum of squared deviations."""
    if not isinstance(module, StandardizedForward):
        return np.array(0), np.array(0.0), np.array(0.0)
    both = (t.detach().to("cpu", torch.float64).numpy() for t in (module.removed_mean, module.removed_spread))
    return np.array(module.removed), *(n.reshape(-1) for n in both)
