"""Norm layers of other libraries, recognised by what they compute.

Every vision or language library has a LayerNorm over the second axis, an RMSNorm, or a GroupNorm with a forward of its
own. A module whose only parameters are a ``weight`` and perhaps a ``bias`` of one axis, or what ``NAMES`` calls them
(or none, where it says how many channels it has), is run on random numbers and compared with the formulas. It may have
an activation for a child, which it calls last (``GroupNormAct``).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn

from speedup_plugin_norm.compensated import EITHER, PLAIN, Compensated, along, divisor, scale


@dataclass(frozen=True)
class Form:
    """What a module computes: ``layer``, ``rms`` or ``group``, over which axis, with its eps in which attribute.

    ``rms+1`` is an RMS norm that scales by 1 + weight, as in Gemma; ``layer+1`` a layer norm that does, as in Nemotron.

    Attributes:
        axis: that of the channels, see ``compensated.along``.
        eps: the name of the attribute, or the number that its code holds.
        tail: the children that are called on the result, in this order: activations, entry by entry.
        names: of weight and bias.
        spread: how it divides, see ``compensated.divisor``.
    """

    kind: str
    axis: int
    eps: str | float
    tail: tuple[str, ...] = ()
    names: tuple[str, str] = PLAIN
    spread: str = "var"


# What people call weight and bias. Where there is one of them only, it is the first.
NAMES = (
    ("g", "b"), ("gamma", "beta"), ("a_2", "b_2"), ("scale", "shift"), ("scale", "bias"), ("gain", "bias"),
    ("alpha", "beta"), ("alpha", "bias"), ("gamma", "bias"), ("g", "bias"),
)  # fmt: skip
_SPREADS = ("var", "var1", "std", "std1")
_EPS = (1e-5, 1e-6, 1e-8, 1e-12)  # where a module has it in its code, and not in an attribute
_known: WeakKeyDictionary[nn.Module, Form | None] = WeakKeyDictionary()
_counts: WeakKeyDictionary[FunctionType, int] = WeakKeyDictionary()  # of arguments, by forward


def form_of(module: nn.Module) -> Form | None:
    """The form of a module, None when it is none of those that are known."""
    if not _width(module) or isinstance(module, Compensated):
        return None  # the latter is another sort, which scales by 0 may hide
    own = _own(module)
    if _names(module) is None or (module._buffers and set(module._buffers) != {"beta"}):
        return None
    if any(not _is_line(p) or not p.is_floating_point() for p in own.values()):
        return None
    if tail_of(module) is None:
        return None
    if module not in _known:
        _known[module] = _recognise(module) if takes_one(module) and not _gives_back(module) else None
    return _known[module]


def _own(module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a module; a shift that is no parameter (``beta``, 0) is one of them."""
    both = {**module._parameters, **module._buffers}
    return {n: t for n, t in both.items() if t is not None}


def _names(module: nn.Module) -> tuple[str, str] | None:
    """What weight and bias of a module are called, if the module has no other tensors."""
    own = set(_own(module))
    if own <= {"weight", "bias"}:
        return PLAIN if own != {"bias"} else None
    return next((both for both in NAMES if both[0] in own and own <= set(both)), None)


def _is_line(tensor: torch.Tensor) -> bool:
    """Whether a tensor has one axis, others of size 1 aside."""
    return tensor.ndim > 0 and (tensor.ndim == 1 or tensor.numel() == max(tensor.shape) > 1)


