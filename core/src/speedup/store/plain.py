"""Attributes of modules as JSON: numbers, text, and lists, tuples and dicts of them. Data only, nothing is ever called.

JSON knows no tuple and no infinity, so these are written as an object with one key, which names the kind.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any

import torch

Json = Any


class NotPlainError(ValueError):
    """A value is no plain data."""


def to_json(value: Any, names: Mapping[int, str] | None = None) -> Json:
    """A value as data for JSON.

    Args:
        names: tensors that the value may hold, by identity: those of its own module.

    Raises:
        NotPlainError: it holds something else.

    Example:
        >>> to_json((7, [float("inf")]))
        {'tuple': [7, [{'float': 'inf'}]]}
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, torch.Tensor) and names and id(value) in names:
        return {"tensor": names[id(value)]}
    if isinstance(value, weakref.ref):
        return {"weakref": to_json(value(), names)}
    if type(value) is list:
        return [to_json(v, names) for v in value]
    if type(value) in (tuple, torch.Size):
        return {"tuple" if type(value) is tuple else "size": [to_json(v, names) for v in value]}
    if type(value) is dict and all(type(k) is str for k in value):
        return {"dict": {k: to_json(v, names) for k, v in value.items()}}
    if type(value) is slice:
        return {"slice": [to_json(v) for v in (value.start, value.stop, value.step)]}
    text = f"a tensor of {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
    raise NotPlainError(f"{text} is no number, text, or list, tuple or dict of them")


def from_json(data: Json, tensors: Mapping[str, torch.Tensor] | None = None) -> Any:
    """What ``to_json`` was given.

    Args:
        tensors: by name, for what the value held of its own module.

    Raises:
        NotPlainError: ``to_json`` writes nothing like that.
    """
    if data is None or type(data) in (bool, int, float, str):
        return data
    if type(data) is list:
        return [from_json(d, tensors) for d in data]
    if type(data) is dict and len(data) == 1:
        ((kind, inner),) = data.items()
        if kind == "float" and inner in ("inf", "-inf", "nan"):
            return float(inner)
        if kind == "tensor" and tensors and inner in tensors:
            return tensors[inner]
        if kind == "weakref":
            return weakref.ref(from_json(inner, tensors))
        if kind == "dict" and type(inner) is dict:
            return {k: from_json(v, tensors) for k, v in inner.items()}
        if kind in ("tuple", "size", "slice") and type(inner) is list:
            items = [from_json(v, tensors) for v in inner]
            if kind == "slice" and len(items) == 3:
                return slice(*items)
            if kind == "tuple" or (kind == "size" and all(type(i) is int for i in items)):
                return tuple(items) if kind == "tuple" else torch.Size(items)
    raise NotPlainError(f"{data!r} stands for nothing")
