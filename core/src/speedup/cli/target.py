"""The model and its input on a command line: ``module:callable``, ``--weights`` and ``--input``, for every command.

def add(parser):
    add_model(parser)
    add_input(parser)

    def run(args):
        model, dummy_input = load_model(args), load_input(args)
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from speedup.errors import InputError
from speedup.store.tensors import read_tensors

MODEL_HELP = (
    "the model: a module and a callable in it that returns it, such as my_project.models:make_net or "
    "torchvision.models:resnet50. THIS IMPORTS AND RUNS THAT CODE. Modules are also looked for in the current folder"
)
INPUT_HELP = (
    "one example of what the model is called with: [NAME=]SHAPE[:DTYPE[:LIMIT]], such as 1x3x224x224, "
    "tokens=1x128:int64:30522 (whole numbers below 30522), 8x16:float64, scalar:int64; repeat it for several inputs, "
    "with NAME for keyword arguments. Or @FILE: a tensor, tuple or dict that torch.save wrote (never runs code)"
)

_SPEC = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>scalar|\d+(?:x\d+)*)(?::(?P<dtype>[a-z]\w*)(?::(?P<limit>\d+))?)?"
)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the argument ``model`` and the option ``--weights``."""
    parser.add_argument("model", metavar="MODULE:CALLABLE", help=MODEL_HELP)
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="the weights: a .safetensors file, or a state dict of torch.save (never runs code); "
        "without it the model is as the callable makes it, with seed 0",
    )


def add_input(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the option ``--input``, which may be repeated."""
    parser.add_argument("--input", metavar="SPEC", action="append", required=required, help=INPUT_HELP)


def load_model(args: argparse.Namespace) -> nn.Module:
    """The model that the arguments name, with its weights, in eval mode.

    Raises:
        InputError: there is no such callable, or it returns no module.
        StorageError: the file of weights cannot be used.
    """
    model = make_model(args.model)
    if args.weights is not None:
        load_weights(model, args.weights)
    return model


def make_model(target: str) -> nn.Module:
    """Import and call ``module:callable``; this runs the user's code.

    Raises:
        InputError: there is no such callable, or it returns no module.

    Example:
        >>> make_model("torch.nn:Identity")
        Identity()
    """
    module_name, colon, path = target.partition(":")
    if not module_name or not colon or not path:
        raise InputError(f"{target!r} is no model: write module:callable, such as torchvision.models:resnet50")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"{target!r}: {error} (looked in the current folder and in the environment)") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise InputError(f"{target!r}: {module_name} has no {path!r}")
        found = getattr(found, name)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise InputError(f"{target!r} is a {type(found).__name__}: name a callable that returns the model")
        torch.manual_seed(0)
        try:
            found = found()
        except TypeError as error:
            raise InputError(
                f"{target!r} cannot be called without arguments ({error}): write a function that makes the model"
            ) from error
    if not isinstance(found, nn.Module):
        raise InputError(f"{target!r} returns a {type(found).__name__}, not a torch.nn.Module")
    return found.eval()


def load_weights(model: nn.Module, path: str) -> None:
    """Load a file of weights into the model, all or nothing.

    Raises:
        StorageError: the file cannot be read.
        InputError: it belongs to another model.
    """
    tensors = read_tensors(path)
    state = model.state_dict()
    wrong = [f"{n} is missing in the file" for n in state if n not in tensors]
    wrong += [f"{n} is not in the model" for n in tensors if n not in state]
    wrong += [
        f"{n} is {_shape(t)} in the file and {_shape(state[n])} in the model"
        for n, t in tensors.items()
        if isinstance(state.get(n), torch.Tensor) and state[n].shape != t.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(f"the weights in {path!r} are not those of this model: {'; '.join(wrong[:5])}{more}")
    model.load_state_dict(tensors)


def load_input(args: argparse.Namespace) -> Any:
    """The dummy input that ``--input`` describes, as ``speedup.plan`` takes it.

    Raises:
        InputError: a specification cannot be read.
    """
    return make_input(args.input)


def make_input(specs: Sequence[str]) -> Any:
    """The dummy input of some specifications: random numbers, the same ones in every run.

    Raises:
        InputError: a specification cannot be read.

    Example:
        >>> {name: tuple(t.shape) for name, t in make_input(["x=2x3", "n=2:int64:9"]).items()}
        {'x': (2, 3), 'n': (2,)}
    """
    if any(s.startswith("@") for s in specs):
        if len(specs) > 1:
            raise InputError("--input @FILE holds all inputs: give it once and nothing beside it")
        return _read(specs[0][1:])
    generator = torch.Generator().manual_seed(0)
    positional: list[torch.Tensor] = []
    named: dict[str, torch.Tensor] = {}
    for spec in specs:
        found = _SPEC.fullmatch(spec)
        if found is None:
            raise InputError(f"--input {spec!r}: write [NAME=]SHAPE[:DTYPE[:LIMIT]], such as 1x3x224x224")
        tensor = _tensor(spec, found, generator)
        if found["name"] is None:
            positional.append(tensor)
        elif found["name"] in named:
            raise InputError(f"--input {spec!r}: {found['name']} was given already")
        else:
            named[found["name"]] = tensor
    if positional and named:
        raise InputError("--input: give every input a NAME, or none of them")
    if named:
        return named
    return positional[0] if len(positional) == 1 else tuple(positional)


def _tensor(spec: str, found: re.Match[str], generator: torch.Generator) -> torch.Tensor:
    shape = () if found["shape"] == "scalar" else tuple(map(int, found["shape"].split("x")))
    dtype = getattr(torch, found["dtype"] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"--input {spec!r}: torch has no dtype {found['dtype']!r}")
    whole = not dtype.is_floating_point and not dtype.is_complex
    if found["limit"] is not None and not (whole and int(found["limit"]) > 0):
        raise InputError(f"--input {spec!r}: a limit (of at least 1) is for whole numbers, such as 1x128:int64:1000")
    if whole:
        return torch.randint(int(found["limit"] or 2), shape, generator=generator).to(dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def _read(path: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way inside torch.load
        first = str(error).partition("\n")[0]
        raise InputError(f"--input @{path} cannot be read: {type(error).__name__}: {first}") from error


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
