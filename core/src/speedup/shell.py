"""Copies of modules that share everything but the dictionaries that hold it."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def shell_of(module: Module) -> Module:
    """A module of the same class with the same attributes, hooks, parameters and children, made without ``__init__``.

    Its dictionaries are its own: registering a parameter in the shell leaves the original alone.
    """
    shell = module.__class__.__new__(module.__class__)
    for name, value in module.__dict__.items():
        shell.__dict__[name] = value.copy() if isinstance(value, dict | OrderedDict | list | set) else value
    return shell


def relinked(value: Any, renewed: Mapping[int, torch.Tensor]) -> Any:
    """An attribute that holds tensors (a list of weights, say), with others in their place.

    Args:
        renewed: the others, by the identity of those that they replace.
    """
    if isinstance(value, torch.Tensor):
        return renewed.get(id(value), value)
    if isinstance(value, weakref.ref):
        return weakref.ref(renewed[id(value())]) if id(value()) in renewed else value
    if type(value) in (list, tuple) and any(isinstance(v, torch.Tensor | weakref.ref) for v in value):
        return type(value)(relinked(v, renewed) for v in value)
    return value
