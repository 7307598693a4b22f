"""What may repair one call that differs from the plan, to be tried one after another."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

from torch import nn

from speedup.check import Mismatch
from speedup.graph import Graph, Node
from speedup.instead import instead_of
from speedup.keep import KeepSets
from speedup.repair.arguments import Given, Path, behind, expressions, literals, numbers, others, passed
from speedup.repair.attributes import held, mentioned, repaired
from speedup.repair.locate import Place, place_of_method, places_of, runs_of
from speedup.repair.method import named
from speedup.repair.parts import Repair, Repairs, joined
from speedup.repair.rewrite import Edit, Via, is_literal, span_of
from speedup.repair.stale import CALLEE, RESULT, Stale, missing, stale_numbers, wanted_factor, wanted_numbers

Call = tuple[Node, Place, nn.Module, list[Stale]]


@dataclass(frozen=True, eq=False)
class Job:
    """What is being repaired: a model, its graph and the plan for it."""

    model: nn.Module
    graph: Graph
    keeps: KeepSets


def options(job: Job, found: Mismatch, repairs: Repairs, attributes: bool) -> Iterator[Repairs]:
    """Repairs that may make the call as the plan wants it, the best first.

    Args:
        repairs: what is repaired already.
        attributes: whether attributes may change.
    """
    node = found.node
    module = job.model.get_submodule(node.scope)
    if found.args is None or found.kwargs is None:
        if attributes:
            for path, name in dict.fromkeys((*found.raised, (node.scope, "forward"))):
                yield from _guesses(job, node, path, name, repairs)
        return
    ran = found.nodes[node.index] if node.index < len(found.nodes) else node
    stale = stale_numbers(node, job.keeps, found.args, found.kwargs, ran)
    if not stale:
        return
    if not _agree(job, node, stale):
        rest = _left_over(node, stale)
        for place in places_of(node, module):
            if attributes and not found.numbers and _in_proportion(job, node, stale):
                made = _by_attributes((node, place, module, stale), repairs, rest=False)
                if made is not None and made.attributes:
                    yield {node.scope: made}
            if rest is not None:
                yield from _options([(node, place, module, [rest])], repairs, attributes=False)
        if attributes and not found.numbers:
            yield from _of_readers(job, node, stale, repairs)
        return
    for depth, place in enumerate(places_of(node, module)):
        calls: list[Call] = [(node, place, module, stale), *_alike(job, found, stale, depth)]
        yield from _options(calls, repairs, attributes and not found.numbers)
    if attributes and not found.numbers:
        yield from _of_readers(job, node, stale, repairs)


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
    choices = max(len(_given(place, s, node)) for s in stale)
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


def _agree(job: Job, node: Node, stale: list[Stale]) -> bool:
    """Whether all runs of one call want the same numbers: in a loop, in a module that is called twice, in a method that
    others call."""
    paths = [s.path for s in stale]
    mine = _wanted(job, node, paths)
    return all(_wanted(job, n, paths) == mine for n in _runs(job, node))


def _in_proportion(job: Job, node: Node, stale: list[Stale]) -> bool:
    """Whether the numbers of each run become smaller alike, so that all may be made of one attribute."""
    paths = [s.path for s in stale]
    shares = set()
    for each in _runs(job, node):
        given = dict(numbers(each.args, each.kwargs))
        for path, wanted in zip(paths, _wanted(job, each, paths), strict=True):
            if type(given.get(path)) is not int or type(wanted) is not int:
                return False
            shares |= {Fraction(wanted, given[path])} if given[path] else set()
    return len(shares) == 1


def _runs(job: Job, node: Node) -> list[Node]:
    return runs_of(node, job.graph, job.model.get_submodule(node.scope))


def _left_over(node: Node, stale: list[Stale]) -> Stale | None:
    """Of a call that wants other sizes in other runs, the one that is stale as -1, "what is left". None where that is
    not possible: it may be no size, or another one is what is left already."""
    if len(stale) != 1 or node.rule is None or not node.rule.moves or len(node.outputs) != 1:
        return None
    shape, path = node.outputs[0].shape, stale[0].path
    sizes = [(p, n) for p, n in numbers(node.args, node.kwargs) if p[:-1] == path[:-1]][-len(shape) :]
    spelled = tuple(n for _, n in sizes) == shape and path in dict(sizes)
    return replace(stale[0], wanted=-1) if spelled else None


def _wanted(job: Job, node: Node, paths: list[Path]) -> list[Any]:
    made = instead_of(node, job.keeps)
    told = made.numbers if made is not None else {}
    places = [path for path, _ in numbers(node.args, node.kwargs) if path[0] not in told]
    wanted = dict(zip(places, wanted_numbers(node, job.keeps), strict=True))
    wanted.update({(name,): value for name, value in (*missing(node, job.keeps).items(), *told.items())})
    wanted[RESULT] = wanted_factor(node, job.keeps)
    wanted[CALLEE] = made.function if made is not None else None
    return [wanted.get(path) for path in paths]


def _alike(job: Job, found: Mismatch, stale: list[Stale], depth: int) -> Iterator[Call]:
    """The same call in other modules of the same class, later in the run, which holds the same numbers."""
    node = found.node
    paths = {s.path for s in stale}
    seen = {node.scope}
    for other in job.graph.nodes[node.index + 1 :]:
        if other.scope in seen or other.sites != node.sites or other.op is not node.op:
            continue
        seen.add(other.scope)
        ran = found.nodes[other.index] if other.index < len(found.nodes) else None
        args, kwargs = (ran.args, ran.kwargs) if ran is not None else (other.args, other.kwargs)
        if ran is None and _twins(job, node, other):
            more = stale
        elif ran is None and not _foreseen(job, node, other, stale):
            continue
        else:
            more = [s for s in stale_numbers(other, job.keeps, args, kwargs, ran or other) if s.path in paths]
        module = job.model.get_submodule(other.scope)
        places = places_of(other, module)
        if more and depth < len(places) and _agree(job, other, more):
            yield other, places[depth], module, more


def _twins(job: Job, node: Node, other: Node) -> bool:
    """Whether two calls had and should have the same numbers."""
    old = numbers(node.args, node.kwargs) == numbers(other.args, other.kwargs)
    same = wanted_numbers(node, job.keeps) == wanted_numbers(other, job.keeps)
    factors = wanted_factor(node, job.keeps), wanted_factor(other, job.keeps)
    made = instead_of(node, job.keeps) == instead_of(other, job.keeps)
    return old and same and made and factors[0] == factors[1] and missing(node, job.keeps) == missing(other, job.keeps)


def _foreseen(job: Job, node: Node, other: Node, stale: list[Stale]) -> bool:
    """Whether a call that was not made yet will hold the numbers that it held, as the first one does.

    It does where both forwards are given as much as before, or where both are given equally less.
    """
    held = {**dict(numbers(node.args, node.kwargs)), RESULT: 1.0}
    return all(held.get(s.path) == s.now for s in stale) and _given_less(job, node) == _given_less(job, other)


def _given_less(job: Job, node: Node) -> list[tuple[Fraction, ...]]:
    """The share of the sizes that is left of what the forward around a call is given."""
    near = (n for n in job.graph.nodes if n.scope == node.scope)
    given = next(filter(None, ([v for v in n.tensors if v in job.graph.from_input] for n in near)), [])
    kept = [job.keeps.shape(v) for v in given]
    return [tuple(map(Fraction, k, v.shape)) for k, v in zip(kept, given, strict=True) if 0 not in v.shape]


# -- one call ---------------------------------------------------------------------------------------------------------


def _given(place: Place, stale: Stale, node: Node) -> list[Given]:
    """The expressions that may give a stale number."""
    if stale.path == RESULT:
        return [Given(place, place.call, ())] if place.direct and isinstance(place.call, ast.Call) else []
    if stale.path == CALLEE:
        call = place.call
        plain = place.direct and isinstance(call, ast.Call) and named(place.function, call.func) is node.op
        return [Given(place, call, ())] if plain and isinstance(call, ast.Call) else []
    known = [Given(place, e, rest) for e, rest in expressions(place, stale.path, node)]
    if stale.now is None and not known and place.direct and isinstance(place.call, ast.Call):
        return [Given(place, place.call, ())]
    if len(known) > 1:
        known = [g for g in known if not is_literal(g.expression) or _gives(g.expression, stale.now)]
    if known or type(stale.now) is not int:
        return [passed(g) for g in known]
    return [Given(place, e, ()) for e in (*literals(place, stale.now), *(() if place.direct else others(place)))]


def _sources(place: Place, stale: Stale, node: Node) -> list[Given]:
    """The same, and what stands behind local names."""
    args = node.args
    value = args[stale.path[0]] if isinstance(stale.path[0], int) and stale.path[0] < len(args) else None
    return [behind(g, value) for g in _given(place, stale, node)]


def _gives(expression: ast.expr, number: int | float | None) -> bool:
    code = compile(ast.fix_missing_locations(ast.Expression(expression)), "", "eval")
    return bool(eval(code, {"__builtins__": {}}) == number)


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
        given = _given(place, each, node)
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
        made = repaired(module, each, _sources(place, each, node), {**changed, **lists})
        if not made or any(found.get(n, v) != v for n, v in made.items() if isinstance(v, int)):
            left.append(each)
        else:
            found.update(made)
    if not found:
        return _by_edits(call)
    edits = _by_edits((node, place, module, left)) if left and rest else Repair()
    return None if edits is None else replace(edits, attributes=found, before={n: held(module, n, {}) for n in found})


def _of_readers(job: Job, node: Node, stale: list[Stale], repairs: Repairs) -> Iterator[Repairs]:
    """Attributes that the code reads of other modules, those which are given what the runs of a call make: the first
    state of each cell, made in a loop (``torch.zeros(b, cell.size)``) or by a method of the cell."""
    found: Repairs = {}
    paths = [s.path for s in stale]
    for run in _runs(job, node):
        now = dict(numbers(run.args, run.kwargs))
        wanted = dict(zip(paths, _wanted(job, run, paths), strict=True))
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
    given = [g.expression for p in places for s in stale for g in _sources(p, s, node)]
    trees = [n for tree in (*given, *(p.call for p in places)) for n in ast.walk(tree)]
    return list(dict.fromkeys(n.attr for n in trees if isinstance(n, ast.Attribute)))


def _guesses(job: Job, node: Node, path: str, method: str, repairs: Repairs) -> Iterator[Repairs]:
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
