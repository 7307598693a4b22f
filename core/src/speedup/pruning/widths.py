"""``round_to``: which numbers of channels a layer may be left with.

* a whole number: multiples of it;
* a device: multiples of what its fast instructions take at once;
* ``"measured"``: of the widths near the one that was asked for, never a smaller one, that with which the layers of the
  group take the least time on this machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import torch

from speedup.ask import ask
from speedup.errors import InputError
from speedup.graph import Graph
from speedup.groups.result import ChannelGroups, Group
from speedup.node import Node

RoundTo: TypeAlias = "int | str | Widths"
Clock: TypeAlias = Callable[[Sequence[Callable[[], Any]]], Sequence[float]]

_VECTOR = {"AVX512": 16, "AVX2": 8}  # float32 numbers in a register
_CUDA = 8  # numbers of 16 bits that tensor cores want in a row
_NEAR = (1, 4, 8, 16, 32)


class Widths(ABC):
    """Which numbers of channels are wanted, the best first."""

    def bind(self, graph: Graph, groups: Sequence[Group]) -> None:  # noqa: B027
        """Called once, with the calls and the groups of the model; there is no need to override it."""

    @abstractmethod
    def ranked(self, left: Callable[[int], Mapping[int, int]], most: int) -> Iterator[int]:
        """How many steps are to go, the best number first, each at most ``most``.

        Args:
            left: how many channels are left, by the number of the group, after some steps.
            most: as many as were asked for.
        """


class Multiples(Widths):
    """Multiples of a number, in groups that are large enough for it."""

    def __init__(self, of: int) -> None:
        self.of = of

    def ranked(self, left: Callable[[int], Mapping[int, int]], most: int) -> Iterator[int]:
        for fewer in range(most, 0, -1):
            if all(width % self.of == 0 for width in left(fewer).values()):
                yield fewer


class Measured(Widths):
    """The fastest width near the one that was asked for, as measured on this machine.

    Tried are the width itself and the next multiples of 4, 8, 16 and 32. Each layer that makes or reads the channels
    is run alone at these widths on random numbers, in turn, every other time the other way round; its other axes have
    their original sizes. The medians of a group's layers are added. Times are noise in part, so the smallest width
    counts whose time is within ``margin`` of the least.

    Args:
        rounds: passes of each width.
        margin: the part by which a larger width has to be faster.
        clock: seconds of each of several functions; for tables in place of measurements.

    Example:
        >>> masks = speedup.prune_masks(model, x, "l1", 0.5, round_to=Measured(rounds=21))
    """

    def __init__(self, rounds: int = 9, margin: float = 0.03, clock: Clock | None = None) -> None:
        self.margin = margin
        self._clock = clock or (lambda runs: in_turn(runs, rounds))
        self._layers: list[list[_Layer]] = []
        self._known: dict[Any, float] = {}

    def bind(self, graph: Graph, groups: Sequence[Group]) -> None:
        self._known.clear()
        self._layers = [list(_layers(graph, group)) for group in groups]

    def ranked(self, left: Callable[[int], Mapping[int, int]], most: int) -> Iterator[int]:
        tried = _near(left, most)
        times = self._times([left(fewer) for fewer in tried])
        enough = min(times) * (1 + self.margin)
        chosen = next(n for n, seconds in enumerate(times) if seconds <= enough)
        yield tried[chosen]
        yield from (fewer for fewer in tried if fewer != tried[chosen])
        yield from (fewer for fewer in range(most, 0, -1) if fewer not in tried)

    def _times(self, widths: Sequence[Mapping[int, int]]) -> list[float]:
        total = [0.0] * len(widths)
        for group in widths[0]:
            for layer in self._layers[group]:
                calls = [_Resized(layer, each[group]) for each in widths]
                if any(c.key not in self._known for c in calls):
                    made = self._clock([c.run for c in calls])
                    self._known.update((c.key, s) for c, s in zip(calls, made, strict=True) if c.key not in self._known)
                for n, call in enumerate(calls):
                    total[n] += self._known[call.key]
        return total


def in_turn(runs: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """The median seconds of each function; they run in turn, there and back."""
    times: list[list[float]] = [[] for _ in runs]
    with torch.inference_mode():
        for number in range(-1, rounds):
            for n in range(len(runs))[:: 1 if number % 2 else -1]:
                start = perf_counter()
                runs[n]()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if number >= 0:
                    times[n].append(perf_counter() - start)
    return [median(t) for t in times]


def _near(left: Callable[[int], Mapping[int, int]], most: int) -> list[int]:
    """The steps that leave the width that was asked for, and those that leave the next multiples."""
    found = [most]
    for n in _NEAR[1:]:
        for fewer in range(most, -1, -1):
            if all(width % n == 0 for width in left(fewer).values()):
                found.append(fewer)
                break
    return sorted(set(found), reverse=True)


@dataclass(frozen=True)
class _Layer:
    """A contraction that makes or reads channels of a group.

    Attributes:
        k, axis: the weight and its axis on which the channels are.
        size: how many channels the group has.
        each: how many indices belong to one channel.
    """

    node: Node
    k: int
    axis: int
    size: int
    each: int


def _layers(graph: Graph, group: Group) -> Iterator[_Layer]:
    members = {m.parameter: m for m in group.members if m.axis is not None}
    for node in graph.nodes:
        if node.rule is None or not ask(node, "folds"):
            continue
        for k, value in enumerate(node.operands):
            member = next((members[n] for n in value.names if n in members), None) if value is not None else None
            if member is not None and member.axis is not None and value is not None and value.ndim > 1:
                count = int((member.channels >= 0).sum()) // max(
                    1, len(np.unique(member.channels[member.channels >= 0]))
                )
                yield _Layer(node, k, member.axis, group.size, count)


class _Resized:
    """One call with another number of channels along one axis of a weight."""

    def __init__(self, layer: _Layer, left: int) -> None:
        node, layout = layer.node, layer.node.layout
        names = (layout.operands[layer.k] or ())[layer.axis]
        sizes = dict(layout.sizes)
        width = prod(sizes[n] for n in names) - (layer.size - left) * layer.each
        # Of groups and their channels that which is many: a depthwise convolution loses groups, another channels.
        name = max(names, key=lambda n: sizes[n]) if names else ""
        rest = prod(sizes[n] for n in names if n != name)
        if names:
            sizes[name] = max(1, width // rest)
        self._node = node
        dims = [layout.operands[j] for j in range(layout.n_inputs)]
        self._shapes = {
            id(v): tuple(
                prod(sizes[n] for n in dim) if dim else full for dim, full in zip(dims[j] or (), v.shape, strict=True)
            )
            for j, v in enumerate(node.operands)
            if v is not None
        }
        rule = node.rule
        assert rule is not None
        self._changed = {
            attribute: prod(sizes[n] for n in product.split())
            for attribute, product in rule.sizes.items()
            if node.arg(attribute) is not None and all(n in sizes for n in product.split())
        }
        told = node.module.extra_repr() if node.module is not None else repr((node.args, node.kwargs))
        self.key = (node.op_name, told, tuple(self._shapes.values()), tuple(self._changed.items()))
        self._tensors: list[torch.Tensor] | None = None

    def run(self) -> Any:
        """Make the call, on random numbers."""
        if self._tensors is None:
            self._tensors = []
            like = next((v.tensor for v in self._node.tensors if v.tensor is not None), torch.empty(0))
            for value in self._node.tensors:
                shape = self._shapes.get(id(value), value.shape)
                self._tensors.append(torch.rand(shape, device=like.device).to(value.dtype))
        return self._node.run(self._tensors, **self._changed)


def widths_of(round_to: RoundTo, graph: Graph, groups: ChannelGroups) -> Widths:
    """What ``round_to`` asks for.

    Raises:
        InputError: it is no whole number from 1 on, no device with a preference, and not "measured".
    """
    if isinstance(round_to, Widths):
        round_to.bind(graph, groups.groups)
        return round_to
    if round_to == "measured":
        return widths_of(Measured(), graph, groups)
    return Multiples(preferred(round_to))


def preferred(round_to: int | str) -> int:
    """The number of channels that ``round_to`` names.

    Raises:
        InputError: as for ``widths_of``.
    """
    if isinstance(round_to, int) and not isinstance(round_to, bool) and round_to >= 1:
        return round_to
    if round_to == "cpu":
        return _VECTOR.get(torch.backends.cpu.get_cpu_capability(), 8)
    if round_to == "cuda":
        return _CUDA
    raise InputError(f"round_to={round_to!r}: it is a whole number from 1 on, 'cpu', 'cuda' or 'measured'")


def check(round_to: Any) -> None:
    """Refuse what ``round_to`` cannot be, before anything is run."""
    if not isinstance(round_to, Widths) and round_to != "measured":
        preferred(round_to)
