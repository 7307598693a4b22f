"""What a command works on: a model, named as ``module:callable``, and an example of its input."""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Any

import torch
from torch import nn

from speedup.errors import InputError

INPUT_HELP = (
    "an example input as its sizes, 1x3x224x224; with a type, 1x16:int64 (zeros); several arguments separated by commas"
)
TARGET_HELP = "the model: module:callable, where the callable takes no arguments and returns it, or is the model itself"


def load_model(target: str) -> nn.Module:
    """Import and make the model that ``module:callable`` names; the working directory counts as a place of modules.

    Raises:
        InputError: nothing of that name, or what it gives is no model; the message says which.

    Example:
        >>> load_model("torch.nn:Identity")
        Identity()
    """
    module_name, colon, path = target.partition(":")
    if not (module_name and colon and path):
        raise InputError(f"{target!r} names no model: write module:callable, such as mymodels.net:build")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"the module of {target!r} cannot be imported: {error}") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise InputError(f"{target!r}: {found!r} has no {name!r}")
        found = getattr(found, name)
    model = found if isinstance(found, nn.Module) else found()
    if not isinstance(model, nn.Module):
        raise InputError(f"{target!r} gives a {type(model).__name__}, not a torch.nn.Module")
    return model


def parse_input(text: str) -> tuple[torch.Tensor, ...]:
    """Make the arguments that ``1x3x224x224`` or ``1x16:int64,1x16:bool`` stand for.

    Floating-point tensors hold random numbers, the same at every call; the others hold zeros, which are valid as ids.

    Raises:
        InputError: the text is no list of sizes, or torch has no such type.

    Example:
        >>> [t.shape for t in parse_input("2x3,4:int64")]
        [torch.Size([2, 3]), torch.Size([4])]
    """
    generator = torch.Generator().manual_seed(0)
    return tuple(_tensor(part.strip(), generator) for part in text.split(","))


def _tensor(text: str, generator: torch.Generator) -> torch.Tensor:
    sizes, _, kind = text.partition(":")
    if not re.fullmatch(r"\d+(x\d+)*", sizes):
        raise InputError(f"{text!r} is no input: write sizes, such as 1x3x224x224 or 1x16:int64")
    dtype = getattr(torch, kind or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"{text!r}: torch has no type {kind!r}; float32, int64 and bool are some")
    shape = tuple(map(int, sizes.split("x")))
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.zeros(shape, dtype=dtype)
