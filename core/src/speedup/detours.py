"""Layers that are called only where data have something for them: the experts of a mixture.

``if not chosen.any(): continue``, or a loop over the places of what is chosen: each expert is a detour, which is taken
or not. All ways through ``n`` of them would be ``2 ** n``. So the model is run as if all of it were taken, the *widest*
run, and then in ways that leave detours out: every second one, all but one, all. These say which values come in the
place of one another:

1. each call of such a run is a call of the widest one, in its order: the same op at the same place, given the same
   beside tensors;
2. where the two read different tensors, a call may get either (``Graph.instead``): what is known of one has to be known
   of both, and they keep the same;
3. so a plan for the widest run holds in each of these runs, and in those that leave out any of the detours: every call
   reads one of the tensors that it may read.

Of places of which all are there Python may be told what it likes: it is the same for all data. Where the run on the
data as they are calls every layer, and Python reads nothing else, it is the widest one itself.

Where a run makes another call, nothing is gained; and if it calls other layers too, the data decide which (``Branch``).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from speedup.build import Parts
from speedup.commit import Transaction
from speedup.errors import SpeedupError
from speedup.graph import Graph, Node, Value
from speedup.registry import Registry
from speedup.rounding import difference
from speedup.trace.run import trace
from speedup.trace.told import NONE, Every, Told, told
from speedup.verification import Inputs, run

log = logging.getLogger("speedup")

_FEW = 3  # questions of which all answers can be looked at (``speedup.ways``)
_MOST = 16  # detours in one module of which each is taken alone


class Detours:
    """The widest run of a model.

    Attributes:
        graph: the run.
        what: it was told.
    """

    def __init__(self, first: Graph, graph: Graph, what: Told) -> None:
        self.graph, self.what = graph, what
        self._first = first

    def holds(self, model: nn.Module, inputs: Inputs, parts: Parts, drop: bool) -> bool:
        """Whether the small model is right on the data as they are. The answers of the graph are those from then on.

        Args:
            drop: whether its answers may be others.
        """
        first, graph = self._first, self.graph
        transaction = Transaction(model, parts)
        transaction.apply()
        try:
            again = run(model, {"as the data are": inputs})["as the data are"]
        finally:
            transaction.undo()
        if isinstance(again, Exception):
            log.debug("with detours, the data as they are fail: %r", again)
            return False
        if not drop and difference(first.reference, again.tensors, 0.0, first.coarsest, graph.effects) is not None:
            return False
        graph.reference, graph.plain = first.reference, first.plain
        return True


def find_detours(model: nn.Module, inputs: Inputs, rules: Registry, first: Graph) -> Detours | None:
    """The widest run of a model, if others differ from it in known ways; None where ``first`` is the one to be planned.

    Of ``first`` it is noted then what other data leave out. Call it inside ``sandbox``.

    Args:
        first: the run on the data as they are.
    """
    several = len(first.answers or ()) > _FEW
    if first.seeking is None and not several:
        return None
    widest: tuple[Told, Graph] | None = None
    if first.uncalled or first.branch is not None or several:
        for answer in (True, False):
            what = Told(answer, everything=True)
            try:
                with told(what):
                    graph = trace(model, *inputs, rules, answers=(), masking=first.masking)
            except Exception as error:  # whatever code says to what it is told
                log.debug("told that all is there: %r", error)
                continue
            if graph.branch is None and (widest is None or len(graph.uncalled) < len(widest[1].uncalled)):
                widest = what, graph
            if not graph.answers:
                break
    if widest is None:
        note_detours(model, inputs, rules, first)
        return None
    what, graph = widest
    pairs, decide = _left_out(model, inputs, rules, graph, what)
    if pairs is None:
        _branch(first, decide)
        return None
    graph.instead = _by_value(pairs)
    return Detours(first, graph, what)


def note_detours(model: nn.Module, inputs: Inputs, rules: Registry, graph: Graph) -> None:
    """Note of a run, which nobody told anything but answers, what other data leave out. Call it inside ``sandbox``."""
    if graph.seeking is None:
        return
    pairs, decide = _left_out(model, inputs, rules, graph, Told())
    if pairs is None:
        _branch(graph, decide)
    else:
        graph.instead = _by_value(pairs)


def _branch(graph: Graph, decide: bool) -> None:
    seeking = graph.seeking
    if decide and seeking is not None and (graph.branch is None or seeking.node.index < graph.branch.node.index):
        graph.branch = seeking


def _left_out(
    model: nn.Module, inputs: Inputs, rules: Registry, graph: Graph, what: Told
) -> tuple[set[tuple[Value, Value]] | None, bool]:
    """What runs that leave something out say of the widest one.

    Returns:
        the values of which one comes in the place of the other, None where that is not known; and whether other layers
        are called.
    """
    pairs: set[tuple[Value, Value]] | None = set()
    decide = False
    answers = graph.answers if what == Told() else ()
    for series in _others(what, graph):
        for asked in series:
            try:
                with told(asked):
                    other = trace(model, *inputs, rules, answers=answers, masking=graph.masking, compared=graph)
            except SpeedupError:
                raise
            except Exception as error:
                if hasattr(error, "speedup_call") and NONE not in (asked.questions, asked.calls, asked.places):
                    log.debug("told %s: %r", asked, error)
                    pairs = None
                continue  # there are no such data
            decide = decide or _called(other) != _called(graph)
            more = _paired(other, graph)
            pairs = pairs | more if pairs is not None and more is not None else None
            if not more and _called(other) == _called(graph):
                break  # with nothing found the same layers are called on the same, or in ways that are not known
    return pairs, decide


def _others(what: Told, widest: Graph) -> Iterator[Iterator[Told]]:
    """What the other runs are told, in series; where the first run of a series is no other, none of it is."""
    if what != Told():
        yield iter([Told()])
    questions, calls, places = widest.extent
    if what.answer is not None:
        yield (replace(what, questions=some) for some in _some(questions))
    yield (replace(what, calls=some) for some in _some(calls))
    if what.everything:
        yield (replace(what, places=some) for some in _some(places))


def _some(count: int) -> Iterator[Every]:
    """Of so many things none, every second one, and one alone."""
    if count:
        yield NONE
    if count > 1:
        yield from (Every(2, 0), Every(2, 1))
    if count > 2:
        yield from (Every(count, k) for k in range(min(count, _MOST)))


def _called(graph: Graph) -> set[int]:
    return {v.number for v in graph.sources if v.uses}


def _by_value(pairs: Collection[tuple[Value, Value]]) -> dict[Value, tuple[Value, ...]]:
    found: dict[Value, dict[Value, None]] = {}
    for a, b in sorted(pairs, key=lambda pair: (pair[0].number, pair[1].number)):
        found.setdefault(a, {})[b] = None
        found.setdefault(b, {})[a] = None
    return {v: tuple(others) for v, others in found.items()}


def _paired(graph: Graph, widest: Graph) -> set[tuple[Value, Value]] | None:
    """Which values of the widest run come in the place of which in another one; None where it makes other calls."""
    if graph.branch is not None:
        log.debug("%s reads data of the input", graph.branch.node.label)
        return None
    held = {v.names: v for v in widest.values if v.tensor is not None}
    same = dict(zip(graph.inputs, widest.inputs, strict=True))
    same |= {v: held[v.names] for v in graph.values if v.tensor is not None and v.names in held}
    found: set[tuple[Value, Value]] = set()
    others = iter(widest.nodes)
    for node in graph.nodes:
        other = next((n for n in others if _is_same(node, n, same)), None)
        if other is None:
            log.debug("with other data it makes another call: %s (%s)", node.label, node.where)
            return None
        found |= set(_different(node.tensors, other.tensors, same))
        same.update(zip(node.outputs, other.outputs, strict=False))
        same.update((v, other.outputs[-1]) for v in node.outputs[len(other.outputs) :])
    if len(graph.outputs) != len(widest.outputs):
        return None
    ends = [(v.next, same[v].next) for v in graph.values if v in same and v.tensor is not None]
    if any((a is None) != (b is None) for a, b in ends):
        log.debug("with other data it leaves other tensors changed for the next call")
        return None
    left = [(a, b) for a, b in ends if a is not None and b is not None]
    found |= set(_different([a for a, _ in left], [b for _, b in left], same))
    return found | set(_different(graph.outputs, widest.outputs, same))


def _different(
    own: Sequence[Value], others: Sequence[Value], same: dict[Value, Value]
) -> Iterator[tuple[Value, Value]]:
    for a, b in zip(own, others, strict=True):
        if a in same and same[a] is not b:
            yield same[a], b


def _is_same(node: Node, other: Node, same: Mapping[Value, Value]) -> bool:
    """Whether two calls are one, which may read different tensors, but the same of those that the model holds."""
    if not node.repeats(other):
        return False
    pairs = [(same.get(a, a), b) for a, b in zip(node.tensors, other.tensors, strict=True)]
    return all(a is b or (a.tensor is None and b.tensor is None) for a, b in pairs)
