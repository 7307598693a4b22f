"""From facts to a plan that was tried: keep sets, new parts, the check, repairs; and again with what must be locked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from speedup import moved
from speedup.build import Parts, build
from speedup.errors import CheckError
from speedup.graph import Graph
from speedup.keep import KeepSets, Lock
from speedup.locking import lock_all_uneven, lock_following
from speedup.made import Made
from speedup.mismatch import Mismatch
from speedup.order import arrange
from speedup.registry import Registry
from speedup.repair.job import Job
from speedup.repair.mend import mend
from speedup.repair.parts import Repairs
from speedup.repair.steady import steady
from speedup.trace.sandbox import unwarned
from speedup.tries import Tries
from speedup.verification import Inputs
from speedup.ways import Way, disagreements, united

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
            more = _moved(ways, keeps)
        if not any(more):
            tried = _tried(model, inputs, ways, keeps, rules)
            if isinstance(tried, Parts):
                return way.graph, keeps[0], tried
            if tried is None:
                return None
            more = tried
        for each, locks in zip(ways, more, strict=True):
            for lock in locks:
                log.debug("lock %s axes %s: %s", each.graph.values[lock.value].label, lock.axes, lock.why)
            each.locks += locks
    if len(ways) > 1:
        return None
    raise CheckError(f"no valid plan after {_ROUNDS} rounds; the last lock was: {way.locks[-1].why}")


def _tried(
    model: nn.Module, inputs: Inputs, ways: Sequence[Way], keeps: Sequence[KeepSets], rules: Registry
) -> Parts | list[list[Lock]] | None:
    """What is made of the model, if it holds; else per way what is to be locked; None when several ways do not agree.

    Raises:
        CheckError: there is one way, and the numbers differ.
    """
    parts = united(ways, keeps, _made(model, ways, keeps))
    if not isinstance(parts, Parts):
        if not any(parts):
            log.debug("not all ways make the same of the model")
            return None
        return parts
    try:
        more = _mended(model, inputs, ways, keeps, rules, parts)
    except CheckError as error:
        if len(ways) == 1:
            raise
        log.debug("not all ways can be checked: %s", error)
        return None
    return more if any(more) else parts


def _made(model: nn.Module, ways: Sequence[Way], keeps: Sequence[KeepSets]) -> list[Parts]:
    """What each way makes of the model: of several it is compared, of one alone large tensors are deferred."""
    if len(ways) == 1:
        return [build(ways[0].graph, keeps[0], model, defer=True)]
    known = Made()
    return [build(w.graph, k, model, known=known) for w, k in zip(ways, keeps, strict=True)]


def _moved(ways: Sequence[Way], keeps: Sequence[KeepSets]) -> list[list[Lock]]:
    """Locks for calls that move other entries at other sizes, and for those that nobody has seen there."""
    found, lines = [], set()
    for way, kept in zip(ways, keeps, strict=True):
        if way.elsewhere is not None:
            nodes = moved.moving(way.elsewhere, kept)
            lines |= {n.line for n in nodes}
        else:
            fresh = set(way.fresh)
            nodes = [n for n in way.graph.nodes if n.line in lines or (n in fresh and moved.mixes(n, kept))]
        found.append(moved.locks(nodes, kept))
    return found


def _mended(
    model: nn.Module, inputs: Inputs, ways: Sequence[Way], keeps: Sequence[KeepSets], rules: Registry, parts: Parts
) -> list[list[Lock]]:
    """Repair what differs from the plan on the first way, and check the others; per way what is to be locked."""
    tries = Tries(model, inputs, ways[0].graph, keeps[0], rules, parts)

    def holds(repairs: Repairs) -> bool:
        assert tries.run is not None and ways[0].elsewhere is not None
        parts.deferred.fill_all()  # the models are compared at other sizes by runs of their own
        return steady(ways[0].elsewhere, tries.keeps, replace(parts, repairs=repairs), tries.run)

    parts.repairs, found = mend(Job(model, tries.graph, tries.keeps), tries, tries.ahead, holds)
    locks = [_locks(model, found, ways[0], keeps[0])]
    for way, kept in zip(ways[1:], keeps[1:], strict=True):
        with unwarned():
            other = None if any(locks) else Tries(model, way.inputs, way.graph, kept, rules, parts)(parts.repairs)
        locks.append(_locks(model, other, way, kept))
    return locks


def _locks(model: nn.Module, found: Mismatch | None, way: Way, keeps: KeepSets) -> list[Lock]:
    """What is to stay for a call that differs from the plan: at first so much that all runs of its line are alike, then
    that all tensors keep as many that it has one size for."""
    if found is None:
        return []
    locks: list[Lock] = []
    locked = set[int]()  # calls of a line are mostly locked together
    for each in (found, *found.others) if found.stage == 0 else (found,):
        if locked.isdisjoint(v.number for v in each.node.outputs):
            even = lock_all_uneven(each.node, way.graph, keeps, model)
            more = even or lock_following(each.node, way.graph, keeps, each.args, each.kwargs) or each.locks()
            locked.update(lock.value for lock in more)
            locks += more
    return locks
