"""Does a repaired model hold at other sizes of the input?

Both models run at other sizes, and their answers are compared. Where that is much arithmetic, calls are compared first,
in runs without contents: what is the same in the masked model and the small one must be so at every size, and what
differs must not depend on the size. Every call then does at the other size what the check has seen it do on the dummy
input, so that its numbers are right too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from speedup.build import Parts
from speedup.commit import Transaction
from speedup.errors import CheckError
from speedup.graph import Graph, Node
from speedup.instead import instead_of
from speedup.keep import KeepSets
from speedup.registry import Registry
from speedup.repair.arguments import numbers
from speedup.repair.stale import same_number
from speedup.repair.vary import Case, Inputs, at_other_sizes
from speedup.report.counts import sizes_of
from speedup.trace.meta import all_on_meta, on_meta, to_meta
from speedup.trace.run import trace
from speedup.trace.sandbox import undisturbed
from speedup.trace.shapes import Shapes
from speedup.trace.told import told
from speedup.verification import Returned, compare, effects_on, run

log = logging.getLogger("speedup")


# Multiply-accumulates times bytes of a number, per call, from which arithmetic takes longer than calls without
# contents: so it is measured on ViT-B/32 and MaxViT-T, which are above, and not on Swin-T and Swin-B, which are below.
_HEAVY = 20e6


def steady(
    model: nn.Module, inputs: Inputs, graph: Graph, keeps: KeepSets, rules: Registry, parts: Parts, small: Graph
) -> bool:
    """Whether a repaired model gives the masked one's answers at other sizes of the input too.

    Args:
        graph: the run of the masked model on the dummy input.
        keeps: what the repaired model was checked against.
        parts: what makes the repaired model of the model.
        small: its run on the dummy input.
    """
    if not parts.repairs:
        return True
    width = max((t.dtype.itemsize for t in graph.reference), default=4)
    heavy = sizes_of(graph, keeps)["macs"][0] * width > _HEAVY * len(graph.nodes)
    if heavy and _makes_the_same_calls(model, inputs, graph, rules, parts, small):
        return True
    return _answers_the_same(model, inputs, graph, keeps, rules, parts)


# -- calls ----------------------------------------------------------------------------------------------------------


def _makes_the_same_calls(
    model: nn.Module, inputs: Inputs, graph: Graph, rules: Registry, parts: Parts, small: Graph
) -> bool:
    """Whether the calls at other sizes prove it; False where they do not, or cannot be had."""
    found: list[tuple[Case, Graph]] = []
    shapes = Shapes()

    def takes(case: Case) -> bool:
        elsewhere = _calls(model, case.inputs, graph, rules, shapes)
        if elsewhere is None or not case.comparable(elsewhere.reference, graph.reference):
            return False
        found.append((case, elsewhere))
        return True

    transaction = Transaction(model, parts)
    try:
        with all_on_meta(model, always=True):
            at_other_sizes(to_meta(inputs), takes)
        transaction.apply()
        with all_on_meta(model, always=True):
            for case, elsewhere in found:
                stands = transaction.substitutes
                other = trace(model, *case.inputs, rules, substitutes=stands, compared=graph, shapes=shapes)
                if not _corresponds(graph, elsewhere, small, other):
                    log.debug("without contents, %s: other calls", case.name)
                    return False
    except Exception as error:
        log.debug("without contents: %r", error)
        return False
    finally:
        transaction.undo()
    return True


def _calls(model: nn.Module, case: Inputs, graph: Graph, rules: Registry, shapes: Shapes) -> Graph | None:
    """What a model calls for other inputs; None where it does not take them.

    Raises:
        Exception: it does not run without contents.
    """
    try:
        return trace(model, *case, rules, compared=graph, shapes=shapes)
    except Exception as error:
        if isinstance(error, NotImplementedError) or "meta" in str(error):
            raise
        log.debug("without contents, at another size: %r", error)
        return None


def _corresponds(big: Graph, elsewhere: Graph, small: Graph, small_elsewhere: Graph) -> bool:
    """Whether the small model at another size is to the masked one there what it is on the dummy input."""
    graphs = (big, elsewhere, small, small_elsewhere)
    if len({len(g.nodes) for g in graphs}) > 1 or len({frozenset(g.plain) for g in graphs}) > 1:
        return False
    for nodes in zip(*(g.nodes for g in graphs), strict=True):
        if len({n.place for n in nodes}) > 1 or len({_read(n) for n in nodes}) > 1:
            return False
        if any(one.op_name != other.op_name for one, other in (nodes[:2], nodes[2:])):
            return False  # the small model may call another function than the masked one, but the same at both sizes
        if not all(_follows(*each) for each in zip_longest(*map(_sizes_and_numbers, nodes), fillvalue="")):
            return False
    return all(_follows(*(g.plain[name] for g in graphs)) for name in big.plain)


def _read(node: Node) -> tuple[Any, ...]:
    """Which calls made the tensors that go in, and which of the model's own are there beside a module's."""
    made = tuple((v.producer.index, v.producer.outputs.index(v)) for v in node.tensors if v.producer is not None)
    own = tuple(v.names or v.kind for v in node.tensors if v.producer is None)
    return made, own if node.module is None else ()


def _sizes_and_numbers(node: Node) -> Iterator[Any]:
    """Ranks and shapes of what comes out, and the numbers that go in."""
    for value in node.outputs:
        yield value.ndim
        yield from value.shape
    given = numbers(node.args, node.kwargs) if node.module is None else ()
    for _, number in given:
        yield number


def _follows(big: Any, elsewhere: Any, small: Any, small_elsewhere: Any) -> bool:
    """Whether a number is the masked model's at both sizes, or another one that depends on the size in neither."""
    if _same(big, small):
        return _same(elsewhere, small_elsewhere)
    return _same(big, elsewhere) and _same(small, small_elsewhere)


