"""Layers that are called only where data have something for them: the experts of a mixture.

``if not chosen.any(): continue``, or a loop over the places of what is chosen: each expert is a detour, which is taken
or not. All ways through ``n`` of them would be ``2 ** n``. So the model is run as if all of it were taken, the *widest*
run, and then in ways that leave detours out: every second one, all but one, all; those of every module, and those of
some modules. These say which values come in the place of one another:

1. the calls of such a run are calls of the widest one, in its order: the same op at the same place, given the same
   beside tensors;
2. where the two read different tensors, a call may get either (``Graph.instead``), and so with what comes in the place
   of either: what is known of one has to be known of all, and they keep the same;
3. a call that the widest run does not make gives what is not known: what it reads, and what is read elsewhere in the
   place of what it gives, stays whole (``Graph.loose``);
4. so a plan for the widest run holds in each of these runs, and in those that leave out any of the detours: every call
   reads one of the tensors that it may read.

What a mask chooses (``x[mask]``) are places too, where Python asks how many there are (``Rule.seek``).

Of places of which all are there Python may be told what it likes: it is the same for all data. Where the run on the
data as they are calls every layer, and Python reads nothing else, it is the widest one itself.

Where such a run fails, the data decide what is called (``Branch``). Where it hands other data to Python, what lives
then, or is read or made behind that place, stays whole.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from speedup.errors import SpeedupError
from speedup.graph import Graph
from speedup.node import Node, Value
from speedup.registry import Registry
from speedup.repeats import repeats
from speedup.trace.reading import EndlessError
from speedup.trace.run import trace
from speedup.trace.told import ALL, NONE, SOME, Asked, Every, Told, few, told
from speedup.verification import Inputs
from speedup.wider import Wider, given_values

log = logging.getLogger("speedup")

_FEW = 3  # questions of which all answers can be looked at (``speedup.ways``)
_MOST = 16  # detours in one module, or modules with detours, of which each is taken alone


class Detours(Wider):
    """The widest run of a model.

    Attributes:
        what: it was told.
    """

    label = "all that data may leave out"

    def __init__(self, first: Graph, graph: Graph, what: Told) -> None:
        super().__init__(first, graph)
        self.what = what

    def entered(self) -> contextlib.AbstractContextManager[Any]:
        return told(self.what)


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
    # What else Python reads of the data, it reads too when it is told that all is there.
    if (first.uncalled or first.branch is not None or several) and not first.extent.reads:
        for answer in (True, False):
            what = Told(answer, everything=True, masks=first.extent.masks)
            try:
                with told(what):
                    graph = trace(model, *inputs, rules, answers=(), masking=first.masking)
                if graph.extent.masks and not what.masks:
                    what = replace(what, masks=True)
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
    first.standing = None  # these runs are told what is there before they look
    what, graph = widest
    others = _left_out(model, inputs, rules, graph, what)
    if others is None:
        _branch(first)
        return None
    others.note(graph)
    return Detours(first, graph, what)


def note_detours(model: nn.Module, inputs: Inputs, rules: Registry, graph: Graph) -> None:
    """Note of a run, which nobody told anything but answers, what other data leave out. Call it inside ``sandbox``."""
    if graph.seeking is None:
        return
    others = _left_out(model, inputs, rules, graph, Told(masks=graph.extent.masks))
    graph.standing = None
    if others is None:
        _branch(graph)
    else:
        others.note(graph)


def _branch(graph: Graph) -> None:
    seeking = graph.seeking
    if seeking is not None and (graph.branch is None or seeking.node.index < graph.branch.node.index):
        graph.branch = seeking


@dataclass
class _Others:
    """What other runs say of values of the widest one.

    Attributes:
        pairs: of which one comes in the place of the other.
        loose: see ``Graph``.
        as_many: whether all runs return as many tensors.
    """

    pairs: set[tuple[Value, Value]] = field(default_factory=set)
    loose: set[Value] = field(default_factory=set)
    as_many: bool = True

    @property
    def is_none(self) -> bool:
        return not self.pairs and not self.loose

    @property
    def crosses(self) -> bool:
        """Whether what one module leaves out may change what another one reads."""
        scopes = (tuple(v.producer.scope if v.producer is not None else "" for v in pair) for pair in self.pairs)
        return bool(self.loose) or any(a != b for a, b in scopes)

    def note(self, graph: Graph) -> None:
        """Note it in the graph of the widest run."""
        graph.instead, graph.loose = _classes(self.pairs), frozenset(self.loose)
        graph.few_will_do = self.as_many


def _left_out(model: nn.Module, inputs: Inputs, rules: Registry, graph: Graph, what: Told) -> _Others | None:
    """What runs that leave something out say of the widest one; None where that is not known."""
    found = _Others()
    answers = () if what.everything else graph.answers
    made: list[tuple[Told, Mapping[Asked, bool]]] = []
    run = partial(trace, model, *inputs, rules, answers=answers, masking=graph.masking, compared=graph)
    for series in _others(what, graph):
        for asked in series:
            if asked.modules is not None and not found.crosses:
                break
            if any(_says_the_same(a, other, said) for other, said in made for a in (asked, few(asked))):
                continue
            try:
                heard, other = _told_little(asked, partial(_taken_up, graph, run))
            except SpeedupError:
                raise
            except Exception as error:
                failed = hasattr(error, "speedup_call") and not _is_none(asked)
                failed = failed or isinstance(error, EndlessError)
                if graph.extent.found == 0 if asked.least else failed:  # where all find some, more is no other way
                    log.debug("told %s: %r", asked, error)
                    return None
                continue  # there are no such data
            made.append((heard, other.extent.said))
            more = _compared(other, graph)
            if more is None:
                return None
            found.pairs |= more.pairs
            found.loose |= more.loose
            found.as_many &= len(other.reference) == len(graph.reference)
            first = _is_none(asked) or asked.places != ALL
            if first and asked.modules is None and more.is_none and _called(other) == _called(graph):
                break  # the same layers are called on the same
    return found


def _told_little(asked: Told, run: Callable[[], Graph]) -> tuple[Told, Graph]:
    """A run that is told this, and the same of few places where it takes that."""
    little = few(asked)
    if little != asked:
        try:
            with told(little):
                return little, run()
        except SpeedupError:
            raise
        except Exception as error:  # whatever code says to what it is told
            log.debug("told of few places: %r", error)
    with told(asked):
        return asked, run()


def _taken_up(graph: Graph, run: Callable[..., Graph]) -> Graph:
    """A run on the same input, which does not compute again what stood before the first call that looks for places."""
    standing = graph.standing
    if standing is not None:
        standing.is_taken_up = False
        try:
            found = run(resumed=standing)
        except Exception:
            if standing.is_taken_up:
                raise
        else:
            if standing.is_taken_up:
                return found
        log.debug("up to where it looks for places it is not the same")
        graph.standing = None
    return run()


def _says_the_same(asked: Told, other: Told, said: Mapping[Asked, bool]) -> bool:
    """Whether a run that is told this is one that was made already, in which this was said."""
    if asked != replace(other, questions=asked.questions, calls=asked.calls, modules=asked.modules):
        return False
    return all(asked.leaves_out(question) == out for question, out in said.items())


def _is_none(asked: Told) -> bool:
    return NONE in (asked.questions, asked.calls, asked.places)


def _others(what: Told, widest: Graph) -> Iterator[Iterator[Told]]:
    """What the other runs are told, in series; where the first run of a series is no other, none of it is."""
    extent, after = widest.extent, _calls_after(widest)
    if what.everything:
        yield iter([Told()])
    elif extent.found < SOME:
        yield iter([replace(what, least=SOME)])
    if not what.everything and not after:
        yield iter([replace(what, calls=NONE)])
        return
    if what.answer is not None:
        yield (replace(what, questions=some) for some in _some(extent.questions))
        yield (replace(what, questions=NONE, modules=some) for some in _parts(extent.asking))
    yield (replace(what, calls=some) for some in _some(extent.calls))
    yield (replace(what, calls=NONE, modules=some) for some in _parts(extent.seeking))
    if what.everything:
        yield (replace(what, places=some) for some in _some(extent.places))


def _calls_after(graph: Graph) -> bool:
    """Whether layers are called behind the first call that looks for places."""
    first = graph.seeking.node.index if graph.seeking is not None else 0
    return any(node.index > first for v in graph.sources for node, _ in v.uses)


def _some(count: int) -> Iterator[Every]:
    """Of so many things none, every second one, and one alone."""
    if count:
        yield NONE
    if count > 1:
        yield from (Every(2, 0), Every(2, 1))
    if count > 2:
        yield from (Every(count, k) for k in range(min(count, _MOST)))


def _parts(modules: Sequence[str]) -> Iterator[frozenset[str]]:
    """Some of several modules: all but one, and halves, so that of any two one is left out alone."""
    if len(modules) > 2:
        yield from (frozenset(modules) - {m} for m in modules[:_MOST])
    for bit in range((len(modules) - 1).bit_length()):
        for side in (0, 1):
            yield frozenset(m for number, m in enumerate(modules) if number >> bit & 1 == side)


def _called(graph: Graph) -> set[int]:
    return {v.number for v in graph.sources if v.uses}


def _classes(pairs: Collection[tuple[Value, Value]]) -> dict[Value, tuple[Value, ...]]:
    """By value all others that may come in its place: one may come for another that comes for a third."""
    found: dict[Value, dict[Value, None]] = {}
    for a, b in sorted(pairs, key=lambda pair: (pair[0].number, pair[1].number)):
        one, other = found.setdefault(a, {a: None}), found.setdefault(b, {b: None})
        if one is not other:
            one.update(other)
            found.update(dict.fromkeys(other, one))
    return {v: tuple(o for o in others if o is not v) for v, others in found.items()}


def _compared(graph: Graph, widest: Graph) -> _Others | None:
    """What a run says of the widest one; None where that is not known."""
    branch = graph.branch
    if branch is None and len(graph.outputs) != len(widest.outputs):
        return None
    same = given_values(graph, widest)
    found = _Others()
    places: dict[tuple[str, str, str], list[Node]] = defaultdict(list)
    for node in widest.nodes:
        places[node.place].append(node)
    start = 0
    for node in graph.nodes if branch is None else graph.nodes[: branch.node.index]:
        further = (n for n in places[node.place] if n.index >= start)
        other = next((n for n in further if _is_same(node, n, same)), None)
        if other is None:
            log.debug("with other data it makes another call: %s (%s)", node.label, node.where)
            found.loose.update(v for t in node.tensors if t in same for v in _around(same[t]))
            continue
        start = other.index + 1
        _differing(node.tensors, other.tensors, same, found)
        same.update(zip(node.outputs, other.outputs, strict=False))
        if other.outputs:  # of nothing, there are none
            same.update((v, other.outputs[-1]) for v in node.outputs[len(other.outputs) :])
    if branch is not None:
        log.debug("with other data %s reads data of the input", branch.node.label)
        found.loose.update(same[v] for v in graph.uncertain if v in same)
        found.loose.update(v for n in widest.nodes[start:] for v in (*n.tensors, *n.outputs))
        return found
    ends = [(v.next, same[v].next) for v in graph.values if v in same and v.tensor is not None]
    if any((a is None) != (b is None) for a, b in ends):
        log.debug("with other data it leaves other tensors changed for the next call")
        return None
    left = [(a, b) for a, b in ends if a is not None and b is not None]
    _differing([a for a, _ in left], [b for _, b in left], same, found)
    _differing(graph.outputs, widest.outputs, same, found)
    return found


def _around(value: Value) -> Iterator[Value]:
    """A value; instead of one that the model holds, those that the calls which read it read and give."""
    if value.tensor is None:
        yield value
    else:
        yield from (v for node, _ in value.uses for v in (*node.tensors, *node.outputs) if v.tensor is None)


def _differing(own: Sequence[Value], others: Sequence[Value], same: Mapping[Value, Value], found: _Others) -> None:
    """Note where one call reads something else in two runs."""
    for a, b in zip(own, others, strict=True):
        if a in same:
            if same[a] is not b:
                found.pairs.add((same[a], b))
        elif a.producer is not None or b.producer is not None:
            found.loose.add(b)


def _is_same(node: Node, other: Node, same: Mapping[Value, Value]) -> bool:
    """Whether two calls are one, which may read different tensors, but the same of those that the model holds."""
    if not repeats(node, other, sized=True):
        return False
    pairs = [(same.get(a, a), b) for a, b in zip(node.tensors, other.tensors, strict=True)]
    return all(a is b or (a.tensor is None and b.tensor is None) for a, b in pairs)
