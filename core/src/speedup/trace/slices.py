"""Calls of large weights, made for a slice of their output at a time, so that no more of a weight stands masked.
And for one alone of those indices that are masked as a whole, which all come out alike, from what of its input is not
0: less is computed.

An axis that a weight and the output of a call share says that every index of the output along it is made of that index
of the weight alone. So the call can be made for some of them, and then for others.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from speedup.axes import Axis, parse
from speedup.cutting import Line, laid_out_like, outer_first, take, take_into
from speedup.facts import Bools, Indices
from speedup.graph import Node
from speedup.masking import Masking
from speedup.rule import Rule

# How often each entry of a weight is read, and which part of them is to be left out, for that to take less time than to
# find out what may be.
_TIMES, _PART = 128, 8


@dataclass(frozen=True, eq=False)
class Slices:
    """How a call is made in slices.

    Attributes:
        axes: the axis of each of its parameters that are cut.
        axis: that of the output, counted from the right.
        size: the length of these axes.
        step: how many indices are made at a time.
        alike: the indices that are masked as a whole, and the others; None to make all of them.
        read: what is read of an axis of its input, and of those axes of its parameters that go with it.
    """

    axes: Mapping[torch.Tensor, int]
    axis: int
    size: int
    step: int
    alike: tuple[Indices, Indices] | None = None
    read: Mapping[torch.Tensor, Line] = field(default_factory=dict)

    def run(self, masking: Masking, call: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What the call gives, in one tensor that lies in memory as its slices do."""
        if self.alike is None:
            return self._joined(self.size, functools.partial(masking.part, self.axes), call)
        gone, kept = self.alike
        made = _one_and(gone, kept)

        def chosen(start: int, count: int) -> contextlib.AbstractContextManager[None]:
            return masking.chosen(self.axes, made[start : start + count], int(start == 0), self.read)

        places = np.zeros(self.size, np.intp)
        places[kept] = np.arange(1, len(made))
        with _cut({t: line for t, line in self.read.items() if t not in self.axes}):
            result = self._joined(len(made), chosen, call)
        return _spread(result, self.axis, places)

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


def _one_and(gone: Indices, kept: Indices) -> Indices:
    """What is made or read of an axis: the first of what goes in the small model, and what stays.

    It comes first, so that no other stands where the small model has it: a rule that is wrong to say that it makes no
    difference, or how many there are, is still found out by the check.
    """
    return np.concatenate([gone[:1], kept])


@contextlib.contextmanager
def _cut(lines: Mapping[torch.Tensor, Line]) -> Iterator[None]:
    """While this is open, tensors are some indices of theirs."""
    own = {t: t.data for t in lines}
    try:
        for tensor, (axis, indices) in lines.items():
            tensor.data = laid_out_like(tensor.data, take(tensor.data, axis, indices))
        yield
    finally:
        for tensor, data in own.items():
            tensor.data = data


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


