"""Attributes that no argument of a call names, and that may still hold its sizes: those of other modules, and those
that Python code itself compares."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from torch import nn

from speedup.node import Node
from speedup.repair.arguments import numbers
from speedup.repair.attributes import held, mentioned
from speedup.repair.expressed import sources
from speedup.repair.job import Job
from speedup.repair.locate import Place, place_of_method, places_of
from speedup.repair.parts import Repair, Repairs, joined
from speedup.repair.stale import Stale


def of_readers(job: Job, node: Node, stale: list[Stale], repairs: Repairs) -> Iterator[Repairs]:
    """Attributes that the code reads of other modules, those which are given what the runs of a call make: the first
    state of each cell, made in a loop (``torch.zeros(b, cell.size)``) or by a method of the cell."""
    found: Repairs = {}
    paths = [s.path for s in stale]
    for run in job.runs(node):
        now = dict(numbers(run.args, run.kwargs))
        wanted = dict(zip(paths, job.wanted(run, paths), strict=True))
        changed = {(now.get(p), w) for p, w in wanted.items() if now.get(p) != w}
        if len(changed) > 1 or any(type(n) is not int for sizes in changed for n in sizes):
            return
        for old, new in changed:
            for scope in _readers(run):
                known = repairs[scope].attributes if scope in repairs else {}
                names = [n for n in _spelt(job, run, scope, stale) if n not in known]
                same = [n for n in names if held(job.model.get_submodule(scope), n, {}) == old]
                if len(same) == 1:
                    found = joined(found, {scope: Repair({same[0]: new}, {same[0]: old})})
    if found:
        yield found


def _readers(node: Node) -> list[str]:
    """The modules that read what a call makes for them, as it is or after calls beside it."""
    scopes: dict[str, None] = {}
    near, seen = [node], {node}
    for each in near:
        for reader in dict.fromkeys(n for v in each.outputs for n, _ in v.uses):
            if reader.scope != node.scope:
                scopes[reader.scope] = None
            elif reader not in seen:
                seen.add(reader)
                near.append(reader)
    return list(scopes)


def _spelt(job: Job, node: Node, scope: str, stale: list[Stale]) -> list[str]:
    """The names of attributes, of whatever, that the code of a call reads in its arguments.

    Args:
        scope: a module that may have the method which makes the call.
    """
    places = [p for path in (node.scope, scope) for p in places_of(node, job.model.get_submodule(path))]
    given = [g.expression for p in places for s in stale for g in sources(p, s, node)]
    trees = [n for tree in (*given, *(p.call for p in places)) for n in ast.walk(tree)]
    return list(dict.fromkeys(n.attr for n in trees if isinstance(n, ast.Attribute)))


def guesses(job: Job, node: Node, path: str, method: str, repairs: Repairs) -> Iterator[Repairs]:
    """Attributes that hold a size of tensors near the call which is smaller now: Python code itself may compare them.

    Args:
        path, method: of a module, where the code may stand.
    """
    keeps, module = job.keeps, job.model.get_submodule(path)
    place = place_of_method(module, method)
    if place is None:
        return
    near = [n for n in job.graph.nodes if n.scope in (node.scope, path)]
    sizes = {
        (v.shape[a], s)
        for n in near
        for v in (*n.tensors, *n.outputs)
        for a, s in enumerate(keeps.shape(v))
        if s != v.shape[a]
    }
    for owner, name, value in _read_in(place, module):
        at = f"{path}.{owner}".strip(".")
        new = {small for full, small in sizes if full == value}
        if len(new) == 1 and (at not in repairs or name not in repairs[at].attributes):
            yield {at: Repair({name: new.pop()}, {name: value})}


def _read_in(place: Place, module: nn.Module) -> Iterator[tuple[str, str, int]]:
    """The integer attributes that a method reads, of its module and of those in it: of which, name, and value."""
    for name, value in mentioned(place, module, place.found.tree, {}):
        yield "", name, value
    for child, part in module.named_children():
        yield from ((child, name, value) for name, value in mentioned(place, part, place.found.tree, {}, child))
