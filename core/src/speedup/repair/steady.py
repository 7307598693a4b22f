"""Does a repaired model hold at other sizes of the input?

Both models run at other sizes, and their answers are compared. Where that is much arithmetic, calls are compared first,
in runs without contents: what is the same in the masked model and the small one must be so at every size, and what
differs must not depend on the size. Every call then does at the other size what the check has seen it do on the dummy
input, so that its numbers are right too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from speedup.build import Parts
from speedup.check import Run
from speedup.commit import Transaction
from speedup.elsewhere import Elsewhere
from speedup.errors import CheckError
from speedup.graph import Graph
from speedup.instead import instead_of
from speedup.keep import KeepSets
from speedup.node import Node
from speedup.registry import Registry
from speedup.repair.arguments import numbers
from speedup.repair.stale import same_number
from speedup.trace.meta import all_on_meta, on_meta
from speedup.trace.outputs import Returned
from speedup.trace.run import trace
from speedup.trace.sandbox import unwarned
from speedup.vary import Case, Inputs
from speedup.verification import compare, effects_on, run

log = logging.getLogger("speedup")


def steady(elsewhere: Elsewhere, keeps: KeepSets, parts: Parts, small: Run) -> bool:
    """Whether a repaired model gives the masked one's answers at other sizes of the input too.

    Args:
        keeps: what the repaired model was checked against.
        parts: what makes the repaired model of the model.
        small: its run on the dummy input.
    """
    if not parts.repairs:
        return True
    if elsewhere.is_heavy and _makes_the_same_calls(elsewhere, keeps, parts, small):
        return True
    return _answers_the_same(elsewhere, keeps, parts)


# -- calls ----------------------------------------------------------------------------------------------------------


def _makes_the_same_calls(elsewhere: Elsewhere, keeps: KeepSets, parts: Parts, small: Run) -> bool:
    """Whether the calls at other sizes prove it; False where they do not, or cannot be had."""
    model, graph, rules = elsewhere.model, elsewhere.graph, elsewhere.rules
    contentless = elsewhere.contentless()
    if contentless is None:
        return False
    transaction = Transaction(model, parts)
    try:
        transaction.apply()
        with all_on_meta(model, always=True):
            for case, there in contentless.runs:
                stands = transaction.substitutes
                other = trace(model, *case.inputs, rules, substitutes=stands, compared=graph, shapes=contentless.shapes)
                if not _corresponds(graph, keeps, there, small, other):
                    log.debug("without contents, %s: other calls", case.name)
                    return False
    except Exception as error:
        log.debug("without contents: %r", error)
        return False
    finally:
        transaction.undo()
    return True


def _corresponds(big: Graph, keeps: KeepSets, elsewhere: Graph, small: Run, small_elsewhere: Graph) -> bool:
    """Whether the small model at another size is to the masked one there what it is on the dummy input."""
    graphs = (big, elsewhere, small, small_elsewhere)
    if len({len(g.nodes) for g in graphs}) > 1 or len({frozenset(g.plain) for g in graphs}) > 1:
        return False
    for nodes in zip(*(g.nodes for g in graphs), strict=True):
        if len({n.place for n in nodes}) > 1 or len({_read(n) for n in nodes}) > 1:
            return False
        if any(one.op_name != other.op_name for one, other in (nodes[:2], nodes[2:])):
            return False  # the small model may call another function than the masked one, but the same at both sizes
        planned = [keeps.shape(v) for v in nodes[0].outputs]
        shapes = [[v.shape for v in n.outputs] for n in nodes]
        shapes[2] = planned
        if len({len(each) for each in shapes}) > 1 or not all(map(_follow, *shapes)):
            return False
        if nodes[0] is nodes[2] and nodes[1].is_given(nodes[3]):
            continue
        if not all(_follows(*each) for each in zip_longest(*map(_numbers, nodes), fillvalue="")):
            return False
    return all(_follows(*(g.plain[name] for g in graphs)) for name in big.plain)


def _follow(*shapes: Sequence[int]) -> bool:
    """Whether a tensor has as many axes in all runs, of sizes that follow, and none is empty, of which any size will
    do."""
    big, elsewhere, small, small_elsewhere = shapes
    if len({len(s) for s in shapes}) > 1 or 0 in small:
        return False
    return (big == small and elsewhere == small_elsewhere) or all(map(_follows, *shapes))


def _read(node: Node) -> tuple[Any, ...]:
    """Which calls made the tensors that go in, and which of the model's own are there beside a module's."""
    made = tuple((v.producer.index, v.producer.outputs.index(v)) for v in node.tensors if v.producer is not None)
    own = tuple(v.names or v.kind for v in node.tensors if v.producer is None)
    return made, own if node.module is None else ()


def _numbers(node: Node) -> list[Any]:
    """The numbers that go into a call of a function."""
    return [number for _, number in numbers(node.args, node.kwargs)] if node.module is None else []


def _follows(big: Any, elsewhere: Any, small: Any, small_elsewhere: Any) -> bool:
    """Whether a number is the masked model's at both sizes, or another one that depends on the size in neither."""
    if _same(big, small):
        return _same(elsewhere, small_elsewhere)
    return _same(big, elsewhere) and _same(small, small_elsewhere)


def _same(a: Any, b: Any) -> bool:
    both_numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return same_number(a, b) if both_numbers else type(a) is type(b) and (a is b or a == b)


# -- answers --------------------------------------------------------------------------------------------------------


@unwarned()
def _answers_the_same(elsewhere: Elsewhere, keeps: KeepSets, parts: Parts) -> bool:
    """Whether both models return the same at other sizes."""
    model, graph, rules = elsewhere.model, elsewhere.graph, elsewhere.rules
    cases: dict[str, Inputs] = {}
    wanted: dict[str, Returned | Exception] = {}
    given: dict[str, list[float]] = {}

    def takes(case: Case) -> bool:
        other = elsewhere.run(case, forced=False)
        if other is None:
            return False
        cases[case.name], wanted[case.name] = case.inputs, Returned(other.reference, other.plain)
        if on_meta(model):
            given[case.name] = _factors(model, case.inputs, graph, keeps, rules)
        return True

    elsewhere.at_sizes(takes)
    if not cases:
        return True
    # Only what the plan itself needed an excuse for is excused here.
    moved = effects_on(model, cases, wanted, graph.masking) if graph.effects else None
    transaction = Transaction(model, parts)
    transaction.apply()
    try:
        alike = all(_factors(model, cases[name], graph, keeps, rules) == factors for name, factors in given.items())
        return alike and bool(compare(wanted, run(model, cases), graph.coarsest, moved))
    except CheckError as error:
        log.debug("at another size: %s", error)
        return False
    finally:
        transaction.undo()


def _factors(model: nn.Module, case: Inputs, graph: Graph, keeps: KeepSets, rules: Registry) -> list[float]:
    """The numbers in the calls of a run that are no sizes: where there are no answers to compare, these are."""
    nodes: Sequence[Node] = trace(model, *case, rules, compared=graph).nodes
    given: list[Any] = [(node.args, node.kwargs) for node in nodes]
    for number, (old, node) in enumerate(zip(graph.nodes, nodes, strict=False)):
        if instead_of(old, keeps) is not None:  # the one function is told more than the other, and spells defaults out
            arguments = node.claimed().arguments
            given[number] = [arguments.get(name) for name in old.arguments]
    return [leaf for leaf in pytree.tree_leaves(given) if type(leaf) is float]
