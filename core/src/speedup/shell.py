"""Copies of modules that share everything but the dictionaries that hold it."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

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