def _recognise(module: nn.Module) -> Form | None:
    numbers = torch.Generator().manual_seed(0)
    names = _names(module)
    assert names is not None
    probe = _with_contents(module, numbers, names)
    width, like = _width(module), _like(probe)
    tail = tail_of(module) or ()
    if tail and not _is_pointwise(probe, tail):
        return None
    named = [n for n, v in vars(module).items() if isinstance(v, float) and 0 < v < 1]
    for axis, shape in ((-1, (2, 3, width)), (-1, (2, 2, 3, width)), (1, (2, width, 2, 3)), (1, (2, width, 3))):
        if len(shape) > 2 and width in (2, 3):
            continue  # the axes could not be told apart
        # Small numbers, for which eps matters, and of two sizes: at one alone std + 1e-5 may be sqrt(var + 1e-6).
        sizes = torch.tensor([0.05, 0.005]).reshape([-1] + [1] * (len(shape) - 1))
        x = (torch.randn(shape, generator=numbers) * sizes).to(like)
        got = _run(probe, x)
        if got is None or got.shape != x.shape:
            continue
        if torch.equal(got, x):
            return None  # dropout and its kin give back what they get
        kinds = ("layer", "rms", "rms+1", "layer+1", *(("group",) if axis == 1 and _groups(module) else ()))
        for kind in kinds:
            # The eps of an RMS norm must be set anew.
            for eps in (*named, *(() if kind.startswith("rms") else _EPS)):
                for spread in _SPREADS if kind == "layer" else ("var",):
                    form = Form(kind, axis, eps, tail, names, spread)
                    if _computes(probe, x, got, form):
                        return form if axis == 1 else _of_images_too(probe, form)
    return None


def _of_images_too(module: nn.Module, form: Form) -> Form | None:
    """The form of a module over the last axis, which may take images too; None where it makes no form of them."""
    x = torch.randn((2, _width(module), 2, 3), generator=torch.Generator().manual_seed(2)).to(_like(module))
    got = _run(module, x)
    if got is None or got.shape != x.shape:
        return form
    for each in (form, replace(form, axis=EITHER)):
        with contextlib.suppress(RuntimeError):  # weight and bias do not lie along that axis
            if _is_close(got, formula(module, x, each)):
                return each
    return None


def _width(module: nn.Module) -> int:
    """How many channels there are, 0 where nothing says so."""
    shape = vars(module).get("normalized_shape")
    if shape is None and module._modules and not module._parameters and not isinstance(module, nn.GroupNorm):
        return 0  # what holds others: most of the modules that are asked
    names = _names(module)
    weight = module._parameters.get(names[0]) if names is not None else None
    if weight is not None:
        return weight.numel()
    if isinstance(shape, tuple) and len(shape) == 1 and isinstance(shape[0], int):
        return shape[0]
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    # Without parameters it does not matter how many there are.
    if module._parameters or module._modules:
        return 0
    return 7 if any(isinstance(v, float) for v in vars(module).values()) else 0


def _like(module: nn.Module) -> torch.Tensor:
    """A tensor of the type that the module computes in."""
    weight = next((p for p in module._parameters.values() if p is not None), None)
    return torch.empty(0) if weight is None else weight


def tail_of(module: nn.Module) -> tuple[str, ...] | None:
    """The children that do something, None where one of them has parameters, buffers or hooks of its own."""
    found = []
    for name, child in module._modules.items():
        if child is None or type(child) is nn.Identity or isinstance(child, nn.Dropout):
            continue
        inside = list(child.modules())
        if any(m._parameters or m._buffers or m._forward_hooks or m._forward_pre_hooks for m in inside):
            return None
        found.append(name)
    return tuple(found)


def _is_pointwise(module: nn.Module, tail: tuple[str, ...]) -> bool:
    x = torch.randn(24, generator=torch.Generator().manual_seed(1)).to(_like(module))
    try:
        each = torch.cat([run_tail(module, tail, v.reshape(1, 1, 1, 1)).reshape(1) for v in x])
        whole = run_tail(module, tail, x.reshape(2, 3, 2, 2)).reshape(-1)
    except Exception:
        return False  # children that are not called, or take something else
    return torch.allclose(whole, each, rtol=1e-3, atol=1e-5)


def run_tail(module: nn.Module, tail: tuple[str, ...], x: torch.Tensor) -> torch.Tensor:
    """What the children of a module make of a tensor, which may be changed in place."""
    with torch.no_grad():
        x = x.clone()
        for name in tail:
            x = module._modules[name].forward(x)  # type: ignore[union-attr]
    return x


