"""Looking ahead: what to repair behind a call that differs from the plan, found in one run.

A run ends at the first call that a stale size breaks, and a model of many layers has many. Here such a call is made
with the numbers of the plan instead, and the run goes on to the next one. What is found is tried as any repair is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from speedup.graph import Graph
from speedup.keep import KeepSets
from speedup.locking import changed_axes, lock_call
from speedup.mismatch import Mismatch
from speedup.node import Node, Ref
from speedup.repair.arguments import with_numbers
from speedup.repair.job import Job
from speedup.repair.options import options
from speedup.repair.parts import Repair, Repairs, joined
from speedup.repair.stale import CALLEE, RESULT, stale_numbers
from speedup.trace.replay import Given
from speedup.trees import replaced


class Ahead:
    """Mends calls in a replay.

    Attributes:
        found: those that it has mended.
    """

    def __init__(self, graph: Graph, keeps: KeepSets) -> None:
        self.graph, self.keeps = graph, keeps
        self.found: list[Mismatch] = []

    def __call__(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given | None:
        stale = stale_numbers(node, self.keeps, args, kwargs, node)
        wanted = {s.path: s.wanted for s in stale if s.path not in (RESULT, CALLEE)}
        if not wanted:
            return None
        refs = map(Ref, itertools.count())
        own_args, own_kwargs = replaced(torch.Tensor, lambda _: next(refs), (args, kwargs))
        why = "the code of the call holds a size"
        lock = partial(lock_call, node, self.graph, self.keeps, changed_axes(node, self.keeps), why)
        self.found.append(Mismatch(node, 0, own_args, own_kwargs, False, (), lock))
        return with_numbers(args, kwargs, wanted)


Step = tuple[Node, Repairs]


def steps(
    job: Job, found: Sequence[Mismatch], repairs: Repairs, attributes: bool, careful_from: int | None = None
) -> Iterator[Step]:
    """The first that may repair each of some calls, where that is a change of the module that makes it.

    Args:
        repairs, attributes: as for ``options``.
        careful_from: the number of a call. From there on an attribute changes only in a module without edits, which may
            be of calls that read it, and one in each module.
    """
    seen: set[Any] = set()
    changed: dict[str, set[str]] = {}  # attributes, by module: its other calls may follow them
    for each in found:
        node = each.node
        call, names = (node.scope, node.op, node.sites), changed.get(node.scope, set())
        free = careful_from is None or node.index < careful_from
        if call in seen or (names and not free):
            continue
        seen.add(call)
        before = repairs.get(node.scope, Repair())
        option = next(options(job, each, repairs, attributes and (free or not before.edits), alone=True), {})
        if set(option) != {node.scope}:
            continue
        made, known = option[node.scope], {edit for edit, _, _ in before.edits}
        if names and (not made.attributes or not names.isdisjoint(made.attributes)):
            continue
        own = replace(made, edits=tuple(e for e in made.edits if e[0] not in known))
        if made.attributes:
            changed[node.scope] = {*names, *made.attributes}
        if own.edits or own.attributes:
            repairs = joined(repairs, {node.scope: own})
            yield node, {node.scope: own}
