"""Calls of large weights, made for a slice of their output at a time, so that no more of a weight stands masked.
And for one alone of those indices that are masked as a whole, which all come out alike: less is computed.

An axis that a weight and the output of a call share says that every index of the output along it is made of that index
of the weight alone. So the call can be made for some of them, and then for others.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from speedup.arrays import Indices
from speedup.axes import Axis, parse
from speedup.cutting import outer_first, take_into
from speedup.masking import Masking
from speedup.node import Node
from speedup.rule import Rule


@dataclass(frozen=True, eq=False)
class Slices:
    """How a call is made in slices.

    Attributes:
        axes: the axis of each of its parameters that are cut.
        axis: that of the output, counted from the right.
        size: the length of these axes.
        step: how many indices are made at a time.
        alike: the indices that are masked as a whole, and the others; None to make all of them.
    """

    axes: Mapping[torch.Tensor, int]
    axis: int
    size: int
    step: int
    alike: tuple[Indices, Indices] | None = None

    def run(self, masking: Masking, call: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What the call gives, in one tensor that lies in memory as its slices do."""
        if self.alike is None:
            return self._joined(self.size, functools.partial(masking.part, self.axes), call)
        gone, kept = self.alike
        # It comes first, so that no other stands where the small model has it: a rule that is wrong to say that it
        # does not matter, or how many there are, is still found out by the check.
        made = np.concatenate([gone[:1], kept])

        def chosen(start: int, count: int) -> contextlib.AbstractContextManager[None]:
            return masking.chosen(self.axes, made[start : start + count], int(start == 0))

        places = np.zeros(self.size, np.intp)
        places[kept] = np.arange(1, len(made))
        return _spread(self._joined(len(made), chosen, call), self.axis, places)

    def _joined(
        self,
        size: int,
        part_of: Callable[[int, int], contextlib.AbstractContextManager[None]],
        call: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """What the call gives for so many indices, some at a time."""
        whole: torch.Tensor | None = None
        for start in range(0, size, self.step):
            count = min(self.step, size - start)
            with part_of(start, count):
                part = call()
            if count == size:
                return part
            if whole is None:
                whole = _like(part, self.axis, size)
            whole.narrow(self.axis, start, count).copy_(part)
        assert whole is not None
        return whole


def _like(tensor: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """Room for a tensor of another size along an axis, which lies in memory as this one."""
    shape = list(tensor.shape)
    shape[axis] = size
    return torch.empty_permuted(shape, outer_first(tensor), dtype=tensor.dtype, device=tensor.device)


def _spread(tensor: torch.Tensor, axis: int, places: Indices) -> torch.Tensor:
    """The indices of an axis that stand at these places."""
    whole = _like(tensor, axis, len(places))
    order = outer_first(tensor)
    outer, along = tensor.permute(order), order.index(tensor.ndim + axis)
    take_into(whole.permute(order), outer, along, places)
    return whole


def slices_of(node: Node, rule: Rule, masking: Masking) -> Slices | None:
    """How to make a call in slices that is about to be made; None where that cannot be.

    Args:
        node: the call, without outputs.
    """
    held = {} if node.module is None else {n: p for n, p in node.module._parameters.items() if p is not None}
    if any(n not in node.attributes or node.tensors[node.attributes[n]].tensor is not p for n, p in held.items()):
        return None
    try:
        rule.bind(node)
        text = rule.signature(node)
        parse(text)
    except Exception:  # it is told when the call is claimed
        return None
    there = [value is not None for value in node.operands]
    bound = [(name, value.tensor) for name, value in zip(node.operand_names, node.operands, strict=False) if value]
    own = {name: tensor for name, tensor in bound if tensor is not None}
    weight = max(own, key=lambda name: own[name].nbytes, default="")
    if not weight or not held.keys() <= own.keys() or len(set(own.values())) < len(own):
        return None
    ones = frozenset(name for attribute, name in rule.sizes.items() if getattr(node.module, attribute, 0) == 1)
    for along, axes in _cuts(text, node.operand_names, tuple(there), weight, ones):
        size = own[weight].shape[axes[weight]] if axes.keys() <= own.keys() else -1
        if size >= 0 and all(own[n].shape[a] == size for n, a in axes.items()):
            places = {own[n]: a for n, a in axes.items()}
            step = max(2, size * masking.limit // own[weight].nbytes)  # a single one says nothing of memory formats
            alike = masking.alike(places)
            if alike is not None or masking.are_large(own.values()):
                return Slices(places, along, size, step, alike)
    return None


@functools.lru_cache(maxsize=4096)
def _cuts(
    text: str, names: tuple[str, ...], there: tuple[bool, ...], weight: str, ones: frozenset[str]
) -> Sequence[tuple[int, Mapping[str, int]]]:
    """Along which axes of its output a call with this signature can be cut, and which axes of its operands these are.

    Args:
        names: of the operands.
        there: which of them are.
        weight: the one that it is cut for.
        ones: names of size 1.
    """
    signature = parse(text)
    if len(signature.outputs) != 1 or signature.repeated:
        return []
    bound = zip(names, there, signature.inputs, strict=False)
    operands = {name: spec.axes for name, is_there, spec in bound if is_there}
    output = signature.outputs[0].axes
    if all(_count(n, output) for axis in operands[weight] for n in axis.names):
        return []  # no product, but perhaps a view of the weight
    found = []
    for _, name in _places(operands[weight], ones):
        along = [a for a, other in _places(output[::-1], ones) if other == name]
        axes = _axes_of(name, operands, ones)
        if along and _count(name, output) == 1 and axes is not None:
            found.append((-1 - along[0], axes))
    return found


def _places(axes: Sequence[Axis], ones: Collection[str]) -> Iterator[tuple[int, str]]:
    """The axes that are one name each, with their positions, as far as these are the same for all numbers of axes.

    Args:
        ones: names of size 1.
    """
    place = 0
    for axis in axes:
        if axis.variadic:
            return
        names = [n for n in axis.names if n not in ones]
        if len(names) == 1 and not names[0].startswith("~"):
            yield place, names[0]
        place += 1 if axis.mixed is None else axis.mixed


def _axes_of(name: str, operands: Mapping[str, Sequence[Axis]], ones: Collection[str]) -> dict[str, int] | None:
    """By operand that has the name, which of its axes this is; None where it is not an axis of its own."""
    found: dict[str, int] = {}
    for operand, axes in operands.items():
        if count := _count(name, axes):
            places = [place for place, other in _places(axes, ones) if other == name]
            if not len(places) == count == 1:
                return None
            found[operand] = places[0]
    return found


def _count(name: str, axes: Sequence[Axis]) -> int:
    return sum(axis.names.count(name) + axis.names.count(f"~{name}") for axis in axes)
