"""Mixed blocks: channels that are shuffled and divided again, as of several layers (ShuffleNetV2) or of groups of a
convolution, for those of another one (the first ShuffleNet).

All the layers lose equally many. That is not enough: what divides the shuffled channels must find in each part of the
small tensor what stood in that part before. How many channels stay decides where each of them goes in the small model,
so the calls that move them are made once more on tensors of that size. A channel can stay in a place of the small model
if it goes the same way through the whole model as that place does through the small one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import prod
from typing import TypeAlias

import numpy as np
import torch

from speedup.arrays import Bools, Floats, everything
from speedup.graph import Graph
from speedup.groups.blocks import Blocks
from speedup.groups.labels import Grid, Labels, Numbers, varied
from speedup.movement import Movement
from speedup.node import Node, Value
from speedup.regular import is_regular, kept_shape, ragged_axis

_TRIES = 20

Way: TypeAlias = tuple[tuple[int, ...], ...]
"""The parts of tensors in which a channel stands, in the order of the calls: (call, operand or output, part)."""


class Mixing:
    """The channels of several layers that are mixed, numbered from 1 on, layer by layer.

    Attributes:
        size: how many channels each layer has.
        count: the number of layers.
    """

    def __init__(self, graph: Graph, of: Mapping[Value, Numbers], count: int, size: int) -> None:
        """
        Args:
            of: per value an array of numbers that broadcasts to it, 0 for channels of others.
        """
        self.size = size
        self.count = count
        self._of = of
        self._nodes = [n for n in graph.nodes if any(v in of for v in n.values)]
        self._ways: dict[int, list[list[Way]] | None] = {}

    def best(self, scores: Sequence[Floats], left: int) -> list[Numbers] | None:
        """Per layer the places of the channels that stay, of largest total score; None where so many cannot stay.

        Args:
            scores: per layer one number for each channel.
            left: how many of each layer stay.
        """
        whole, small = self._ways_of(self.size), self._ways_of(left) if left > 0 else None
        if whole is None or small is None:
            return None
        values = np.concatenate([[0.0], *scores])
        bonus = 1 + 2 * float(np.abs(values).sum())
        for _ in range(_TRIES):
            layers = values[1:].reshape(self.count, self.size)
            found = [_chosen(w, s, v) for w, s, v in zip(whole, small, layers, strict=True)]
            places = [f for f in found if f is not None]
            common = self._unclear(places, values, bonus / 2) if len(places) == self.count else None
            if common is None:
                return places if len(places) == self.count else None
            values[common] += bonus
        return None

    def _unclear(self, places: Sequence[Numbers], values: Floats, most: float) -> Numbers | None:
        """Channels that should stay together, as it cannot be told along which axis of a tensor the others go.

        Groups that keep as many, but none at the same index, may as well be indices that keep one group each.

        Args:
            most: channels with larger values have been named before.
        """
        kept = np.zeros(len(values), dtype=bool)
        kept[0] = True
        for j, own in enumerate(places):
            kept[1 + j * self.size + own] = True
        for value, numbers in self._of.items():
            keep, axis = kept[numbers], self._axis(value)
            if len(varied(numbers)) < 2 or (is_regular(keep) and ragged_axis(keep) in (None, axis)):
                continue
            lines = np.moveaxis(numbers, axis, 0).reshape(numbers.shape[axis], -1)
            free = np.where((values[lines] < most).all(1), values[lines].sum(1), -np.inf)
            line: Numbers = lines[int(np.argmax(free))]
            return line
        return None

    def _ways_of(self, left: int) -> list[list[Way]] | None:
        if left not in self._ways:
            self._ways[left] = self._follow(left)
        return self._ways[left]

    def _follow(self, left: int) -> list[list[Way]] | None:
        """Per layer the way of each channel where every layer has ``left``; None where a call cannot be made."""
        at: dict[Value, Numbers] = {}
        ways: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for node in self._nodes:
            if not isinstance(node.rule, Movement):
                if not self._copy(node, left, at):
                    return None
                for k, value in enumerate(node.values):
                    if value is not None and value in at:
                        divided = self._divided(node, k, value, at[value])
                        if divided is None:
                            return None
                        for group, inside in enumerate(divided):
                            for number in np.unique(inside[inside > 0]).tolist():
                                ways[number].append((node.index, k, group))
                continue
            if not self._move(node, node.rule, left, at):
                return None
            for k, value in enumerate(node.values):
                if value in at:
                    for part, inside in _parts(node, node.rule, k, at[value], self._axis(value)):
                        for number in np.unique(inside[inside > 0]).tolist():
                            ways[number].append((node.index, k, *part))
        return [[tuple(ways[1 + j * self.size + i]) for i in range(left)] for j in range(self.count)]

    def _copy(self, node: Node, left: int, at: dict[Value, Numbers]) -> bool:
        """A call that moves nothing gives channels of its own, or those that it reads as they stand."""
        if node.rule is None or any(v is not None and v.is_source and len(v.uses) > 1 for v in node.operands):
            return False  # a weight that several calls read stands in one order
        read = [v for v in node.operands if v in at]
        for value in node.outputs:
            if value not in self._of:
                continue
            line = self._of[value].squeeze()
            same = [v for v in read if v is not None and np.array_equal(self._of[v].squeeze(), line)]
            alike = [at[v].reshape([at[v].shape[a] for a in varied(self._of[v])]) for v in same]
            first = int(line.flat[0])
            if alike:
                made = alike[0]
            elif first % self.size == 1 % self.size and np.array_equal(line, np.arange(first, first + self.size)):
                made = line[:left]
            else:
                return False
            if any(not np.array_equal(made, other) for other in alike):
                return False
            sizes = iter(made.shape)
            at[value] = made.reshape([next(sizes) if s > 1 else 1 for s in self._of[value].shape])
        return True

    def _divided(self, node: Node, k: int, value: Value, at: Numbers) -> list[Numbers] | None:
        """The parts of what a call reads or makes, of which each keeps as many: the groups of a convolution; none
        where it is one. None where it cannot be divided so."""
        several = [a for a in varied(self._of[value]) if _several(node, (node.layout.operands[k] or ())[a])]
        if not several:
            return []
        (axis, *others), sizes = several, node.layout.sizes
        names = (node.layout.operands[k] or ())[axis]
        count = prod(sizes[n] for n in names[:-1])
        if others or at.shape[axis] % count or names[-1] in node.layout.mixed:
            return None
        return np.array_split(at, count, axis)

    def _move(self, node: Node, rule: Movement, left: int, at: dict[Value, Numbers]) -> bool:
        """A call that moves channels is made on tensors of the smaller sizes."""
        kept: list[Bools] = []
        for value in node.values:
            assert value is not None
            keep = self._spread(value, Fraction(left, self.size))
            if keep is None:
                return False
            kept.append(keep)
        tensors = []
        for value, keep in zip(node.operands, kept, strict=False):
            assert value is not None
            numbers = torch.from_numpy(at[value]) if value in at else torch.zeros((1,) * value.ndim)
            tensors.append(numbers.double().expand(kept_shape(keep, value.shape)))
        made = None if rule.fills else rule.moved(node, tensors, kept)
        if made is None:
            return False
        for value, tensor, keep in zip(node.outputs, made, kept[len(node.operands) :], strict=True):
            if tuple(tensor.shape) != kept_shape(keep, value.shape):
                return False
            if value in self._of:
                for axis, size in enumerate(self._of[value].shape):
                    tensor = tensor.narrow(axis, 0, 1) if size == 1 else tensor
                at[value] = tensor.numpy().astype(np.int64)
        return True

    def _axis(self, value: Value) -> int:
        """The axis along which fewer channels stay: the longest."""
        shape = self._of[value].shape
        return max(range(len(shape)), key=lambda a: (shape[a], a))

    def _spread(self, value: Value, share: Fraction) -> Bools | None:
        """A share of the channels, evenly spread, and all of others: for their counts. None if that is no number."""
        if value not in self._of:
            return everything(value.ndim)
        numbers, axis = self._of[value], self._axis(value)
        inside = np.moveaxis(numbers > 0, axis, 0).reshape(numbers.shape[axis], -1)
        count = int(inside[:, 0].sum()) * share
        if (inside != inside[:, :1]).any() or count.denominator != 1:
            return None
        ranks = np.cumsum(inside[:, 0]) * share.numerator // share.denominator
        keep = (np.diff(ranks, prepend=0) > 0) | ~inside[:, 0]
        return keep.reshape([-1 if a == axis else 1 for a in range(numbers.ndim)])


def mixings(graph: Graph, labels: Labels, classes: Numbers, usable: Bools) -> list[tuple[Mixing, list[Numbers]]]:
    """The mixed channels of a model, each with its blocks: per layer the classes of its channels.

    Where grids disagree about blocks, but all that is in them comes of layers with equally many channels, these layers
    are the blocks.

    Args:
        usable: per class whether it is a channel that can go.
    """
    grids = [g for g in labels.grids if usable[classes[g.numbers]].all()]
    probe = Blocks(labels, classes)
    odd = [members for members in _connected(grids, classes) if not probe.fits(members)]
    if not odd:
        return []
    made: dict[tuple[int, ...], Numbers] = {}
    for own in (classes[numbers].ravel() for numbers in labels.made):
        key = tuple(np.sort(own).tolist())
        if key not in made or (np.diff(own) > 0).all():  # a depthwise convolution has them in another order
            made[key] = own
    others = [classes[g.numbers] for g in labels.grids if not usable[classes[g.numbers]].all()]
    shares = [(classes[line], classes[contained]) for line, contained in labels.shares]
    others += [numbers for pair in shares if usable[pair[0]].any() for numbers in pair]
    bound = np.unique(np.concatenate([np.zeros(1, np.int64), *(numbers.ravel() for numbers in others)]))
    found = []
    for members in odd:
        inside = np.unique(np.concatenate([classes[g.numbers].ravel() for g in members]))
        blocks = [m for m in made.values() if np.isin(m, inside).any()]
        alike = len({len(m) for m in blocks}) == 1 and all((np.diff(m) > 0).all() for m in blocks)
        if not alike or np.isin(inside, bound).any() or not np.array_equal(np.sort(np.concatenate(blocks)), inside):
            continue
        number = np.zeros(len(classes), dtype=np.int64)
        number[np.concatenate(blocks)] = np.arange(1, len(inside) + 1)
        of: dict[Value, Numbers] = {}
        for value in graph.values:
            if not value.is_source and labels.has(value):
                numbers = number[classes[labels.arrays(value)[0]]]
                if numbers.any():
                    of[value] = numbers
        mixing = Mixing(graph, of, len(blocks), len(blocks[0]))
        if mixing.best([np.zeros(mixing.size)] * mixing.count, mixing.size) is not None:
            found.append((mixing, blocks))
    return found


def _connected(grids: Sequence[Grid], classes: Numbers) -> list[list[Grid]]:
    """Grids that have channels in common, directly or through others."""
    sets: dict[int, list[Grid]] = {}
    set_of: dict[int, int] = {}  # by class
    inside: dict[int, list[int]] = {}
    for number, grid in enumerate(grids):
        own = np.unique(classes[grid.numbers]).tolist()
        joined = {set_of[c] for c in own if c in set_of}
        sets[number] = [g for other in sorted(joined) for g in sets.pop(other)] + [grid]
        inside[number] = own + [c for other in joined for c in inside.pop(other)]
        set_of.update(dict.fromkeys(inside[number], number))
    return list(sets.values())


def _several(node: Node, dim: Sequence[str]) -> bool:
    """Whether an axis is made of several."""
    return sum(node.layout.sizes[n] > 1 for n in dim) > 1


def _parts(node: Node, rule: Movement, k: int, at: Numbers, axis: int) -> Iterator[tuple[tuple[int, ...], Numbers]]:
    """The parts of an operand or output that stay apart in the small tensor."""
    lines = np.moveaxis(at, axis, -1)
    for place in np.ndindex(lines.shape[:-1]):
        yield place, lines[place]
    divided = rule.parts(node).get(k)
    if divided is not None and at.shape[divided[0]] > 1:
        for number, part in enumerate(np.array_split(at, divided[1], divided[0])):
            yield (-1, number), part


def _chosen(whole: Sequence[Way], small: Sequence[Way], scores: Floats) -> Numbers | None:
    """The places of a subsequence of ``whole`` that is ``small``, of largest total score; None where there is none."""
    kinds = {way: number for number, way in enumerate(dict.fromkeys([*whole, *small]))}
    given = np.array([kinds[w] for w in whole])
    best = np.zeros(len(whole) + 1)  # of what has been taken so far, in front of each place
    taken = []
    for way in small:
        here = np.where(given == kinds[way], best[:-1] + scores, -np.inf)
        taken.append(here)
        best = np.maximum.accumulate(np.concatenate([[-np.inf], here]))
    if best[-1] == -np.inf:
        return None
    places = [len(whole)]
    for here in reversed(taken):
        places.append(int(np.argmax(here[: places[-1]])))
    return np.array(places[:0:-1], dtype=np.int64)