def _same(a: Any, b: Any) -> bool:
    both_numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return same_number(a, b) if both_numbers else type(a) is type(b) and (a is b or a == b)


# -- answers --------------------------------------------------------------------------------------------------------


def _answers_the_same(
    model: nn.Module, inputs: Inputs, graph: Graph, keeps: KeepSets, rules: Registry, parts: Parts
) -> bool:
    """Whether both models return the same at other sizes."""
    cases: dict[str, Inputs] = {}
    wanted: dict[str, Returned | Exception] = {}
    given: dict[str, list[float]] = {}

    def takes(case: Case) -> bool:
        outputs = _masked(model, case.inputs, graph, rules)
        if outputs is None or not case.comparable(outputs.tensors, graph.reference):
            return False
        cases[case.name], wanted[case.name] = case.inputs, outputs
        if on_meta(model):
            given[case.name] = _factors(model, case.inputs, graph, keeps, rules)
        return True

    at_other_sizes(inputs, takes)
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


def _masked(model: nn.Module, case: Inputs, graph: Graph, rules: Registry) -> Returned | None:
    """What the masked model returns for other inputs; None where it does not take them."""
    try:
        assert graph.masking is not None  # it is the graph of a run
        with undisturbed(model), graph.masking.sparing(), told(None):
            torch.manual_seed(0)  # as ``run`` does
            other = trace(model, *case, rules, masking=graph.masking, compared=graph)
    except Exception as error:  # whatever a model says to a size that it does not take
        log.debug("at another size: %r", error)
        return None
    return Returned(other.reference, other.plain)


def _factors(model: nn.Module, case: Inputs, graph: Graph, keeps: KeepSets, rules: Registry) -> list[float]:
    """The numbers in the calls of a run that are no sizes: where there are no answers to compare, these are."""
    nodes: Sequence[Node] = trace(model, *case, rules, compared=graph).nodes
    given: list[Any] = [(node.args, node.kwargs) for node in nodes]
    for number, (old, node) in enumerate(zip(graph.nodes, nodes, strict=False)):
        if instead_of(old, keeps) is not None:  # the one function is told more than the other, and spells defaults out
            arguments = node.claimed().arguments
            given[number] = [arguments.get(name) for name in old.arguments]
    return [leaf for leaf in pytree.tree_leaves(given) if type(leaf) is float]
