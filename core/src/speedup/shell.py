"""Copies of modules that share everything but the dictionaries that hold it."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from speedup.trees import PLAIN

_COPIED = (dict, list, set)
_AS_IT_IS = PLAIN | {tuple}

_SETATTR = nn.Module.__setattr__

Module = TypeVar("Module", bound=nn.Module)


def shell_of(module: Module, instead: Mapping[str, torch.Tensor] | None = None) -> Module:
    """A module of the same class with the same attributes, hooks, parameters and children, made without ``__init__``.

    Its dictionaries are its own: registering a parameter in the shell leaves the original alone.

    Args:
        instead: tensors that take the place of parameters and buffers of these names.
    """
    shell = module.__class__.__new__(module.__class__)
    if type(shell) is not type(module):  # some make a class of its own for each instance (torch.fx)
        shell.__class__ = type(module)
    held = shell.__dict__
    held.update(module.__dict__)
    for name, value in module.__dict__.items():
        kind = type(value)
        # Nearly all that modules hold is of these types: nothing is called to see it.
        if kind is OrderedDict or kind is dict or (kind not in _AS_IT_IS and isinstance(value, _COPIED)):
            held[name] = value.copy()
    for name, tensor in (instead or {}).items():
        held["_parameters" if name in held["_parameters"] else "_buffers"][name] = tensor
    return shell


def like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """A new tensor as a parameter where the old one is, with its ``requires_grad`` and attributes."""
    if type(old) is torch.Tensor or not isinstance(old, nn.Parameter):
        return new
    made = nn.Parameter(new, requires_grad=old.requires_grad)
    if old.__dict__:
        made.__dict__.update(old.__dict__)
    return made


def put(module: nn.Module, name: str, value: object) -> None:
    """Set an attribute of a module, as ``setattr``, which looks through its tensors and children first."""
    kind = type(module)
    if type(value) in PLAIN and name in module.__dict__ and kind.__setattr__ is _SETATTR and not hasattr(kind, name):
        module.__dict__[name] = value
    else:
        setattr(module, name, value)


def relinked(value: Any, renewed: Mapping[int, torch.Tensor]) -> Any:
    """An attribute that holds tensors (a list or dict of weights, say), with others in their place.

    Args:
        renewed: the others, by the identity of those that they replace.
    """
    if isinstance(value, torch.Tensor):
        return renewed.get(id(value), value)
    if isinstance(value, weakref.ref):
        return weakref.ref(renewed[id(value())]) if id(value()) in renewed else value
    if type(value) not in (list, tuple, dict):
        return value
    items = list(value.values() if type(value) is dict else value)
    others = [v if type(v) in PLAIN else relinked(v, renewed) for v in items]
    if all(one is other for one, other in zip(items, others, strict=True)):
        return value
    return dict(zip(value, others, strict=True)) if type(value) is dict else type(value)(others)
