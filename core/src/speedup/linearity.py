"""Affine facts through calls that treat all indices of an axis alike.

1. *combined*: a pointwise call that is linear in some of its operands (``Rule.linear``). With the others held,
   f(o + sum over r of t[r] · u[r]) = f(o) + sum over r of (f(o + t[r]) - f(o)) · u[r], so f is run on known numbers;
2. *one by one*: any pointwise call of one operand whose unknowns are 0 or 1, at most one of them 1 (``one_hot``):
   f(o + sum over r of t[r] · u[r]) is the same sum, whatever f is;
3. *alike*: any other call, an activation say. Where indices come in alike they go out alike: each set of them has an
   unknown of its own, which one of them can carry for all. So they do where a tensor that is the same for all indices
   is joined with constants.

So a layer norm without weight keeps what it knows of its channels behind the scale and shift that another layer makes
(the modulation of diffusion transformers, FiLM), and a gate of positions what it knew of constants.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from speedup.arrays import ZERO, Bools, Floats, alike_shaped, everything, same, some
from speedup.facts import Affine, Constant, Fact, compact_affine
from speedup.node import Node, Value

if TYPE_CHECKING:
    from speedup.known import NodeFacts
    from speedup.rule import Rule

_MOST = 8  # sets of indices that are alike, each of which needs a carrier
_GOLDEN = (5**0.5 - 1) / 2


def through(rule: Rule, node: Node, facts: NodeFacts, found: Fact | None, live: Sequence[int]) -> Affine | None:
    """The affine fact about the only output, with the constants that are known of it.

    Args:
        found: the constants.
        live: the operands that are no weights.
    """
    layout = node.layout
    if layout.n_outputs != 1 or layout.contracted or rule.indices or not node.outputs[0].dtype.is_floating_point:
        return None
    known = {k: f for k in live if (f := facts.affine(k)) is not None}
    if not known and len(live) < 2:
        return None
    one_hot = len({node.operands[k] for k in known}) == 1 and all(fact.one_hot for fact in known.values())
    linear = rule.linear and all(node.operand_names[k] in rule.linear for k in known)
    combined = known and (one_hot or linear) and not layout.mixed
    made = _combined(rule, node, facts, known, one_hot) if combined else None
    made = _alike(node, facts, known) if made is None else made
    return made.with_constants(found.mask, found.value) if made is not None and isinstance(found, Constant) else made


def _combined(rule: Rule, node: Node, facts: NodeFacts, known: dict[int, Affine], one_hot: bool) -> Affine | None:
    """What comes out where every operand is constant or affine.

    Args:
        one_hot: whether at most one of the unknowns is 1 and the others are 0; else the call is linear.
    """
    layout, out = node.layout, node.layout.n_inputs
    axes = {_axis_of(node, k, fact.axis) for k, fact in known.items()}
    axis = axes.pop()
    if axes or axis is None or not all(v.is_known for v in node.others):
        return None
    masks = {k: known[k].mask if k in known else facts.mask(k) for k in layout.inputs if not facts.is_weight(k)}
    held: list[Floats | None] = [None] * layout.n_inputs
    for k in layout.inputs:
        value = known[k].offset if k in known else facts.value(k)
        held[k] = np.where(masks[k], value, 0.0) if k in masks else value
    mask = everything(node.outputs[0].ndim)
    for k, own in masks.items():
        mask = mask & layout.from_named(out, layout.to_named(k, own))
    if not mask.any():
        return None
    with np.errstate(invalid="ignore"):
        numbers, sound = _differences(_Trial(rule, node, held), known, one_hot)
    return compact_affine(axis, mask & sound, numbers, one_hot)


def _differences(trial: _Trial, known: dict[int, Affine], one_hot: bool) -> tuple[Floats, Bools]:
    """What a call gives without any unknown and per unknown, stacked; and where nothing else comes of them."""
    node = trial.node
    offset, sound = trial.run(), everything(node.outputs[0].ndim)
    terms = {v: known[k].stacked[1:] for v, k in {node.operands[k]: k for k in known}.items() if v}
    found = [trial.run_each(v, own, offset) for v, own in terms.items()]
    whole = found[0] if len(found) == 1 else np.stack(alike_shaped(offset, *(row for a in found for row in a[1:])))
    numbers = whole - offset
    numbers[0] = offset
    if one_hot:
        return numbers, sound
    # A product of two unknowns, or the square of one, is none of theirs. What the call makes of the unknowns of two
    # tensors beyond what it makes of either is a number for each pair; of a sum of all, in which no two cancel, it is 0
    # where all these numbers are.
    sums = [(v, sum(((1 + n * _GOLDEN % 1) * t for n, t in enumerate(own)), ZERO)) for v, own in terms.items()]
    for number, one in enumerate(sums):
        for other in sums[: number + 1]:
            if one is not other or node.operands.count(one[0]) > 1:
                both, first, second = trial.run(one, other), trial.run(one), trial.run(other)
                size = np.abs(both) + np.abs(first) + np.abs(second) + np.abs(offset)
                sound = sound & (np.abs(both - first - second + offset) <= 1e-12 * size)
    return numbers, sound


class _Trial:
    """A pointwise call, run on numbers that are known and on what unknowns add to them.

    Attributes:
        held: by operand the numbers without any unknown.
    """

    def __init__(self, rule: Rule, node: Node, held: Sequence[Floats | None]) -> None:
        self._rule, self.node, self._held = rule, node, held

    def run(self, *changed: tuple[Value, Floats]) -> Floats:
        """The call where these terms are added to the operands that are these tensors."""
        arrays = list(self._held)
        for value, term in changed:
            for k, before in enumerate(arrays):
                if self.node.operands[k] is value and before is not None:
                    arrays[k] = before + term
        result = self._rule.evaluate(self.node, arrays)
        if result is None:
            return np.full((1,) * self.node.outputs[0].ndim, np.nan)
        return np.asarray(result[0], np.float64)

    def run_each(self, value: Value, terms: Floats, offset: Floats) -> Floats:
        """The call as it is, and where each of the terms is added to a tensor, alone: (1 + unknowns, ...).

        All of them stand next to each other along an axis whose indices it treats alike, where there is one.

        Args:
            terms: (unknowns, ...).
            offset: the call as it is.
        """
        axis = self._free_axis(value, terms) if len(terms) > 1 else None
        if axis is not None:
            beside = np.zeros((len(terms) + 1, *terms.shape[1:]))
            beside[1:] = terms
            try:
                made = self.run((value, beside.swapaxes(0, axis[0] + 1)[0]))[None]
            except Exception:  # a rule may count on the sizes that there are
                made = offset[None]
            made = made.swapaxes(0, axis[1] + 1)
            # Where nothing is added the same comes out. Else it does not treat them alike, be it by a last digit of
            # what a kernel computes in another way at the end, which would count as a number.
            fits = made.shape == (len(beside), *offset.shape)
            if fits and same([np.where(self._reached(value, beside), offset, made)], [offset]):
                return made
        return np.stack(alike_shaped(offset, *(self.run((value, term)) for term in terms)))

    def _reached(self, value: Value, terms: Floats) -> Bools:
        """Which entries of the output hang on which terms of a tensor: (unknowns, ...)."""
        layout, out = self.node.layout, self.node.layout.n_inputs
        added, reached = terms != 0, []
        for k in layout.inputs:
            if self.node.operands[k] is value:
                named = layout.all_to_named(k, added)
                reached.append(added if k in layout.passing else np.stack([layout.from_named(out, a) for a in named]))
        return functools.reduce(np.logical_or, reached)

    def _free_axis(self, value: Value, terms: Floats) -> tuple[int, int] | None:
        """An axis, of a tensor and of the output, along which no number varies and which all operands have or lack."""
        layout, held = self.node.layout, self._held
        inputs = [(k, layout.operands[k] or (), held[k]) for k in layout.inputs]
        for axis, dim in enumerate(layout.operands[layout.n_inputs] or ()):
            of_terms = None
            for k, dims, array in inputs:
                at = dims.index(dim) if dim in dims else None
                if array is None or not (layout.names_of(k).isdisjoint(dim) if at is None else array.shape[at] == 1):
                    break
                if self.node.operands[k] is value:
                    if at is None or terms.shape[at + 1] != 1 or of_terms not in (None, at):
                        break
                    of_terms = at
            else:
                if dim and of_terms is not None:
                    return of_terms, axis
        return None


def _alike(node: Node, facts: NodeFacts, known: dict[int, Affine]) -> Affine | None:
    """What comes out where operands are the same for several indices of an axis."""
    axis = _axis(node, facts, known)
    if axis is None or node.others or node.outputs[0].shape[axis] < 2:
        return None
    layout, size = node.layout, node.outputs[0].shape[axis]
    dim = (layout.operands[layout.n_inputs] or ())[axis]
    along = {k: [a for a, names in enumerate(layout.operands[k] or ()) if names == dim] for k in layout.inputs}
    if not known and all(facts.is_weight(k) for k, at in along.items() if not at):
        return None  # constants alone give constants
    holds, rows = np.ones(size, dtype=bool), [np.zeros((size, 1))]
    for k, at in along.items():
        if not at:
            if set(dim) & layout.names_of(k):
                return None
            continue
        fact = known.get(k)
        mask, numbers = (facts.mask(k), [facts.value(k)]) if fact is None else (fact.mask, [*fact.numbers])
        for number, array in enumerate(np.broadcast_arrays(mask, *numbers)):
            lines = np.moveaxis(array, at[0], 0).reshape(array.shape[at[0]], -1)
            holds = holds & (lines.all(axis=1) if number == 0 else (lines == lines[:, :1]).all(axis=1))
            rows += [np.broadcast_to(lines[:, :1], (size, 1))] if number else []
    _, which = np.unique(np.hstack(rows)[holds], axis=0, return_inverse=True)
    sets = which.max(initial=-1) + 1
    if not 0 < sets <= min(_MOST, len(which) - 1):
        return None
    shape = [-1 if a == axis else 1 for a in range(node.outputs[0].ndim)]
    numbered = np.full(size, -1)
    numbered[holds] = which.reshape(-1)
    terms = [(numbered == number).astype(float).reshape(shape) for number in range(sets)]
    return Affine(axis, holds.reshape(shape), tuple(terms), np.zeros((1,) * len(shape)), derived=True)


def _axis(node: Node, facts: NodeFacts, known: dict[int, Affine]) -> int | None:
    """The axis of the output whose indices may be alike; None where there is none, or more than one."""
    layout = node.layout
    if known:
        axes = {_axis_of(node, k, fact.axis) for k, fact in known.items()}
        return axes.pop() if len(axes) == 1 else None
    live = [k for k in layout.inputs if not facts.is_weight(k)]
    if len(live) < 2 or not any([some(facts.mask(k)) for k in live]):
        return None
    dims = [(a, d) for a, d in enumerate(layout.operands[layout.n_inputs] or ()) if d and layout.mixed.isdisjoint(d)]
    free = {a for a, dim in dims if any(dim not in (layout.operands[k] or ()) for k in live)}
    if len(free) > 1:
        free &= {_axis_of(node, k, a) for k in live for a, s in enumerate(facts.mask(k).shape) if s > 1}
    return free.pop() if len(free) == 1 else None


def _axis_of(node: Node, k: int, axis: int) -> int | None:
    """The axis of the output that is this axis of an operand."""
    layout = node.layout
    dim = (layout.operands[k] or ())[axis]
    if not dim or not layout.mixed.isdisjoint(dim):
        return None
    axes = [a for a, other in enumerate(layout.operands[layout.n_inputs] or ()) if other == dim]
    return axes[0] if len(axes) == 1 else None
