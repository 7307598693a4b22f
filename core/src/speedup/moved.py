"""Data movement that mixes axes may move other entries at another size of the input.

``x.reshape(b, c, h, w)`` of pixels by channels, (b, h * w, c), takes a channel for a run of pixels: which ones depends
on the size of the image. What can go of such a call at the size of the dummy input need not at another one. So where a
plan takes entries from axes that a call mixes with others, the model is run at other sizes, the same entries are
taken there, and the call must still give the entries that are kept. Where it does not, it is kept whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from speedup.arrays import Bools, compact_axes
from speedup.ask import ask
from speedup.elsewhere import Elsewhere
from speedup.graph import Graph
from speedup.keep import KeepSets, Lock
from speedup.kinds import Kind
from speedup.movement import Movement
from speedup.node import Node, Value
from speedup.order import same_orders
from speedup.regular import is_regular, varied
from speedup.vary import Case

_WHY = "at another size of the input it moves other entries"


def moving(elsewhere: Elsewhere, keeps: KeepSets) -> list[Node]:
    """The calls that do not hold at other sizes: what they read and make is to be kept whole."""
    mixing = [n for n in elsewhere.graph.nodes if mixes(n, keeps)]
    if not mixing:
        return []
    here = _by_place(elsewhere.graph)
    found: dict[Node, None] = {}

    def takes(case: Case) -> bool:
        other = elsewhere.run(case)
        if other is None:
            return False
        there = _by_place(other)
        sets: dict[Value, Bools] = {}
        for node in mixing:
            own, others = here[node.place], there.get(node.place, [])
            if len(own) == len(others) and not _holds(node, others[own.index(node)].claimed(), keeps, sets):
                found[node] = None
        return True

    elsewhere.at_sizes(takes)
    return list(found)


def locks(nodes: Iterable[Node], keeps: KeepSets) -> list[Lock]:
    """What keeps all that calls read and make."""
    return [
        Lock(v.number, tuple(varied(keeps.sets[v])), f"{_WHY} ({node.where})", kind=Kind.RIGID)
        for node in nodes
        for v in dict.fromkeys((*node.operands, *node.outputs))
        if v is not None and not keeps.whole(v)
    ]


def mixes(node: Node, keeps: KeepSets) -> bool:
    """Whether a call moves an axis that loses indices to where one goes that never does: one of the input, perhaps."""
    rule = node.rule
    if not isinstance(rule, Movement) or all(keeps.whole(v) for v in node.operands if v is not None):
        return False
    if rule.merges and all(_is_fixed(v, a) for v in node.outputs for a in varied(keeps.sets[v])):
        return False  # it has the same entries in the same order wherever it has as many
    values = [v for v in node.operands if v is not None]
    losing = {a for v in values for a in varied(keeps.sets[v])}
    rigid = {a for v in values for a, r in enumerate(keeps.rigid[v]) if r}
    for origin in rule.origins(node):
        along = origin.along
        if any(along[a] & along[b] for a in losing for b in rigid - {a} if max(a, b) < len(along)):
            return True
    return False


def _is_fixed(value: Value, axis: int) -> bool:
    """Whether an axis has the same size in every run, that of a parameter: each call that reads it ties it to one, or
    gives it on to calls that do."""
    for node, number in value.uses:
        if node.rule is None or node.rule.moves or not node.rule.has_signature or number < 0:
            return False
        dims = node.layout.operands
        names = (dims[number] or ())[axis]
        if any(v is not None and v.is_source and names in (d or ()) for v, d in zip(node.values, dims, strict=True)):
            continue
        outputs = dims[len(node.operands) :]
        onward = [(v, d.index(names)) for v, d in zip(node.outputs, outputs, strict=True) if d and names in d]
        if not onward or not all(_is_fixed(*each) for each in onward):
            return False
    return bool(value.uses)


def _holds(node: Node, other: Node, keeps: KeepSets, sets: dict[Value, Bools]) -> bool:
    """Whether a call at another size gives what is kept of what is kept.

    Args:
        node: the call at the size of the dummy input.
        other: the same one at another size.
        sets: what is kept of values of the other run, as far as it is known by calls like this one.
    """
    rule = other.rule
    if not isinstance(rule, Movement) or len(other.values) != len(node.values) or rule.copies(node):
        return True
    if any(v is None or 0 in v.shape for v in other.values):
        return True
    n = len(node.operands)
    known = [_there(a, b, keeps, sets) for a, b in zip(node.values, other.values, strict=True)]
    if any(k is None for k in known[:n]) and all(k is not None for k in known[n:]):
        known[:n] = rule.scatter(other, cast(list[Bools], known[n:]))
    if any(k is None for k in known[:n]):
        return True  # nothing tells what is kept there
    moved = rule._with_fill(other, rule.gather(other, cast(list[Bools], known[:n]), False))
    for k, (value, mask) in enumerate(zip(other.outputs, moved, strict=True), n):
        wanted = known[k]
        if wanted is None:
            sets[value] = known[k] = rule._regular(other, k, mask)
        elif (mask & ~wanted).any():
            return False
    kept = cast(list[Bools], known)
    read = rule.scatter(other, kept[n:])
    if any((r & ~k).any() for r, k in zip(read, kept, strict=False)) or not all(map(is_regular, kept)):
        return False
    orders = keeps.orders_of(node)
    found = ask(other, "arrange", kept, [*orders[:n], *({} for _ in other.outputs)])
    return found is not None and all(map(same_orders, found, orders))


def _there(value: Value | None, other: Value | None, keeps: KeepSets, sets: Mapping[Value, Bools]) -> Bools | None:
    """What is kept of a value of the other run: what is kept here, where it is told along axes of the same size."""
    assert value is not None and other is not None
    if other in sets:
        return sets[other]
    (mask,) = compact_axes(keeps.sets[value])
    fits = value.ndim == other.ndim and all(mask.shape[a] == other.shape[a] for a in varied(mask))
    return mask if fits else None


def _by_place(graph: Graph) -> Mapping[tuple[str, str, str], Sequence[Node]]:
    found: dict[tuple[str, str, str], list[Node]] = defaultdict(list)
    for node in graph.nodes:
        found[node.place].append(node)
    return found
