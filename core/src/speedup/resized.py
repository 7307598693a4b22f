"""Ways that code takes at other sizes of the input: ``if h % 8: x = F.pad(x, ...)``.

1. Where a condition in the code has to do with a size (``questions``), the model is run at other sizes, without
   contents where it can be: smaller, larger, with one entry more, and at the limits that stand in the code;
2. a run in which other lines make calls, or pass a tensor from one line to another one, is a way of its own
   (``ways.Way``), on inputs of its own: as many of them as show each line once, and once without it, and each passage.
   A plan that holds on all ways holds at these sizes too;
3. where there are too many ways, or they cannot be brought together, what is made or read from the first such line on
   stays whole (``Branch``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn

from speedup.conditions import LARGEST
from speedup.elsewhere import Elsewhere
from speedup.graph import Branch, Graph
from speedup.node import Line, Node, Value
from speedup.questions import code_of, questions
from speedup.trace.glance import Glance, Passages
from speedup.trace.outputs import tensors_in
from speedup.vary import Case, Inputs, at_limits

log = logging.getLogger("speedup")

MOST = 8  # ways of one model that a plan is made for
_HELD = 4  # limits that attributes hold
_WHY = "code asks for a size here, and goes another way where the input has another one"


@dataclass(frozen=True, eq=False)
class _Seen:
    """What was seen of a run at another size."""

    case: Case
    lines: frozenset[Line]
    between: Passages


@dataclass(frozen=True, eq=False)
class Resized:
    """A run at another size, in which other lines make calls.

    Attributes:
        inputs: of that size.
        fresh: calls in lines that the run on the dummy input does not run.
    """

    inputs: Inputs
    graph: Graph
    fresh: Sequence[Node]


def other_ways(elsewhere: Elsewhere) -> list[Resized]:
    """The ways that code takes at other sizes. Call it inside ``sandbox``."""
    graph = elsewhere.graph
    # Where code calls what its data choose, other lines at another size say nothing of the size.
    asked = questions(code_of(elsewhere.model, graph)) if graph.asking and graph.seeking is None else None
    if asked is None:
        return []
    usual, between = _lines(graph), _passed(graph)
    seen: list[_Seen] = []
    contentless = elsewhere.contentless() if elsewhere.is_heavy else None
    without = {case.name: other for case, other in contentless.runs} if contentless is not None else {}

    def look(case: Case, other: Graph | Glance | None) -> bool:
        if isinstance(other, Glance):
            seen.append(_Seen(case, other.lines, other.passed))
        elif other is not None:
            seen.append(_Seen(case, _lines(other), _passed(other)))
        return other is not None

    def run(case: Case) -> Graph | Glance | None:
        return without.get(case.name) if contentless is not None else elsewhere.glance(case)

    def is_taken(case: Case) -> bool:
        """Whether the model takes a case; it is not run again at sizes that it has taken."""
        return any(each.case.shapes == case.shapes for each in seen) or look(case, elsewhere.sketch(case))

    elsewhere.at_sizes(lambda case: look(case, run(case)))
    numbers = (*asked.limits, *_held(elsewhere.model, asked.attributes))
    are_cheap = contentless is not None or not elsewhere.is_heavy
    at_limits(elsewhere.inputs, numbers if are_cheap else None, is_taken)
    runs = [(case.inputs, elsewhere.run(case, claimed=True)) for case in _few(seen, usual, between, elsewhere.inputs)]
    ways = [
        Resized(inputs, other, [n for n in other.nodes if n.line not in usual])
        for inputs, other in runs
        if other is not None
    ]
    log.info("at other sizes: %d other ways", len(ways))
    return ways


def _few(seen: Collection[_Seen], usual: frozenset[Line], between: Passages, inputs: Inputs) -> list[Case]:
    """As few cases as show each line once, and once without it, and each passage; those first that are about as large
    as the dummy input: to an image of one pixel a model may do things that nobody asks of it."""
    run, left_out, passed = set(usual), set[Line](), set(between)
    found: list[Case] = []

    def times(each: _Seen) -> float:
        count, own = (sum(t.numel() for t in tensors_in(i)) for i in (each.case.inputs, inputs))
        return abs(math.log(max(count, 1) / max(own, 1)))

    for each in sorted(seen, key=times):
        if each.lines - run or usual - each.lines - left_out or each.between - passed:
            found.append(each.case)
            run.update(each.lines)
            left_out.update(usual - each.lines)
            passed.update(each.between)
    return found


def _held(model: nn.Module, names: Collection[str]) -> list[int]:
    """The whole numbers that modules hold in attributes of these names."""
    held = [vars(m).get(name, getattr(type(m), name, None)) for m in model.modules() for name in names]
    numbers = [n for each in held for n in (each if isinstance(each, tuple | list) else (each,))]
    return sorted({n for n in numbers if type(n) is int and 0 < n <= LARGEST})[:_HELD]


def part(graph: Graph, others: Sequence[Resized]) -> None:
    """Note in a graph that code takes other ways from some call on."""
    where = min((_parting(graph.nodes, other.graph.nodes) for other in others), default=len(graph.nodes))
    last = max(where - 1, 0)
    if not graph.nodes or (graph.branch is not None and graph.branch.node.index <= last):
        return
    live = {v for n in graph.nodes[where:] for v in n.tensors} | {v for v in graph.outputs if v.producer is None}
    for other in others:
        same = dict(zip(other.graph.inputs, graph.inputs, strict=True))
        for own, its in zip(graph.nodes[:where], other.graph.nodes[:where], strict=True):
            same.update(zip((*its.tensors, *its.outputs), (*own.tensors, *own.outputs), strict=False))
        read = [v for n in other.graph.nodes[where:] for v in n.tensors] + list(other.graph.outputs)
        live |= {same[v] for v in read if v in same}
    graph.branch = Branch(graph.nodes[last], frozenset(live | _read_first(graph, where)), _WHY)
    graph.__dict__.pop("uncertain", None)


def _read_first(graph: Graph, where: int) -> set[Value]:
    """What the first call reads and makes, if already that one is another."""
    return {v for n in graph.nodes[:1] for v in (*n.tensors, *n.outputs)} if where == 0 else set()


def _parting(nodes: Sequence[Node], others: Sequence[Node]) -> int:
    """Up to where two runs make calls in the same lines, of what the same calls before have made."""

    def made(node: Node) -> list[int | None]:
        return [v.producer.index if v.producer is not None else None for v in node.tensors]

    both = zip(nodes, others, strict=False)
    differ = (k for k, (a, b) in enumerate(both) if a.line != b.line or made(a) != made(b))
    return next(differ, min(len(nodes), len(others)))


def _passed(graph: Graph) -> Passages:
    """From which calls to which tensors are passed, the input (None) and what the model returns (None) among them."""

    def made(value: Value) -> Line | None:
        return value.producer.line if value.producer is not None else None

    read = {(made(v), n.line) for n in _until_data(graph) for v in n.tensors if not v.is_source}
    ends = graph.outputs if graph.branch is None else []
    return frozenset({*read, *((made(v), None) for v in ends)})


def _lines(graph: Graph) -> frozenset[Line]:
    return frozenset(n.line for n in _until_data(graph))


def _until_data(graph: Graph) -> Sequence[Node]:
    """The calls up to where data decide what is called."""
    return graph.nodes[: graph.branch.node.index if graph.branch is not None else None]
