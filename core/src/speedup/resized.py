"""Ways that code takes at other sizes of the input: ``if h % 8: x = F.pad(x, ...)``.

1. Where a condition in the code has to do with a size (``questions``), the model is run at other sizes, without
   contents where it can be: smaller, larger, with one entry more, and at the limits that stand in the code;
2. a run in which other lines make calls is a way of its own (``ways.Way``), on inputs of its own: as many of them as
   show each line once, and once without it. A plan that holds on all ways holds at these sizes too;
3. where the ways cannot be brought together, what is made or read from the first such line on stays whole (``Branch``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from speedup.elsewhere import Elsewhere
from speedup.graph import Branch, Graph, Line, Node, Value
from speedup.questions import code_of, questions
from speedup.vary import Case, Inputs, limits

log = logging.getLogger("speedup")

_MOST = 6  # ways of one model
_WHY = "code asks for a size here, and goes another way where the input has another one"


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
    usual = _lines(graph)
    found: list[Case] = []
    run, left_out = set(usual), set[Line]()

    def look(case: Case, other: Graph) -> None:
        lines = _lines(other)
        if (lines - run or usual - lines - left_out) and len(found) < _MOST:
            found.append(case)
            run.update(lines)
            left_out.update(usual - lines)

    contentless = elsewhere.contentless() if elsewhere.is_heavy else None
    without = {case.name: other for case, other in contentless.runs} if contentless is not None else {}

    def takes(case: Case) -> bool:
        other = without.get(case.name) if contentless is not None else elsewhere.run(case, claimed=True)
        if other is not None:
            look(case, other)
        return other is not None

    elsewhere.at_sizes(takes)
    for case in limits(elsewhere.inputs, asked.limits if contentless is not None or not elsewhere.is_heavy else None):
        other = elsewhere.sketch(case)
        if other is not None:
            look(case, other)
    runs = [(case.inputs, elsewhere.run(case, claimed=True)) for case in found]
    ways = [
        Resized(inputs, other, [n for n in other.nodes if n.line not in usual])
        for inputs, other in runs
        if other is not None and _lines(other) != usual
    ]
    log.info("at other sizes: %d other ways", len(ways))
    return ways


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
    """Up to where two runs make calls in the same lines."""
    both = zip(nodes, others, strict=False)
    return next((k for k, (a, b) in enumerate(both) if a.line != b.line), min(len(nodes), len(others)))


def _lines(graph: Graph) -> frozenset[Line]:
    """Those up to where data decide what is called."""
    return frozenset(n.line for n in graph.nodes[: graph.branch.node.index if graph.branch is not None else None])
