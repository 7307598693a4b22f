"""From facts to a plan that was tried: keep sets, new parts, the check, repairs; and again with what must be locked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from speedup.build import Parts, build
from speedup.check import AnswersError, Mismatch, check
from speedup.commit import Transaction
from speedup.conditioning import excused
from speedup.decisions import Decisions
from speedup.errors import CheckError
from speedup.graph import Graph
from speedup.keep import KeepSets, Lock
from speedup.order import arrange
from speedup.registry import Registry
from speedup.repair.mend import mend
from speedup.repair.options import Job
from speedup.repair.parts import Repairs
from speedup.repair.steady import steady
from speedup.steps import Steps
from speedup.trace import trace
from speedup.verification import Inputs
from speedup.ways import Way, disagreements, same_parts

log = logging.getLogger("speedup")

_ROUNDS = 200


def settle(
    model: nn.Module, inputs: Inputs, ways: Sequence[Way], rules: Registry, drop: bool
) -> tuple[Graph, KeepSets, Parts] | None:
    """Plan, build and check; where a call cannot take its new sizes, lock it and plan again.

    Returns:
        the graph of the first way with its plan; None when several ways do not agree.

    Raises:
        CheckError: there is one way, and the numbers differ or no plan fits.
    """
    way = ways[0]
    for _ in range(_ROUNDS):
        keeps = [w.keep_sets(drop) for w in ways]
        more = [arrange(w.graph, k) for w, k in zip(ways, keeps, strict=True)]
        if not any(more) and len(ways) > 1:
            more = disagreements(ways, keeps)
        if not any(more):
            made = [build(w.graph, k, model) for w, k in zip(ways, keeps, strict=True)]
            if not same_parts(made):
                log.debug("not all ways make the same of the model")
                return None
            try:
                more = _mended(model, inputs, ways, keeps, rules, made[0])
            except CheckError as error:
                if len(ways) == 1:
                    raise
                log.debug("not all ways can be checked: %s", error)
                return None
            if not any(more):
                return way.graph, keeps[0], made[0]
        for each, locks in zip(ways, more, strict=True):
            for lock in locks:
                log.debug("lock %s axes %s: %s", each.graph.values[lock.value].label, lock.axes, lock.why)
            each.locks += locks
    if len(ways) > 1:
        return None
    raise CheckError(f"no valid plan after {_ROUNDS} rounds; the last lock was: {way.locks[-1].why}")


def _mended(
    model: nn.Module, inputs: Inputs, ways: Sequence[Way], keeps: Sequence[KeepSets], rules: Registry, parts: Parts
) -> list[list[Lock]]:
    """Repair what differs from the plan on the first way, and check the others; per way what is to be locked."""
    graph = ways[0].graph

    runs: list[Graph] = []

    def tried(repairs: Repairs) -> Mismatch | None:
        return _try(model, inputs, graph, keeps[0], rules, replace(parts, repairs=repairs), runs)

    def holds(repairs: Repairs) -> bool:
        return steady(model, inputs, graph, keeps[0], rules, replace(parts, repairs=repairs), runs[-1])

    parts.repairs, found = mend(Job(model, graph, keeps[0]), tried, holds)
    locks = [found.locks() if found is not None else []]
    for way, kept in zip(ways[1:], keeps[1:], strict=True):
        other = None if any(locks) else _try(model, inputs, way.graph, kept, rules, parts)
        locks.append(other.locks() if other is not None else [])
    return locks


def _try(
    model: nn.Module,
    inputs: Inputs,
    graph: Graph,
    keeps: KeepSets,
    rules: Registry,
    parts: Parts,
    runs: list[Graph] | None = None,
) -> Mismatch | None:
    """Put everything in, run and compare, and take everything out.

    Args:
        runs: filled with the run of the small model.

    Raises:
        CheckError: the outputs differ.
    """

    def attempt(decisions: Decisions | None = None) -> Mismatch | None:
        transaction = Transaction(model, parts)
        transaction.apply()
        try:
            return check(model, inputs, graph, keeps, rules, transaction.substitutes, decisions, runs)
        finally:
            transaction.undo()

    try:
        found = attempt()
        if found is None or not found.tipped:
            return found
        error = None
    except CheckError as differs:
        found, error = None, differs
    # Once more, with all intermediate results of both, to tell what rounding tips from what is wrong.
    wanted: list[list[torch.Tensor]] = []
    trace(model, *inputs, rules, log=wanted, answers=graph.answers, masking=graph.masking, compared=graph)
    decisions = Decisions(graph, keeps, wanted)
    try:
        found = attempt(decisions)
    except CheckError as still:
        where = decisions.first_difference()
        wrong = f"the small model does not give the same answers, nothing was changed: {error or still}. "
        wrong += decisions.first_without_number()
        if not isinstance(still, AnswersError):
            raise CheckError(wrong + where) from still
        decisions.got = None  # copies of all activations
        steps = Steps(graph, keeps, wanted)
        try:
            right = attempt(steps) is None
        except CheckError:
            right = False
        if not right or steps.problem:
            raise CheckError(wrong + (steps.problem or where)) from still
        return excused(model, inputs, graph, keeps, rules, still, decisions.largest, wrong)
    for node in decisions.taken:
        log.debug("rounding tips %s (%s)", node.label, node.where)
    return found
