"""Where Python asks data of the input for a truth value (``if mask.all():``), other data may give the other answer.

There are only two, so the model is run once more with the other one, whatever the data say: that gives another graph,
and a plan that holds in all of them holds for all data. In a run the answers decide alone which calls are made, so:

1. every series of answers is tried, up to a limit (``explore``). One that ends in an error which Python code raises
   itself ends in it for all data, and asks for nothing; one that ends in a call that fails on these data is not known;
2. each way has its own facts and keep sets. What one keeps of a parameter all keep, until they agree
   (``disagreements``); what one leaves changed for the next call (``Value.next``) is known on none;
3. what they make of the model must be the same, folded constants included (``same_parts``).

Where that cannot be had, the reads count as others do: what is made or read after them stays whole (``Branch``).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from speedup.arrays import Bools, everything
from speedup.build import Parts
from speedup.differ import combine_alike
from speedup.elsewhere import Elsewhere
from speedup.errors import SpeedupError
from speedup.graph import Graph
from speedup.grow import keep_sets
from speedup.keep import KeepSets, Lock
from speedup.kinds import Kind
from speedup.known import Facts
from speedup.node import Node, Value
from speedup.regular import varied
from speedup.trace.reading import EndlessError
from speedup.vary import Inputs

_MOST = 8  # ways that come to their end
_MOST_RUNS = 40  # those that end in an error among them, of which a check in every layer makes one each

# Where an output of a call is made: its scope, module, line and op, and which output it is.
Place = tuple[str, str, str, str, int]

_WHY = "with other data, or at other sizes, Python goes another way, which keeps it"


@dataclass(eq=False)
class Way:
    """One series of answers: its graph, what is known in it, and what must stay there.

    Attributes:
        inputs: on which it is taken.
        elsewhere: the same way at other sizes of the input; None of a way that is taken at one size (``resized``).
        unlocked: the keep sets of these facts without any lock, where they are known already.
        compared: places of calls that might give other constants at other sizes, and do not; None where it does not
            matter what they give.
        fresh: calls in lines that the way of the dummy input does not run.
    """

    graph: Graph
    facts: Facts
    inputs: Inputs
    elsewhere: Elsewhere | None = None
    unlocked: KeepSets | None = None
    compared: frozenset[Place] | None = frozenset()
    fresh: Sequence[Node] = ()
    locks: list[Lock] = field(default_factory=list)

    def keep_sets(self, drop: bool) -> KeepSets:
        """What is kept with the locks that there are now."""
        known, self.unlocked = self.unlocked, None
        return known if known is not None and not self.locks else keep_sets(self.graph, self.facts, self.locks, drop)


def explore(first: Graph, run: Callable[[Sequence[bool]], Graph]) -> list[Graph] | None:
    """The graphs of all ways, the first one first; None when they cannot be known.

    Args:
        first: the graph of the way that the data take.
        run: runs the model with these answers, and with those of the data from there on.
    """
    found = [first]
    waiting = _others(first.answers or (), 0)
    runs = 1
    while waiting:
        runs += 1
        if runs > _MOST_RUNS or len(found) >= _MOST:
            return None
        answers = waiting.pop()
        try:
            graph = run(answers)
        except SpeedupError:
            raise
        except Exception as error:
            if hasattr(error, "speedup_call") or isinstance(error, EndlessError):
                return None
            continue
        found.append(graph)
        waiting += _others(graph.answers or (), len(answers))
    return found


def change_the_same(graphs: Sequence[Graph]) -> bool:
    """Let what the forward changes on one way be changed on all of them, to what is not known; whether that can be."""
    changed = {v.number for g in graphs for v in g.replaced} if len(graphs) > 1 else set()
    for graph in graphs if changed else ():
        others = [v for v in graph.values if v.number in changed and v.next is None]
        if any(number < 0 for v in others for _, number in v.uses):
            return False  # a call was claimed as if it stayed
        for value in others:
            value.next = value
        graph.lasts = False
    return True


def _others(answers: tuple[bool, ...], known: int) -> list[tuple[bool, ...]]:
    return [(*answers[:k], not answers[k]) for k in range(known, len(answers))]


def disagreements(ways: Sequence[Way], keeps: Sequence[KeepSets]) -> list[list[Lock]]:
    """Per way what it is to keep of parameters, and with them, because another way keeps it."""
    locks: list[list[Lock]] = [[] for _ in ways]
    if len(ways) == 1:
        return locks
    for values in zip(*(w.graph.sources for w in ways), strict=True):
        reading = [number for number, value in enumerate(values) if value.uses]
        if all(keeps[n].same(values[n], keeps[reading[0]], values[reading[0]]) for n in reading[1:]):
            continue
        sets = [keeps[n].sets[values[n]] for n in reading]
        wanted = np.logical_or.reduce(np.broadcast_arrays(*sets))
        for n, own in zip(reading, sets, strict=True):
            more, kept, value = locks[n], keeps[n], values[n]
            if (wanted & ~own).any():
                more += [k for k in _with(value, wanted) if not kept.holds(k)]
    return locks


def _with(source: Value, wanted: Bools) -> list[Lock]:
    """Locks that make a parameter keep these entries: its own, and those of what it is multiplied with.

    Not those of other parameters, whose ways are compared by themselves: to a bias all columns of a weight are alike,
    and all that the weight reads.
    """
    locks = [Lock(source.number, None, _WHY, wanted, Kind.DATA)]
    for node, number in source.uses:
        if node.rule is not None and not node.rule.moves and number >= 0:
            locks += _beside(node, number, wanted)
    return locks


def _beside(node: Node, number: int, wanted: Bools) -> list[Lock]:
    if node.rule is None or not node.rule.has_signature:
        others = [v for v in node.operands if v is not None and not v.is_source]
        return [Lock(v.number, None, _WHY, everything(v.ndim), Kind.DATA) for v in others]
    layout = node.layout
    named = layout.to_named(number, wanted)
    locks = []
    for k, value in enumerate(node.values):
        names = layout.names_of(k)
        if value is None or value.is_source or not names & layout.shared(number):
            continue
        if names & layout.contracted - layout.names_of(number):
            continue  # what a bias is added to says nothing of what is read
        entries = layout.from_named(k, layout.project_any(k, named))
        locks.append(Lock(value.number, None, _WHY, entries, Kind.DATA))
    return locks


# -- are two results the same? ----------------------------------------------------------------------------------------


def united(ways: Sequence[Way], keeps: Sequence[KeepSets], made: Sequence[Parts]) -> Parts | list[list[Lock]]:
    """What all ways make of the model; where they do not make the same, per way what is to be locked, if anything.

    Of what the first way does not read, its keep sets are those of another way then.
    """
    if len(ways) == 1:
        return made[0]
    called = [_called(way.graph) for way in ways]
    parts, differing = Parts(), set()
    for path in dict.fromkeys(path for each in made for path in each.modules):
        those = [each.modules.get(path) for each, paths in zip(made, called, strict=True) if path in paths]
        those = those or [each.modules[path] for each in made if path in each.modules]
        first = those[0]
        if first is None or any(other is None or not _same_module(first, other) for other in those):
            first = _right_everywhere(ways, keeps, made, path)
        if first is None:
            differing.add(path)
        else:
            parts.modules[path] = first
    if differing:
        return [_constants_into(way, kept, differing) for way, kept in zip(ways, keeps, strict=True)]
    for each in reversed(made):
        parts.tensors |= each.tensors
        parts.gained |= each.gained
    _adopt(ways, keeps)
    return parts


def _right_everywhere(
    ways: Sequence[Way], keeps: Sequence[KeepSets], made: Sequence[Parts], path: str
) -> nn.Module | None:
    """The module that one way makes, if it is right on the others too: they keep the same of what it is given, and what
    goes can be made of that, and of a constant, as on this way."""
    calls = [[n for n in way.graph.nodes if n.path == path] for way in ways]
    if any(path in _called(w.graph) and not own for w, own in zip(ways, calls, strict=True)):
        return None  # its parameters are read by others
    for number, own in enumerate(calls):
        module = made[number].modules.get(path)
        others = [k for k, its in enumerate(calls) if its and k != number]
        if module is not None and all(
            len(calls[k]) == len(own)
            and all(
                _goes_alike(ways[number], keeps[number], a, ways[k], keeps[k], b)
                for a, b in zip(own, calls[k], strict=True)
            )
            for k in others
        ):
            return module
    return None


def _goes_alike(way: Way, kept: KeepSets, node: Node, other: Way, its: KeepSets, counterpart: Node) -> bool:
    for k, (value, there) in enumerate(zip(node.values, counterpart.values, strict=True)):
        if value is None or there is None:
            if value is not there:
                return False
            continue
        mask, also = kept.sets[value], its.sets[there]
        if not np.array_equal(mask, also):
            return False
        if k < len(node.operands) and not value.is_source:
            losing = varied(mask)
            if len(losing) > 1 or not all(combine_alike(way.facts, value, other.facts, there, a) for a in losing):
                return False
    return True


def _called(graph: Graph) -> set[str]:
    """The modules that a run calls, or of which it reads a parameter or buffer."""
    return {n.path for n in graph.nodes if n.module is not None} | {
        name.rpartition(".")[0] for v in graph.sources if v.uses for name in v.names
    }


def _constants_into(way: Way, kept: KeepSets, paths: Collection[str]) -> list[Lock]:
    """Locks for the constants that some modules take up: on another way they are others."""
    locks = []
    for node in way.graph.nodes:
        owners = {name.rpartition(".")[0] for v in node.tensors if v.is_source for name in v.names}
        if node.path not in paths and owners.isdisjoint(paths):
            continue
        for value in node.operands:
            if value is not None and not value.is_source:
                lock = Lock(value.number, None, _WHY, way.facts.known_but_zero(value), Kind.DATA)
                locks += [lock] if not kept.holds(lock) else []
    return locks


def _adopt(ways: Sequence[Way], keeps: Sequence[KeepSets]) -> None:
    for first, *values in zip(*(w.graph.sources for w in ways), strict=True):
        if first.uses:
            continue
        reading = next(((k, v) for k, v in zip(keeps[1:], values, strict=True) if v.uses), None)
        if reading is not None:
            keeps[0].adopt(first, *reading)
            first.read_otherwise = True


def _same_module(a: nn.Module, b: nn.Module) -> bool:
    return type(a) is type(b) and _same(vars(a), vars(b))


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and (a.is_meta or bool(torch.equal(a, b)))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, weakref.ref):  # recurrent layers of torch hold their weights so too
        return _same(a(), b())
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, bool | int | float | str | set | frozenset) and bool(a == b)
