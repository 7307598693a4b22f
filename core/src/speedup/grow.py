"""The least keep sets: a second, growing fixpoint on top of the facts.

It starts from what must stay, an entry that is read and not constant, and lets every rule add what its call needs,
until none needs more. What leaves a choice comes last (``Stage``), when it is known what is kept anyway.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any

import numpy as np

from speedup.arrays import any_of, everything, nothing, some, unfit
from speedup.ask import ask
from speedup.graph import Graph
from speedup.keep import KeepSets, Lock, Stage
from speedup.kinds import Kind
from speedup.known import Facts
from speedup.node import Node, Value
from speedup.node_keep import NodeKeep
from speedup.regular import Lines
from speedup.rule import Rule
from speedup.sets import Product
from speedup.tie import box_of, derive_parts, derived_operands

_WHY_LOOSE = "with other data other calls read it, or give what comes in its place"
_WHY_INSTEAD = "with other data another tensor comes in its place, which keeps it"
_WHY_NEXT = "the forward changes it, and the next call reads it"


def keep_sets(graph: Graph, facts: Facts, locks: Iterable[Lock] = (), drop: bool = False) -> KeepSets:
    """Find the smallest keep sets.

    Args:
        locks: values that must stay whole along some axes.
        drop: whether removed constants are left out instead of folded.

    Raises:
        RuleError: a rule raised.
    """
    keeps = _begun(graph, facts, drop)
    _require_needed(keeps)
    nodes = {n.index: NodeKeep(keeps, n) for n in graph.nodes if n.rule is not None}
    by_number = {v.number: v for v in graph.values}
    held = [(by_number[lock.value], lock) for lock in locks]
    for value, lock in held:
        if lock.axes is None:
            wanted = everything(value.ndim) if lock.entries is None else lock.entries
            keeps.grow(value, wanted, lock.why, value.producer, None, lock.kind)
    _share(keeps, graph.together)
    keeps.stage = Stage.LINKED
    _sweep(keeps, nodes)
    keeps.stage, waiting, keeps.waiting = Stage.CARRIED, keeps.waiting, set()
    _settle(keeps, nodes, waiting)
    keeps.stage = Stage.FILLED
    # Only now is it known which lines are empty: one entry each, and again to the fixpoint.
    more = [v for v, lock in held if lock.axes is not None and _fill(keeps, v, lock.axes, lock.why, lock.kind)]
    for value in graph.values:
        if not value.is_source and keeps.is_empty(value):
            _fill(keeps, value, (), "a tensor keeps at least one index", Kind.LEAST)
            more.append(value)
    more += _share(keeps, graph.together)
    _settle(keeps, nodes, keeps.waiting.union(*(_near(v) for v in more)))
    for keep in nodes.values():
        _derive_weights(keeps, keep)
    return keeps


def bare_keep_sets(graph: Graph) -> KeepSets:
    """What must stay whatever the masks are: keep sets in which no call has been asked what it needs."""
    return _begun(graph, Facts(graph, {}))


def _begun(graph: Graph, facts: Facts, drop: bool = False) -> KeepSets:
    keeps = KeepSets(graph, facts, drop)
    none = {ndim: nothing(ndim) for ndim in {v.ndim for v in graph.values}}
    for value in graph.values:
        keeps.sets[value] = none[value.ndim]
        keeps.events[value] = []
    _require_whole(keeps)
    return keeps


def _require_whole(keeps: KeepSets) -> None:
    """What must stay whatever the masks are."""
    branch, uncertain, loose = keeps.graph.branch, keeps.graph.uncertain, keeps.graph.loose

    def stays(value: Value, why: str, node: Node | None, kind: Kind) -> None:
        keeps.grow(value, everything(value.ndim), why, node, None, kind)

    for value in keeps.graph.values:
        made = value.producer
        if value.is_output:
            stays(value, "an output of the model keeps its shape", made, Kind.OUTPUT)
        elif made is None and not value.is_source:
            why, kind = what_comes(value)
            stays(value, why, None, kind)
        elif made is not None and made.rule is None:
            stays(value, f"made by {made.op_name}, which no rule knows", made, Kind.BARRIER)
        if branch is not None and value in uncertain:
            stays(value, branch.why, branch.node, branch.kind)
        if value in loose:
            stays(value, _WHY_LOOSE, made, Kind.DATA)
        for node, number in value.uses:
            if node.rule is None or number < 0:
                stays(value, f"read by {node.op_name}, which no rule knows", node, Kind.BARRIER)


def what_comes(value: Value) -> tuple[str, Kind]:
    """What a tensor is that no call makes, and that is neither a parameter nor a buffer: it comes as it is."""
    if value.kind == "input":
        return "an input of the model, which comes as it is", Kind.INPUT
    name = value.names[0] if value.names else "a tensor from outside of the model"
    return f"{name}, which is neither a parameter nor a buffer", Kind.ATTRIBUTE


def _require_needed(keeps: KeepSets) -> None:
    """What is read and cannot be told without the input."""
    facts = keeps.facts
    for value in keeps.graph.values:
        made = value.producer
        if made is None:
            continue
        unused = facts.unused(value)
        if unused is everything(value.ndim):
            continue
        needed = ~(unused | facts.known(value))
        if some(needed):
            keeps.grow(value, needed, "it is read and not constant", made, None, Kind.NEEDED)


def _fill(keeps: KeepSets, value: Value, axes: tuple[int, ...], why: str, kind: Kind) -> bool:
    """Keep something at every index of ``axes``: the first entry of each line that keeps nothing."""
    flexible = [a for a, r in enumerate(keeps.rigid[value]) if not r]
    shape = tuple(s if a in flexible else 1 for a, s in enumerate(value.shape))
    rest = tuple(a for a in range(value.ndim) if a not in axes)
    empty = ~any_of(np.broadcast_to(keeps.sets[value], shape), rest)
    first = np.ones(shape, dtype=bool)
    for axis in rest:
        first = first & (np.arange(shape[axis]) == 0).reshape([-1 if a == axis else 1 for a in range(value.ndim)])
    return keeps.grow(value, first & empty, why, value.producer, None, kind)


def _share(keeps: KeepSets, changed: Iterable[Value]) -> list[Value]:
    """Let values that may stand in the place of one another keep the same; those that keep more now."""
    waiting, grown = list(changed), []
    while waiting:
        value = waiting.pop()
        for other in keeps.graph.together[value]:
            entries = any_of(keeps.sets[value], unfit(keeps.sets[value], other.shape))
            is_next = value.next is other or other.next is value
            why, kind = (_WHY_NEXT, Kind.RULE) if is_next else (_WHY_INSTEAD, Kind.DATA)
            if keeps.grow(other, entries, why, other.producer, value, kind):
                waiting.append(other)
                grown.append(other)
    return grown


def _near(value: Value) -> set[int]:
    """The calls with a rule that make or read a value."""
    near = [n for n, _ in value.uses] + ([value.producer] if value.producer is not None else [])
    return {n.index for n in near if n.rule is not None}


def _sweep(keeps: KeepSets, nodes: dict[int, NodeKeep]) -> None:
    """Ask all calls until none needs more: in sweeps to and fro, backwards first, since most needs are readers'."""
    behind, direction = set(nodes), -1
    while behind:
        ahead, behind = behind, set()
        heap = [direction * index for index in ahead]
        heapq.heapify(heap)
        while heap:
            index = direction * heapq.heappop(heap)
            ahead.discard(index)
            for other in _constrain(keeps, nodes[index]) - ahead:
                if direction * other > direction * index:
                    ahead.add(other)
                    heapq.heappush(heap, direction * other)
                else:
                    behind.add(other)
        direction = -direction


