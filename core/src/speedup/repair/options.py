"""What may repair one call that differs from the plan, to be tried one after another."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from speedup.mismatch import Mismatch
from speedup.node import Node
from speedup.repair.arguments import Given, numbers
from speedup.repair.attributes import held, repaired
from speedup.repair.expressed import given_by, sources
from speedup.repair.job import Job
from speedup.repair.locate import Place, in_other_modules, places_of
from speedup.repair.parts import Repair, Repairs, joined
from speedup.repair.rewrite import Edit, Via, span_of
from speedup.repair.stale import CALLEE, Stale, stale_numbers
from speedup.repair.unnamed import guesses, of_readers

Call = tuple[Node, Place, nn.Module, list[Stale]]


def options(job: Job, found: Mismatch, repairs: Repairs, attributes: bool, alone: bool = False) -> Iterator[Repairs]:
    """Repairs that may make the call as the plan wants it, the best first.

    Args:
        repairs: what is repaired already.
        attributes: whether attributes may change.
        alone: leave the same call in other modules of its class as it is.
    """
    node = found.node
    module = job.model.get_submodule(node.scope)
    if found.args is None or found.kwargs is None:
        if attributes:
            for path, name in dict.fromkeys((*found.raised, (node.scope, "forward"))):
                yield from guesses(job, node, path, name, repairs)
        return
    ran = found.nodes[node.index] if node.index < len(found.nodes) else node
    stale = stale_numbers(node, job.keeps, found.args, found.kwargs, ran)
    if not stale:
        return
    if not job.agree(node, stale):
        rest = _left_over(node, stale)
        for place in places_of(node, module):
            if attributes and not found.numbers and job.in_proportion(node, stale):
                made = _by_attributes((node, place, module, stale), repairs, rest=False)
                if made is not None and made.attributes:
                    yield {node.scope: made}
            if rest is not None:
                yield from _options([(node, place, module, [rest])], repairs, attributes=False)
    else:
        for depth, place in enumerate(places_of(node, module)):
            others = () if alone else _alike(job, found, stale, depth)
            calls: list[Call] = [(node, place, module, stale), *others]
            yield from _options(calls, repairs, attributes and not found.numbers)
    if attributes and not found.numbers:
        yield from of_readers(job, node, stale, repairs)


def _options(calls: Sequence[Call], repairs: Repairs, attributes: bool) -> Iterator[Repairs]:
    """What may repair a call and those like it.

    Args:
        calls: the call that differs first.
    """
    node, place, _, stale = calls[0]
    if attributes:
        alone, first = (_all(calls, partial(_by_attributes, repairs=repairs, rest=rest)) for rest in (False, True))
        # A number that is made of the attribute follows it.
        for option in (alone, first) if alone != first else (first,):
            if any(r.attributes for r in option.values()):
                yield option
    choices = max(len(given_by(place, s, node)) for s in stale)
    for choice in range(choices):
        by_edits = _all(calls, partial(_by_edits, choice=choice))
        if node.scope in by_edits:
            yield by_edits


def _all(calls: Sequence[Call], repair: Callable[[Call], Repair | None]) -> Repairs:
    """The repairs of several calls; nothing when the first of them cannot be repaired."""
    out: Repairs = {}
    for number, call in enumerate(calls):
        made = repair(call)
        if made is not None:
            out = joined(out, {call[0].scope: made})
        elif number == 0:
            return {}
    return out


def _left_over(node: Node, stale: list[Stale]) -> Stale | None:
    """Of a call that wants other sizes in other runs, the one that is stale as -1, "what is left". None where that is
    not possible: it may be no size, or another one is what is left already."""
    if len(stale) != 1 or node.rule is None or not node.rule.moves or len(node.outputs) != 1:
        return None
    shape, path = node.outputs[0].shape, stale[0].path
    sizes = [(p, n) for p, n in numbers(node.args, node.kwargs) if p[:-1] == path[:-1]][-len(shape) :]
    spelled = tuple(n for _, n in sizes) == shape and path in dict(sizes)
    return replace(stale[0], wanted=-1) if spelled else None


def _alike(job: Job, found: Mismatch, stale: list[Stale], depth: int) -> Iterator[Call]:
    """The same call in other modules of the same class, later in the run, which holds the same numbers."""
    node = found.node
    paths = {s.path for s in stale}
    for other in in_other_modules(node, job.graph):
        ran = found.nodes[other.index] if other.index < len(found.nodes) else None
        args, kwargs = (ran.args, ran.kwargs) if ran is not None else (other.args, other.kwargs)
        if ran is None and job.twins(node, other):
            more = stale
        elif ran is None and not job.foreseen(node, other, stale):
            continue
        else:
            more = [s for s in stale_numbers(other, job.keeps, args, kwargs, ran or other) if s.path in paths]
        module = job.model.get_submodule(other.scope)
        places = places_of(other, module)
        if more and depth < len(places) and job.agree(other, more):
            yield other, places[depth], module, more


# -- one call ---------------------------------------------------------------------------------------------------------


def _edit(stale: Stale, given: Given) -> Edit | None:
    place, expression, rest = given.place, given.expression, given.rest
    if len(rest) > 1 or (rest and not (isinstance(rest[0], int) and rest[0] >= 0)):
        return None
    via, keyword, caller = None, None, place.caller
    callee = stale.wanted if stale.path == CALLEE else None
    if callee is None and stale.now is None and expression is place.call:
        keyword = str(stale.path[0])
    if caller is not None:
        assert isinstance(caller.call, ast.Call)
        name = span_of(caller.call.func, caller.found.tree)
        via = Via(caller.function.__qualname__, caller.found.digest, name)
    return Edit(
        method=place.method,
        function=place.function.__qualname__,
        digest=place.found.digest,
        span=span_of(expression, place.found.tree),
        item=rest[0] if rest else None,
        old=stale.now,
        new=stale.wanted if callee is None else None,
        text=place.found.text(expression),
        via=via,
        keyword=keyword,
        callee=callee,
    )


def _by_edits(call: Call, choice: int = 0) -> Repair | None:
    node, place, _, stale = call
    edits: dict[Any, Edit] = {}
    for each in stale:
        given = given_by(place, each, node)
        if not given:
            return None
        made = _edit(each, given[min(choice, len(given) - 1)])
        if made is None:
            return None
        place_in_it = (made.via, made.span, made.item, made.keyword, made.callee)
        if edits.setdefault(place_in_it, made) != made:
            return None
    return Repair(edits=tuple((e, node.op_name, node.where) for e in edits.values()))


def _by_attributes(call: Call, repairs: Repairs, rest: bool) -> Repair | None:
    """Attributes where they give the stale numbers, edits for the rest if it is asked for."""
    node, place, module, stale = call
    changed = dict(repairs[node.scope].attributes) if node.scope in repairs else {}
    found: dict[str, Any] = {}
    left = []
    for each in stale:
        lists = {n: v for n, v in found.items() if not isinstance(v, int)}  # which may change in several items
        made = repaired(module, each, sources(place, each, node), {**changed, **lists})
        if not made or any(found.get(n, v) != v for n, v in made.items() if isinstance(v, int)):
            left.append(each)
        else:
            found.update(made)
    if not found:
        return _by_edits(call)
    edits = _by_edits((node, place, module, left)) if left and rest else Repair()
    return None if edits is None else replace(edits, attributes=found, before={n: held(module, n, {}) for n in found})
