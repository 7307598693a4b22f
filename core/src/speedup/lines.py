"""The numbers of short 1-D tensors, read together: a conversion costs a call of torch, whatever it converts.

A model has hundreds of them (the statistics of norms, biases), and of most somebody asks for the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from speedup.arrays import Floats, read_only
from speedup.node import Value

_SHORT = 1 << 14  # entries
_PLAIN = (torch.Tensor, nn.Parameter)


def is_line(value: Value) -> bool:
    """Whether the model holds a value as a short 1-D tensor of numbers with a point, which no forward changes."""
    tensor = value.tensor
    return (
        tensor is not None
        and value.ndim == 1
        and 0 < value.shape[0] <= _SHORT
        and value.next is None
        and type(tensor) in _PLAIN
        and tensor.is_floating_point()
        and not tensor.is_meta
    )


def read_lines(first: Value, values: Iterable[Value]) -> Sequence[tuple[torch.Tensor, Floats]]:
    """The numbers of a short 1-D tensor, and of all others of its type, each with the tensor.

    Args:
        first: the one that is asked for.
        values: among which the others are.
    """
    kind = _kind(first)
    alike = {id(v.tensor): v for v in (first, *values) if is_line(v) and _kind(v) == kind}
    whole = torch.cat([v.contents() for v in alike.values()]).to("cpu", torch.float64).numpy()
    found: list[tuple[torch.Tensor, Floats]] = []
    start = 0
    for value in alike.values():
        assert value.tensor is not None
        end = start + value.shape[0]
        # Each in memory of its own: facts that hold one would hold all.
        found.append((value.tensor, read_only(whole[start:end].copy())))
        start = end
    return found


def _kind(value: Value) -> tuple[torch.dtype, torch.device]:
    assert value.tensor is not None
    return value.tensor.dtype, value.tensor.device
