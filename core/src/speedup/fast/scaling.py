"""Calls that scale and shift what comes in, and contractions that take a scale and a shift into their weights.

A rule says *that* a call is output = scale * input + shift, entry for entry (``Rule.scales``). The numbers are found by
running the call on 0 and on 1. How a contraction takes them up follows from its signature:

* behind it, scale * (w x + b) + shift: the rows of w and b are scaled, and b is shifted;
* in front of it, w (scale * x + shift) + b: the columns of w are scaled, and b takes what the old w makes of the shift,
  where the call is the same at all positions (``Rule.uniform``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from speedup.arrays import Floats, compact_axes
from speedup.ask import ask
from speedup.bias import flat_output
from speedup.node import Node, Value
from speedup.pieces import contents
from speedup.response import response


@dataclass(frozen=True, eq=False)
class Scaling:
    """output = scale * input + shift; float64 arrays that broadcast to both."""

    scale: Floats
    shift: Floats

    @property
    def is_nothing(self) -> bool:
        """Whether what comes in goes out."""
        return bool((self.scale == 1).all() and (self.shift == 0).all())


def scaling_of(node: Node) -> Scaling | None:
    """What a call does to its first operand, None where it is no scaling, or its numbers cannot be told.

    Call it in eval mode.
    """
    rule = node.rule
    if rule is None or not rule.scales or node.writes or len(node.outputs) != 1 or not ask(node, "scaling"):
        return None
    first, *others = node.operands
    layout = node.layout
    if first is None or layout.operands[0] != layout.operands[layout.n_inputs]:
        return None
    arrays: list[Floats | None] = []
    for value in others:
        if value is not None and value.tensor is None:
            return None
        arrays.append(None if value is None or value.tensor is None else _numbers(contents(value)))
    nothing = np.zeros((1,) * first.ndim)
    ends = [ask(node, "evaluate", [x, *arrays]) for x in (nothing, nothing + 1)]
    if any(end is None for end in ends):
        return None
    (shift,), (scale,) = compact_axes(ends[0][0]), compact_axes(ends[1][0] - ends[0][0])
    return Scaling(scale, shift) if np.isfinite(scale).all() and np.isfinite(shift).all() else None


def behind(node: Node, by: Scaling) -> dict[str, torch.Tensor] | str:
    """The new weight and bias of a contraction that scales its own output, by operand name; or why it cannot."""
    place = _Place.of(node)
    if isinstance(place, str):
        return place
    layout, out = node.layout, node.layout.n_inputs
    scale, shift = (layout.to_named(out, a) for a in (by.scale, by.shift))
    if not _only_along(node, place.k, scale, shift):
        return "what it scales by varies along axes that the weights before it do not have"
    new = {place.weight_name: _times(place.weight, layout.from_named(place.k, scale))}
    return {**new, **place.biased(node, scale, shift)}


def in_front(node: Node, by: Scaling) -> dict[str, torch.Tensor] | str:
    """The new weight and bias of a contraction whose first operand comes without a scaling; or why it cannot."""
    place = _Place.of(node)
    if isinstance(place, str):
        return place
    layout, first = node.layout, 0
    scale, shift = (layout.to_named(first, a) for a in (by.scale, by.shift))
    if not _only_along(node, place.k, scale, shift):
        return "what it scales by varies along axes that the weights behind it do not have"
    new = {place.weight_name: _times(place.weight, layout.from_named(place.k, scale))}
    if not shift.any():
        return new
    if not ask(node, "uniform"):
        return "the call behind it pads with zeros, which the shift does not reach"
    everywhere = np.ones((1,) * len(layout.names), dtype=bool)
    added = response(node, first, place.k, shift, everywhere)
    return {**new, **place.biased(node, np.ones((1,) * len(layout.names)), added)}


@dataclass(frozen=True, eq=False)
class _Place:
    """The weight and the bias of a contraction that are its own."""

    k: int
    weight_name: str
    weight: torch.Tensor
    bias_name: str
    bias: torch.Tensor | None

    @staticmethod
    def of(node: Node) -> _Place | str:
        rule = node.rule
        if rule is None or rule.bias is None or rule.bias not in node.operand_names or not ask(node, "folds"):
            return "no layer with a weight and a bias"
        if node.module is None:
            return f"{node.label} is called as a function"
        layout, number = node.layout, node.operand_names.index(rule.bias)
        factors = [j for j in range(1, layout.n_inputs) if layout.names_of(j) & layout.contracted]
        if len(factors) != 1 or not layout.names_of(0) & layout.contracted:
            return "no layer with a weight and a bias"
        weight, bias = node.operands[factors[0]], node.operands[number]
        for value in (weight, bias):
            if value is not None and not is_alone(value):
                return f"{value.label} has other readers, or is no plain parameter"
        assert weight is not None and weight.tensor is not None
        made = layout.names_of(factors[0]) & layout.names_of(layout.n_inputs)
        if bias is not None and layout.names_of(number) != made:
            return f"{bias.label} does not vary as the weight does"
        held = None if bias is None else contents(bias)
        return _Place(factors[0], node.operand_names[factors[0]], contents(weight), rule.bias, held)

    def biased(self, node: Node, scale: Floats, shift: Floats) -> dict[str, torch.Tensor]:
        """scale * bias + shift, in named space; a bias that is new where there is none."""
        if self.bias is None and not shift.any():
            return {}
        factor, added = (torch.from_numpy(flat_output(node, a).copy()).to(self.weight.device) for a in (scale, shift))
        old = torch.zeros_like(added) if self.bias is None else self.bias.to(torch.float64).reshape(added.shape)
        new = old * factor + added
        like = self.weight if self.bias is None else self.bias
        return {self.bias_name: new.to(like.dtype).reshape(new.shape if self.bias is None else self.bias.shape)}


def _only_along(node: Node, k: int, *arrays: Floats) -> bool:
    """Whether named arrays vary only along names of operand ``k``."""
    others = node.layout.axes(set(node.layout.names) - node.layout.names_of(k))
    return all(a.shape[axis] == 1 for a in arrays for axis in others)


def is_alone(value: Value) -> bool:
    """Whether a value is a plain parameter that one call reads, under one name."""
    return value.is_of_one_call and len(value.names) == 1


def _numbers(tensor: torch.Tensor) -> Floats:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _times(weight: torch.Tensor, factor: Floats) -> torch.Tensor:
    by = torch.from_numpy(np.ascontiguousarray(factor)).to(weight.device)
    return (weight.to(torch.float64) * by).to(weight.dtype)
