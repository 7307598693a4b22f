"""The dummy input: from what the user passes to the arguments of one call of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from speedup import walk
from speedup.errors import InputError

__all__ = ["check_made", "resolve_inputs"]

_EXPECTED = "a dummy input is a tensor, a tuple of positional arguments or a dict of keyword arguments"


def resolve_inputs(dummy_input: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return `(args, kwargs)` such that `model(*args, **kwargs)` is the call that `dummy_input` stands for.

    ====================  ==========================  =======================================================
    `dummy_input`         call                        note
    ====================  ==========================  =======================================================
    a tensor `t`          `model(t)`
    a tuple `(a, b)`      `model(a, b)`               entries may be anything that the model takes
    a dict `{"x": a}`     `model(x=a)`                any mapping whose keys are strings
    a list `[a, b]`       `model([a, b])`             **one** argument: detection models take a list of images
    a named tuple         `model(named_tuple)`        one argument: a `PackedSequence` is one object
    ====================  ==========================  =======================================================

    Nothing is copied, moved or run. The containers returned are new, their contents are the caller's.

    Raises:
        InputError: anything else, among it a size such as `(1, 3, 32, 32)` where the tensor itself belongs.

    Example:
        >>> resolve_inputs({"tokens": 1, "mask": None})
        ((), {'tokens': 1, 'mask': None})
        >>> resolve_inputs([1, 2])
        (([1, 2],), {})
    """
    if isinstance(dummy_input, torch.Tensor | list):
        return (dummy_input,), {}
    if isinstance(dummy_input, tuple):
        if hasattr(dummy_input, "_fields"):
            return (dummy_input,), {}
        if _is_size(dummy_input):
            raise InputError(
                f"{_EXPECTED}, but got the size {tuple(dummy_input)}: pass a tensor of that size, for example "
                f"torch.randn{tuple(dummy_input)}. (If the model really takes these integers, "
                "pass them by name, in a dict.)"
            )
        return tuple(dummy_input), {}
    if isinstance(dummy_input, Mapping):
        wrong = [key for key in dummy_input if not isinstance(key, str)]
        if wrong:
            raise InputError(
                f"a dict as dummy input holds keyword arguments by name, but {wrong[0]!r} is no string. "
                "If the dict itself is the model's only argument, wrap it in a tuple: (that_dict,)"
            )
        return (), dict(dummy_input)
    raise InputError(f"{_EXPECTED}, but got {_describe(dummy_input)}")


def check_made(model: nn.Module) -> None:
    """Raise InputError where parameters or buffers of lazy modules have no shape yet."""
    one_of_each_kind = {type(tensor): tensor for tensor in walk.places(model)}
    if any(map(nn.parameter.is_lazy, one_of_each_kind.values())):
        lazy = [name for name, tensor in walk.named_tensors(model) if nn.parameter.is_lazy(tensor)]
        more = f" and {len(lazy) - 3} more" if len(lazy) > 3 else ""
        raise InputError(
            f"{', '.join(map(repr, lazy[:3]))}{more}: no shape yet (lazy modules). Call the model once before, which "
            "gives them one, and take out lazy layers that it never calls"
        )


def _is_size(value: tuple[Any, ...]) -> bool:
    """Whether `value` looks like the shape of a tensor: a `torch.Size`, or two or more plain integers."""
    return isinstance(value, torch.Size) or (len(value) > 1 and all(type(entry) is int for entry in value))


def _describe(value: object) -> str:
    """`value` in a few words, with the remedy where a common mistake is recognised."""
    kind = type(value).__name__
    if value is None:
        return "None: pass one example of what the model is called with"
    if hasattr(value, "__array__"):
        return f"{kind}: convert it to a tensor first, for example with torch.as_tensor(...)"
    if isinstance(value, torch.nn.Module):
        return f"the module {kind}: the order is (model, dummy_input, masks)"
    if hasattr(value, "__iter__") and not isinstance(value, str | bytes):
        return f"{kind}: pass one batch of it, for example next(iter(...)), without the labels"
    return kind