def _with_contents(module: nn.Module, numbers: torch.Generator, names: tuple[str, str]) -> Any:
    """The module, or a copy with some numbers in it: where there are none (meta), and where names alone do not tell
    that one scales and the other shifts (new ones are 1 and 0)."""
    if names == PLAIN and not any(p.is_meta for p in module.parameters()):
        return module
    other = copy.copy(module)
    made = {n: torch.randn(t.shape, generator=numbers).to(_like(module).dtype) for n, t in _own(module).items()}
    parameters = {n: nn.Parameter(made[n]) for n in module._parameters if n in made}
    other.__dict__ = {
        **module.__dict__,
        "_parameters": {**module._parameters, **parameters},
        "_buffers": {n: made[n] for n in module._buffers if n in made},
    }
    return other


def _gives_back(module: nn.Module) -> bool:
    """Whether a module without tensors and children gives back what it gets: dropout and its kin, of which a model may
    have one in each block."""
    if module._parameters or module._buffers or module._modules:
        return False
    x = torch.arange(-12.0, 12.0).reshape(2, 4, 3)
    got = _run(module, x)
    return got is not None and torch.equal(got, x)


def takes_one(module: nn.Module) -> bool:
    """Whether the forward takes one argument. A second one, such as a gate, would change what is computed."""
    forward = getattr(module.forward, "__func__", None)
    if not isinstance(forward, FunctionType):
        return len(inspect.signature(module.forward).parameters) == 1
    if forward not in _counts:
        _counts[forward] = len(inspect.signature(module.forward).parameters)
    return _counts[forward] == 1


def _groups(module: nn.Module) -> int:
    """The number of groups of a group norm that it says it is; 1 for others, which may be over all channels."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    return 0 if hasattr(module, "num_groups") else 1


def _run(module: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """What a module makes of an input; None where it does not take it, or gives anything but a tensor."""
    try:
        got = module.forward(x.clone())
    except Exception:
        return None
    return got if isinstance(got, torch.Tensor) else None


def _computes(module: nn.Module, x: torch.Tensor, got: torch.Tensor | None, form: Form) -> bool:
    """Whether ``got``, which the module made of ``x``, is of a form, and what it makes with another eps too."""
    if not _is_close(got, formula(module, x, form)):
        return False
    if not isinstance(form.eps, str):
        return True
    other = copy.copy(module)
    other.__dict__ = {**module.__dict__, form.eps: 7 * getattr(module, form.eps)}
    return _is_close(_run(other, x), formula(other, x, form))


def _is_close(got: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    if got is None or got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    return torch.allclose(got, wanted, rtol=1e-2 if wanted.dtype.itemsize == 2 else 1e-4, atol=1e-6)


def formula(module: nn.Module, x: torch.Tensor, form: Form) -> torch.Tensor:
    """What a module of that form should compute."""
    wide = x.float() if x.dtype.itemsize == 2 else x
    eps, axis = eps_of(module, form), along(form.axis, x.ndim)
    if form.kind == "group":
        y = F.group_norm(wide, _groups(module), eps=eps)
    elif form.kind.startswith("layer"):
        var, mean = torch.var_mean(wide, axis, correction=0, keepdim=True)
        count = wide.shape[axis]
        y = (wide - mean) / divisor(var * count, count, eps, form.spread)
    else:
        y = wide * torch.rsqrt(wide.square().mean(axis, keepdim=True) + eps)
    shape = [-1 if a == axis % x.ndim else 1 for a in range(x.ndim)]
    y = y.to(x.dtype)
    scaled = scale(module, y, shape, form.names) + (y if form.kind.endswith("+1") else 0)
    return run_tail(module, form.tail, scaled)


def eps_of(module: nn.Module | None, form: Form) -> float:
    return float(getattr(module, form.eps) if isinstance(form.eps, str) else form.eps)
