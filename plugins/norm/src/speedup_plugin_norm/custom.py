"""Norm layers of other libraries, recognised by what they compute.

Every vision or language library has a LayerNorm over the second axis, an RMSNorm, or a GroupNorm with a forward of its
own. A module without children and buffers whose only parameters are a ``weight`` and perhaps a ``bias`` of one axis is
run on random numbers and compared with the formulas.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn

from speedup_plugin_norm.compensated import Compensated, scale


@dataclass(frozen=True)
class Form:
    """What a module computes: ``layer``, ``rms`` or ``group``, over which axis, with its eps in which attribute.

    ``rms+1`` is an RMS norm that scales by 1 + weight, as in Gemma.
    """

    kind: str
    axis: int
    eps: str


_known: WeakKeyDictionary[nn.Module, Form | None] = WeakKeyDictionary()


def form_of(module: nn.Module) -> Form | None:
    """The form of a module, None when it is none of those that are known."""
    if isinstance(module, Compensated):
        return None  # another sort, which scales by 0 may hide
    own = {n: p for n, p in module._parameters.items() if n != "bias" or p is not None}
    names = set(own)
    if names not in ({"weight"}, {"weight", "bias"}) or module._modules or module._buffers:
        return None
    if not _takes_one(module) or any(p is None or p.ndim != 1 or not p.is_floating_point() for p in own.values()):
        return None
    if module not in _known:
        _known[module] = _recognise(module)
    return _known[module]


def _recognise(module: nn.Module) -> Form | None:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    width = weight.numel()
    floats = [n for n, v in vars(module).items() if isinstance(v, float) and 0 < v < 1]
    numbers = torch.Generator().manual_seed(0)
    probe = _with_contents(module, numbers)
    for axis, shape in ((-1, (2, 3, width)), (-1, (2, 2, 3, width)), (1, (2, width, 2, 3))):
        if len(shape) > 2 and width in (2, 3):
            continue  # the axes could not be told apart
        # Small numbers, for which eps matters.
        x = (torch.randn(shape, generator=numbers) * 0.05).to(probe.weight)
        kinds = ("layer", "rms", "rms+1", *(("group",) if axis == 1 and _groups(module) else ()))
        for kind in kinds:
            for name in floats:
                if _computes(probe, x, Form(kind, axis, name)):
                    return Form(kind, axis, name)
    return None


def _with_contents(module: nn.Module, numbers: torch.Generator) -> Any:
    """The module, or where its parameters are on the meta device a copy with some numbers: any tell the formula."""
    if not any(p.is_meta for p in module.parameters()):
        return module
    other = copy.copy(module)
    own = {n: p for n, p in module._parameters.items() if p is not None}
    made = {n: nn.Parameter(torch.randn(p.shape, generator=numbers).to(p.dtype)) for n, p in own.items()}
    other.__dict__ = {**module.__dict__, "_parameters": {**module._parameters, **made}}
    return other


def _takes_one(module: nn.Module) -> bool:
    """Whether the forward takes one argument. A second one, such as a gate, would change what is computed."""
    return len(inspect.signature(module.forward).parameters) == 1


def _groups(module: nn.Module) -> int:
    """The number of groups of a group norm that it says it is, 0 for others."""
    return module.num_groups if isinstance(module, nn.GroupNorm) else 0


def _computes(module: nn.Module, x: torch.Tensor, form: Form) -> bool:
    other = copy.copy(module)
    other.__dict__ = {**module.__dict__, form.eps: 7 * getattr(module, form.eps)}
    for each in (module, other):
        try:
            got = each.forward(x.clone())
        except Exception:
            return False
        wanted = formula(each, x, form)
        if not isinstance(got, torch.Tensor) or got.shape != wanted.shape or got.dtype != wanted.dtype:
            return False
        if not torch.allclose(got, wanted, rtol=1e-2 if x.dtype.itemsize == 2 else 1e-4, atol=1e-6):
            return False
    return True


def formula(module: nn.Module, x: torch.Tensor, form: Form) -> torch.Tensor:
    """What a module of that form should compute."""
    wide = x.float() if x.dtype.itemsize == 2 else x
    eps = getattr(module, form.eps)
    if form.kind == "group":
        y = F.group_norm(wide, _groups(module), eps=eps)
    elif form.kind == "layer":
        var, mean = torch.var_mean(wide, form.axis, correction=0, keepdim=True)
        y = (wide - mean) * torch.rsqrt(var + eps)
    else:
        y = wide * torch.rsqrt(wide.square().mean(form.axis, keepdim=True) + eps)
    shape = [-1 if a == form.axis % x.ndim else 1 for a in range(x.ndim)]
    y = y.to(x.dtype)
    return scale(module, y, shape) + (y if form.kind == "rms+1" else 0)
