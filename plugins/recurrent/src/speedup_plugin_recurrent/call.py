"""How operands, weights, states and outputs of a recurrent call are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from speedup import Bools, Node, SignatureError, Value

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def weight_names(module: nn.Module) -> list[list[str | None]]:
    """Per cell (layers, then directions) the attributes that hold ``WEIGHTS``; None for what it does not have."""
    if isinstance(module, nn.RNNCellBase):
        suffixes = [""]
    else:
        ends = ("", "_reverse") if module.bidirectional else ("",)
        suffixes = [f"_l{layer}{end}" for layer in range(int(module.num_layers)) for end in ends]  # type: ignore[arg-type]
    names = [[name + suffix for name in WEIGHTS] for suffix in suffixes]
    return [[n if getattr(module, n, None) is not None else None for n in row] for row in names]


def kind_of(module: nn.Module) -> str:
    """The formula of the cells, see ``known.CELLS``."""
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        return "lstm"
    if isinstance(module, nn.GRU | nn.GRUCell):
        return "gru"
    return str(module.nonlinearity)


@dataclass(frozen=True, eq=False)
class Call:
    """The places of everything at one node; numbers count operands, then outputs.

    Attributes:
        once: one step of a single cell; else a sequence.
        weights: per cell the operands of ``WEIGHTS``, None for those that it does not have.
        h0, c0: operands of the initial states, None where none are given: they are 0 then.
        out: the states h of the last layer at all times; None for a single step.
        h, c: the states after the last time; c for an LSTM only.
        units: cells make so many numbers,
        width: and h has so many, fewer with a projection.
    """

    kind: str
    once: bool
    layers: int
    directions: int
    weights: tuple[tuple[int | None, ...], ...]
    h0: int | None
    c0: int | None
    out: int | None
    h: int
    c: int | None
    units: int
    width: int

    @property
    def projected(self) -> bool:
        return self.weights[0][4] is not None

    def rows(self, array: Bools, size: int) -> Bools:
        """A state's array that broadcasts, as (cells, size): true where any entry of the batch is."""
        flat = np.asarray(array.any(axis=self.over(array.ndim)))
        return np.broadcast_to(flat, (len(self.weights), size)).copy()

    def batched(self, rows: Bools, ndim: int) -> Bools:
        """The way back."""
        if self.once:
            return rows.reshape([1] * (ndim - 1) + [-1])
        return rows.reshape([rows.shape[0]] + [1] * (ndim - 2) + [-1])

    def over(self, ndim: int) -> tuple[int, ...]:
        """The axes of a state that are neither cells nor units."""
        return tuple(range(0 if self.once else 1, ndim - 1))


def bind(node: Node) -> Call:
    """Find the places, and put operands with their names into the node.

    Raises:
        SignatureError: a call that the rule cannot speak for.
    """
    module = node.module
    assert module is not None
    free = pytree.tree_leaves(_arguments(*node.args, **node.kwargs))
    if not all(hasattr(leaf, "number") for leaf in free):
        raise SignatureError("an argument is no tensor")
    kind, once = kind_of(module), isinstance(module, nn.RNNCellBase)
    lstm, names = kind == "lstm", weight_names(module)
    states = ["h0", "c0"][: len(free) - 1]
    if len(states) not in (0, 1 + lstm) or len(node.outputs) != (not once) + 1 + lstm:
        raise SignatureError(f"{len(free)} tensors go in and {len(node.outputs)} come out")
    operands: list[Value] = [node.tensors[leaf.number] for leaf in free]
    held = [name for row in names for name in row if name is not None]
    operands += [node.tensors[node.attributes[name]] for name in held]
    if not all(v.is_source for v in operands[len(free) :]):
        raise SignatureError("a weight is no parameter of the model but computed")
    node.operands, node.operand_names = tuple(operands), ("input", *states, *held)
    first = len(operands)
    at = {name: number for number, name in enumerate(node.operand_names)}
    recurrent = operands[at[names[0][1] or ""]]
    width = recurrent.shape[1]
    return Call(
        kind=kind,
        once=once,
        layers=1 if once else int(module.num_layers),  # type: ignore[arg-type]
        directions=1 if once or not module.bidirectional else 2,
        weights=tuple(tuple(None if n is None else at[n] for n in row) for row in names),
        h0=at.get("h0"),
        c0=at.get("c0"),
        out=None if once else first,
        h=first + (not once),
        c=first + (not once) + 1 if lstm else None,
        units=int(module.hidden_size),  # type: ignore[arg-type]
        width=width,
    )


def _arguments(input: Any, hx: Any = None) -> Any:
    if isinstance(input, PackedSequence):  # which else holds only the lengths and the order of the samples
        input = input.data
    return [input] if hx is None else [input, hx]


def held(module: nn.Module) -> dict[str, torch.Tensor]:
    """The weights by attribute name."""
    return {name: getattr(module, name) for row in weight_names(module) for name in row if name is not None}


def features(array: Bools, size: int) -> Bools:
    """Along the last axis, true where any entry is."""
    return np.broadcast_to(array.any(axis=tuple(range(array.ndim - 1))), (size,)).copy()


def gate_rows(units: Bools, gates: int) -> Bools:
    """The rows of a weight that belong to these units."""
    return np.tile(units, gates)


def split(values: Sequence[Bools], parts: int) -> list[Bools]:
    return list(np.split(np.asarray(values), parts))
