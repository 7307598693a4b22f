"""The weights of convolutions in the memory format "channels last", in which many machines compute faster.

The numbers stay, and their order in memory changes. What such a weight makes is in that format too, so that it goes
through the model by itself, whatever format the input has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from speedup.ask import ask
from speedup.commit import Transaction
from speedup.errors import CheckError
from speedup.node import Node, Value
from speedup.registry import Registry
from speedup.rounding import difference
from speedup.trace import sandbox, trace
from speedup.verification import Inputs, run


def channels_last(
    model: nn.Module, inputs: Inputs, rules: Registry, transaction: Transaction, effects: Sequence[float] = ()
) -> list[str]:
    """Bring the weights of a model into the format, as a further change of a transaction.

    Args:
        effects: how far rounding alone moves the outputs, as for ``speedup.rounding.difference``.

    Returns:
        the names of the weights: those of four axes that only contractions read.

    Raises:
        CheckError: the model does not run, or answers otherwise, in that format.
    """
    with sandbox(model):
        graph = trace(model, *inputs, rules)
    names = []
    for value in graph.sources:
        if _is_meant(value) and value.tensor is not None:
            data = value.tensor.data
            transaction.formats.append((value.tensor, data))
            value.tensor.data = data.contiguous(memory_format=torch.channels_last)
            names.append(value.names[0])
    again = run(model, {"": inputs})[""]
    if isinstance(again, Exception):
        raise CheckError(
            f"channels_last=True: the model does not run in that format, nothing was changed: {again!r}. Code that "
            "calls view on a feature map needs reshape or flatten there"
        ) from again
    worst = difference(graph.reference, again.tensors, coarsest=graph.coarsest, effects=effects)
    if worst is not None:
        raise CheckError(f"channels_last=True changes the answers, nothing was changed: {worst}")
    return names


def _is_meant(value: Value) -> bool:
    """Whether a weight has four axes, and nothing but contractions of it with an activation reads it."""
    return value.ndim == 4 and bool(value.uses) and all(_contracts(node, k) for node, k in value.uses)


def _contracts(node: Node, k: int) -> bool:
    if node.rule is None or k < 1 or not ask(node, "folds"):
        return False
    layout = node.layout
    return all(layout.names_of(j) & layout.contracted for j in (0, k))
