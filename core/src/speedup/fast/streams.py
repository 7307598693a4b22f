"""The channels that calls share: where they come from, and who reads them.

Calls that only move entries, or add tensors up, hand channels on: what is true of a channel of one tensor is true of
that channel of the others. Such a set of tensors is a *stream*, as that of the residual blocks of a transformer. What
makes it are contractions, embeddings and parameters; what reads it is anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import TypeAlias

import numpy as np

from speedup.arrays import Indices
from speedup.ask import ask
from speedup.errors import SignatureError
from speedup.fast.scaling import is_alone
from speedup.movement import Movement
from speedup.node import Node, Value

_Found: TypeAlias = tuple[Value, int, tuple[Value, ...]]  # with the axis of its channels, and its factors


class Unfit(Exception):
    """Why something cannot be done, for the user."""


@dataclass(eq=False)
class Stream:
    """Tensors that share their channels.

    Attributes:
        axes: that of the channels, by tensor.
        factors: parameters of one number per channel that a tensor is multiplied with, on its way to the others.
        makers: parameters and buffers that its channels come from, each with the axis that makes the channels, and with
            the ``factors`` of what it makes.
        readers: other calls that read it, with the number of the operand.
    """

    axes: dict[Value, int] = field(default_factory=dict)
    factors: dict[Value, tuple[Value, ...]] = field(default_factory=dict)
    makers: dict[Value, tuple[int, tuple[Value, ...]]] = field(default_factory=dict)
    readers: list[tuple[Node, int]] = field(default_factory=list)

    @staticmethod
    def of(value: Value, axis: int) -> Stream:
        """The stream that a tensor is of, backwards and forwards.

        Raises:
            Unfit: not all of it can be followed.
        """
        return _follow(value, axis, backwards=True)

    @staticmethod
    def behind(value: Value, axis: int) -> Stream:
        """What is made of a tensor alone; no makers.

        Raises:
            Unfit: as ``of``.
        """
        return _follow(value, axis, backwards=False)


def _follow(value: Value, axis: int, backwards: bool) -> Stream:
    stream = Stream()
    todo: list[_Found] = [(value, axis, ())]
    while todo:
        value, axis, factors = todo.pop()
        if value in stream.axes:
            if (stream.axes[value], stream.factors[value]) != (axis, factors):
                raise Unfit(f"the channels of {value.label} are those of others in two ways")
            continue
        stream.axes[value], stream.factors[value] = axis, factors
        if value.is_output:
            raise Unfit("it is an output of the model, or becomes one")
        if value.next is not None or value.read_otherwise:
            raise Unfit(f"a call writes into {value.label}")
        if backwards:
            todo += _sources(value, axis, factors, stream)
        for node, number in value.uses:
            onward = list(_onward(node, number, axis))
            if not onward and factors:
                if _multiplies(node, stream):
                    continue
                raise Unfit(f"{_told(node)} reads what goes into it too, before it is multiplied")
            if not onward:
                stream.readers.append((node, number))
            todo += [(out, a, factors) for out, a in onward]
            if not backwards and any(len(_handed(node, node.outputs.index(out), a)) > 1 for out, a in onward):
                raise Unfit(f"{_told(node)} joins it with other tensors")
    return stream


def _multiplies(node: Node, stream: Stream) -> bool:
    """Whether a call makes a tensor of a stream of another one, by a factor."""
    out = node.outputs[0] if node.outputs else None
    return out in stream.axes and _scaled(node, stream.axes[out]) is not None


def _told(node: Node) -> str:
    return f"{node.op_name} ({node.where})"


def _sources(value: Value, axis: int, factors: tuple[Value, ...], stream: Stream) -> list[_Found]:
    """What a tensor of a stream has its channels from: other tensors of it; makers are noted."""
    if value.is_source:
        stream.makers[alone(value)] = axis, factors
        return []
    node = value.producer
    if node is None or node.rule is None or node.writes:
        raise Unfit("what makes its channels is not known")
    handed = _handed(node, node.outputs.index(value), axis)
    if handed:
        return [(operand, a, factors) for k, a in handed.items() if (operand := node.operands[k]) is not None]
    scaled = _scaled(node, axis)
    if scaled is not None:
        operand, a, factor = scaled
        return [(operand, a, (*factors, alone(factor)))]
    for maker, a in _made_by(node, axis):
        stream.makers[alone(maker)] = a, factors
    return []


def alone(value: Value) -> Value:
    """A parameter or buffer that one call alone reads, under one name.

    Raises:
        Unfit: it is none.
    """
    if not is_alone(value) or not value.dtype.is_floating_point:
        raise Unfit(f"{value.label} has other readers, or is no plain parameter")
    return value


def _made_by(node: Node, axis: int) -> list[tuple[Value, int]]:
    """The parameters of a call that alone make the channels of its only output: a weight and what is added, a table."""
    no_maker = Unfit(f"{_told(node)}, which makes its channels, is no layer with a weight of its own")
    try:
        layout = node.layout
    except SignatureError:
        raise no_maker from None
    name = name_of(node, layout.n_inputs, axis) if layout.n_outputs == 1 else None
    if name is None or node.rule is None:
        raise no_maker
    found, rest = {}, layout.names_of(layout.n_inputs) - {name}
    for k in layout.inputs:
        value = node.operands[k]
        assert value is not None
        if name in layout.names_of(k):
            axes = [a for a in range(value.ndim) if name_of(node, k, a) == name]
            if len(axes) != 1 or not value.is_source:
                raise no_maker
            found[k] = value, axes[0]
        elif layout.contracted:
            if k not in layout.factors:
                raise no_maker
        # A row of a table for each whole number.
        elif value.dtype.is_floating_point or not rest <= layout.names_of(k):
            raise no_maker
    factors = found.keys() & set(layout.factors)
    if not ((len(factors), len(layout.factors)) == (1, 2) if layout.contracted else node.rule.indices):
        raise no_maker  # it need not be linear in them
    return list(found.values())


def name_of(node: Node, k: int, axis: int) -> str | None:
    """The only name behind an axis of an operand that counts more than one index."""
    layout = node.layout
    names = [n for n in (layout.operands[k] or ())[axis] if layout.sizes[n] > 1]
    return names[0] if len(names) == 1 and names[0] not in layout.mixed else None


def _onward(node: Node, number: int, axis: int) -> Iterator[tuple[Value, int]]:
    """The outputs of a call that hands the channels of an operand on, with their axes; nothing where it does not."""
    if node.rule is None or node.writes:
        return
    operand = node.operands[number] if number < len(node.operands) else None
    size = operand.shape[axis] if operand is not None else None
    for out, value in enumerate(node.outputs):
        for a, own in enumerate(value.shape):
            if own == size and _handed(node, out, a).get(number) == axis:
                yield value, a
                break


def _handed(node: Node, number: int, axis: int) -> dict[int, int]:
    """By operand the axis whose indices are those of an axis of an output; empty where not all operands are such."""
    find = partial(_find_handed, node, number, axis)
    found: dict[int, int] = node.once(f"handed to axis {axis} of output {number}", find)
    return found


def _find_handed(node: Node, number: int, axis: int) -> dict[int, int]:
    return _moved(node, number, axis) or _summed(node, axis) or _averaged(node, axis)


def _moved(node: Node, number: int, axis: int) -> dict[int, int]:
    """As ``_handed``, of a call that only moves entries."""
    rule, value = node.rule, node.outputs[number]
    if not isinstance(rule, Movement) or rule.fills or value.shape[axis] < 2:
        return {}
    found = {}
    wanted = _line(value.ndim, axis, value.shape[axis])
    for k, operand in enumerate(node.operands):
        if operand is None:
            continue
        for a in (a for a, size in enumerate(operand.shape) if size == value.shape[axis]):
            arrays = [np.full((1,) * v.ndim, -1) for v in node.operands if v is not None]
            arrays[k] = _line(operand.ndim, a, value.shape[axis])
            out = rule.gather(node, arrays, -2)[number]
            if ((out == wanted) | (out == -1)).all() and (out == wanted).any():
                found[k] = a
                break
        else:
            return {}
    return found


def _line(ndim: int, axis: int, size: int) -> Indices:
    return np.arange(size).reshape([-1 if a == axis else 1 for a in range(ndim)])


def _averaged(node: Node, axis: int) -> dict[int, int]:
    """As ``_handed``, of a call that takes means over positions, or chooses some of them."""
    if node.rule is None or len(node.outputs) != 1 or not ask(node, "averaging"):
        return {}
    layout = node.layout
    name = name_of(node, layout.n_inputs, axis)
    found = {k: a for k in layout.inputs for a in range(layout.ndim(k)) if name and name_of(node, k, a) == name}
    return found if found.keys() == {0} and name not in layout.contracted else {}


def _summed(node: Node, axis: int) -> dict[int, int]:
    """As ``_handed``, of a call that adds its operands up."""
    axes = _linear(node, axis)
    if not axes or None in axes.values() or any(_on_ones(node, {k}) != 1 for k in axes):
        return {}
    return {k: a for k, a in axes.items() if a is not None} if _on_ones(node, set()) == 0 else {}


def _scaled(node: Node, axis: int) -> tuple[Value, int, Value] | None:
    """What a call multiplies with one number per channel, the axis of its channels, and these numbers, a parameter."""
    axes = _linear(node, axis)
    if len(axes) != 2 or None in axes.values() or _on_ones(node, {0, 1}) != 1:
        return None
    if any(_on_ones(node, ones) != 0 for ones in ({0}, {1}, set[int]())):
        return None
    for k, other in ((0, 1), (1, 0)):
        value, factor = node.operands[k], node.operands[other]
        assert value is not None and factor is not None
        a = axes[k]
        if a is not None and factor.is_source and not value.is_source and max(factor.shape) == prod(factor.shape):
            return value, a, factor
    return None


def _linear(node: Node, axis: int) -> dict[int, int | None]:
    """Of a call that is linear in each of its operands, by operand the axis that is this one of the output."""
    rule = node.rule
    if rule is None or not rule.linear or len(node.outputs) != 1 or not set(node.operand_names) <= set(rule.linear):
        return {}
    layout = node.layout
    dim = (layout.operands[layout.n_inputs] or ())[axis]
    found: dict[int, int | None] = {}
    for k in layout.inputs:
        axes = [a for a, own in enumerate(layout.operands[k] or ()) if own == dim]
        found[k] = axes[0] if len(axes) == 1 and dim and layout.mixed.isdisjoint(dim) else None
    return found


def _on_ones(node: Node, ones: set[int]) -> float | None:
    """What a pointwise call makes of operands that are 1 or 0; None where it is not one number."""
    arrays = [None if v is None else np.full((1,) * v.ndim, float(k in ones)) for k, v in enumerate(node.operands)]
    made = ask(node, "evaluate", arrays)
    numbers = [] if made is None else np.unique(made[0]).tolist()
    return numbers[0] if len(numbers) == 1 else None