def _settle(keeps: KeepSets, nodes: dict[int, NodeKeep], start: Iterable[int]) -> None:
    """Ask calls until none needs more, the earliest first: what one has chosen reaches the next before that chooses."""
    heap = list(start)
    waiting = set(heap)
    heapq.heapify(heap)
    while heap:
        index = heapq.heappop(heap)
        waiting.discard(index)
        for other in _constrain(keeps, nodes[index]) - waiting:
            waiting.add(other)
            heapq.heappush(heap, other)


def _constrain(keeps: KeepSets, keep: NodeKeep) -> set[int]:
    """Let a rule add what its call needs; the calls that must be asked because of what is new."""
    node = keep.node
    keep.settled, keep.changed = False, set()
    ask(node, "constrain", keep)
    if not keep.changed:
        return set()
    asked = set().union(*(_near(v) for v in keep.changed)) - ({node.index} if keep.settled else set())
    return asked.union(*(_near(v) for v in _share(keeps, keep.changed & keeps.graph.together.keys())))


def _derive_weights(keeps: KeepSets, keep: NodeKeep) -> None:
    """Weights that one call alone reads keep the product of what its other operands keep."""
    node, derived = keep.node, keep.derived
    if not derived:
        return
    kind: Any = type(node.rule)
    plain = kind.derive is Rule.derive  # another one may be that of a rule without axes
    own = derived_operands(node) if plain and kind.derived is not Rule.derived else derived
    boxes: dict[Any, Lines | None] = {}  # the four vectors of a batch norm keep the same
    products: dict[Any, Product] = {}
    for k in sorted(derived):
        value = node.operands[k]
        assert value is not None
        if not plain:
            keeps.derive(value, Product([ask(node, "derive", k, keep.sets)]), node)
            continue
        axes = node.layout.operands[k] if k in own else k
        if axes not in boxes:
            boxes[axes] = box_of(node, k, own, keep.sets)
        box = boxes[axes]
        if box is not None and keeps.is_empty(value):
            keeps.derive_box(value, box, node)
            continue
        if axes not in products:
            products[axes] = Product(derive_parts(node, k, own, keep.sets))
        keeps.derive(value, products[axes], node)
