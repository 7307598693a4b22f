"""Calls of large weights, made for a slice of their output at a time, so that no more of a weight stands masked.

An axis that a weight and the output of a call share says that every index of the output along it is made of that index
of the weight alone. So the call can be made for some of them, and then for others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from speedup.axes import Axis, parse
from speedup.cutting import outer_first
from speedup.graph import Node
from speedup.masking import Masking
from speedup.rule import Rule


@dataclass(frozen=True, eq=False)
class Slices:
    """How a call is made in slices.

    Attributes:
        axes: the axis of each of its parameters that are cut.
        axis: that of the output, counted from the right.
        size: the length of these axes.
        step: how many indices are made at a time.
    """

    axes: Mapping[torch.Tensor, int]
    axis: int
    size: int
    step: int

    def run(self, masking: Masking, call: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What the call gives, in one tensor that lies in memory as its slices do."""
        whole: torch.Tensor | None = None
        for start in range(0, self.size, self.step):
            count = min(self.step, self.size - start)
            with masking.part(self.axes, start, count):
                part = call()
            if whole is None:
                shape = list(part.shape)
                shape[self.axis] = self.size
                whole = torch.empty_permuted(shape, outer_first(part), dtype=part.dtype, device=part.device)
            whole.narrow(self.axis, start, count).copy_(part)
        assert whole is not None
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
        signature = parse(rule.signature(node))
    except Exception:  # it is told when the call is claimed
        return None
    if len(signature.outputs) != 1 or signature.repeated:
        return None
    bound = list(zip(node.operand_names, node.operands, signature.inputs, strict=False))
    operands = {name: spec.axes for name, value, spec in bound if value is not None}
    own = {name: value.tensor for name, value, _ in bound if value is not None and value.tensor is not None}
    weight = max(own, key=lambda name: own[name].nbytes, default="")
    if not weight or not held.keys() <= own.keys() or len(set(own.values())) < len(own):
        return None
    output = signature.outputs[0].axes
    if all(_count(n, output) for axis in operands[weight] for n in axis.names):
        return None  # no product, but perhaps a view of the weight
    ones = {name for attribute, name in rule.sizes.items() if getattr(node.module, attribute, 0) == 1}
    for axis, name in _places(operands[weight], ones):
        along = [a for a, other in _places(output[::-1], ones) if other == name]
        axes = _axes_of(name, operands, ones)
        if not along or _count(name, output) > 1 or axes is None or not axes.keys() <= own.keys():
            continue
        size = own[weight].shape[axis]
        if all(own[n].shape[a] == size for n, a in axes.items()):
            step = max(2, size * masking.limit // own[weight].nbytes)  # a single one says nothing of memory formats
            return Slices({own[n]: a for n, a in axes.items()}, -1 - along[0], size, step)
    return None


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
