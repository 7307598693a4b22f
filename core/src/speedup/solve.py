"""From a model with its masks to a plan that was tried: which runs of the model it is made for.

The run in eval mode on the dummy input; with it those in which Python is given other truth values (``ways``); or the
one in which layers are called besides that only training calls (``auxiliary``), or only some data (``detours``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from speedup import rule_log, walk
from speedup.auxiliary import find_auxiliary
from speedup.build import Parts
from speedup.deferred import fill_errors_unwrapped
from speedup.detours import find_detours, note_detours
from speedup.drop import measure
from speedup.errors import CheckError, TraceError
from speedup.graph import Graph
from speedup.keep import KeepSets
from speedup.masking import Masking
from speedup.masks import Prepared
from speedup.registry import Registry
from speedup.resized import MOST, other_ways, part
from speedup.settle import settle
from speedup.shared import check_shared
from speedup.sizes import at_one_size, lasting
from speedup.stream import with_contents
from speedup.trace import first_trace, sandbox, trace
from speedup.verification import Inputs
from speedup.ways import Way, change_the_same, explore
from speedup.wider import Wider

log = logging.getLogger("speedup")

Settled = tuple[Graph, KeepSets, Parts]


def solve(
    model: nn.Module, inputs: Inputs, prepared: Prepared, rules: Registry, drop: bool
) -> tuple[Graph, KeepSets, Parts, list[float]]:
    """The plan of a model, and how far its outputs change where constants are dropped.

    Raises:
        as ``speedup.plan``.
    """
    rule_log.listen()
    masking = Masking(model, prepared.masks.parameters)
    with walk.remembered(model), sandbox(model) as stands, fill_errors_unwrapped():
        first = first_trace(model, inputs, rules, masking)
        check_shared(first)
        rule_log.claims(first.nodes)
        log.info("traced: %d calls, %d without a rule", len(first.nodes), len(first.barriers))
        if not first.outputs and first.branch is None and not first.answers:
            raise TraceError("the model returns no tensor, so nothing says what of it is needed")
        known = partial(lasting, model, inputs=inputs, masks=prepared.facts, rules=rules, drop=drop)
        graph, keeps, parts = (
            _with_more(model, inputs, rules, find_auxiliary(model, inputs, rules, first), known, drop)
            or _with_more(model, inputs, rules, find_detours(model, inputs, rules, first), known, drop)
            or _on_all_ways(model, inputs, rules, first, known, prepared.facts, drop)
        )
        parts.deferred.close()
        keeps.forget()  # nobody asks again, and a plan lives on
        changes = measure(model, inputs, graph, parts) if keeps.drop else []
    if stands.originals:
        with_contents(graph, keeps, model, parts, stands)
    return graph, keeps, parts, changes


def _with_more(
    model: nn.Module, inputs: Inputs, rules: Registry, wider: Wider | None, known: Callable[[Graph], Way], drop: bool
) -> Settled | None:
    """The plan for a run that calls more than the one on the dummy input; None where there is none."""
    if wider is None:
        return None
    check_shared(wider.graph)
    try:
        with wider.entered():
            settled = settle(model, inputs, [known(wider.graph)], rules, drop)
    except CheckError as error:
        log.debug("with %s: %s", wider.label, error)
        return None
    assert settled is not None  # there is one way
    return settled if wider.holds(model, inputs, rules, settled[2], drop) else None


def _on_all_ways(
    model: nn.Module,
    inputs: Inputs,
    rules: Registry,
    first: Graph,
    known: Callable[[Graph], Way],
    masks: Mapping[str, torch.Tensor],
    drop: bool,
) -> Settled:
    """The plan for the run in eval mode, whichever way Python goes with other data."""
    way = known(first)
    log.info("inferred: %d values with constants", len(way.facts.constants))
    resized = other_ways(way.elsewhere) if way.elsewhere is not None else []
    settled = None
    if first.answers or resized:
        graphs = _told_otherwise(model, inputs, rules, first)
        others = [*(graphs or ())[1:], *(other.graph for other in resized)]
        for other in others:
            check_shared(other)
        if graphs and len(resized) <= MOST and change_the_same([first, *others]):
            if first.replaced:
                way = known(first)
            at_size = partial(at_one_size, way, model=model, masks=masks, rules=rules, drop=drop)
            settled = settle(model, inputs, [way, *map(known, graphs[1:]), *map(at_size, resized)], rules, drop)
        if settled is None:
            alone = first
            if first.answers:
                alone = trace(model, *inputs, rules, masking=first.masking)
                note_detours(model, inputs, rules, alone)
            part(alone, resized)
            way = known(alone)
    if settled is None:
        settled = settle(model, inputs, [way], rules, drop)
    assert settled is not None
    return settled


def _told_otherwise(model: nn.Module, inputs: Inputs, rules: Registry, first: Graph) -> list[Graph] | None:
    """The runs in which Python is given any truth values; None where not all can be known."""
    if not first.answers:
        return [first]
    masking = first.masking
    graphs = explore(first, lambda answers: trace(model, *inputs, rules, answers=answers, masking=masking))
    log.info("explored: %s", f"{len(graphs)} ways" if graphs else "not all ways can be known")
    for graph in (graphs or ())[1:]:
        note_detours(model, inputs, rules, graph)
    return graphs