def slices_of(node: Node, rule: Rule, masking: Masking, tensors: Sequence[torch.Tensor]) -> Slices | None:
    """How to make a call in slices that is about to be made; None where that cannot be.

    Args:
        node: the call, without outputs.
        tensors: what it is given.
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
    there = tuple([value is not None for value in node.operands])
    bound = [(name, value.tensor) for name, value in zip(node.operand_names, node.operands, strict=False) if value]
    own = {name: tensor for name, tensor in bound if tensor is not None}
    weight = max(own, key=lambda name: own[name].nbytes, default="")
    if not weight or not held.keys() <= own.keys() or len(set(own.values())) < len(own):
        return None
    ones = frozenset(name for attribute, name in rule.sizes.items() if getattr(node.module, attribute, 0) == 1)
    for along, axes in _cuts(text, node.operand_names, there, weight, ones):
        size = own[weight].shape[axes[weight]] if axes.keys() <= own.keys() else -1
        if size >= 0 and all(own[n].shape[a] == size for n, a in axes.items()):
            places = {own[n]: a for n, a in axes.items()}
            step = max(2, size * masking.limit // own[weight].nbytes)  # a single one says nothing of memory formats
            alike = masking.alike(places)
            if alike is not None:
                summed = _summed(text, node.operand_names, there, weight, ones)
                return Slices(places, along, size, step, alike, _read(node, tensors, summed, places))
            if masking.are_large(own.values()):
                return Slices(places, along, size, step)
    return None


def _read(
    node: Node, tensors: Sequence[torch.Tensor], summed: Sequence[Mapping[str, int]], own: Collection[torch.Tensor]
) -> dict[torch.Tensor, Line]:
    """What a call may read alone of one of the axes that it sums over: where its input is not 0, and one index more.

    Args:
        tensors: what it is given.
        summed: these axes, by operand.
        own: the parameters of which parts are put in.
    """
    of_value = dict(zip(node.tensors, tensors, strict=True))
    operands = {name: of_value[v] for name, v in zip(node.operand_names, node.operands, strict=False) if v is not None}
    for axes in summed:
        given = [name for name in axes if all(operands[name] is not p for p in own)]
        if len(given) != 1 or len(tensors) > len(of_value) or not _is_plain(operands[given[0]]):
            continue
        read = operands[given[0]]
        lines = {operands[name]: axis % operands[name].ndim for name, axis in axes.items()}
        if read.numel() < _TIMES * read.shape[lines[read]]:
            continue
        zero = _zero(read, lines[read])
        gone, kept = np.flatnonzero(zero), np.flatnonzero(~zero)
        # A product with what is infinite, or no number, is not 0.
        if len(gone) * _PART > len(zero) > len(gone) and all(bool(p.sum().isfinite()) for p in own):
            return {t: (axis, _one_and(gone, kept)) for t, axis in lines.items()}
    return {}


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether another tensor can stand for what is made by calls, and lie in memory as it does."""
    if type(tensor) is not torch.Tensor or tensor.layout is not torch.strided or tensor.is_inference():
        return False
    return tensor.is_floating_point() and tensor.permute(outer_first(tensor)).is_contiguous()


def _zero(tensor: torch.Tensor, axis: int) -> Bools:
    """Of which indices of an axis all entries are 0."""
    others = tuple([a for a in range(tensor.ndim) if a != axis])
    if tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64):
        return ~np.asarray(tensor.numpy().any(others))  # several times faster
    return np.asarray((tensor == 0).all(others).cpu().numpy())


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
    operands, output = _operands(text, names, there), signature.outputs[0].axes
    if all(_count(n, output) for axis in operands[weight] for n in axis.names):
        return []  # no product, but perhaps a view of the weight
    found = []
    for _, name in _places(operands[weight], ones):
        along = [a for a, other in _places(output[::-1], ones) if other == name]
        axes = _axes_of(name, operands, ones)
        if along and _count(name, output) == 1 and axes is not None:
            found.append((-1 - along[0], axes))
    return found


@functools.lru_cache(maxsize=4096)
def _summed(
    text: str, names: tuple[str, ...], there: tuple[bool, ...], weight: str, ones: frozenset[str]
) -> Sequence[Mapping[str, int]]:
    """The axes that a call with this signature sums over, each by operand; see ``_cuts``."""
    operands, output = _operands(text, names, there), parse(text).outputs[0].axes
    found = []
    for _, name in _places(operands[weight], ones):
        both: dict[str, list[int]] = {}
        for operand, axes in operands.items():
            if count := _count(name, axes):
                left = [place for place, other in _places(axes, ones) if other == name]
                right = [-1 - place for place, other in _places(axes[::-1], ones) if other == name]
                both[operand] = (left or right) if count == 1 else []
        if not _count(name, output) and len(both) > 1 and all(both.values()):
            found.append({operand: places[0] for operand, places in both.items()})
    return found


def _operands(text: str, names: Sequence[str], there: Sequence[bool]) -> dict[str, Sequence[Axis]]:
    """The axes of those operands that are there."""
    bound = zip(names, there, parse(text).inputs, strict=False)
    return {name: spec.axes for name, is_there, spec in bound if is_there}


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
