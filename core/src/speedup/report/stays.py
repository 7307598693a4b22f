"""Which masked indices stay, and the call at which the reason starts.

Every addition to a keep set is noted with its cause (``speedup.keep.Event``). From the output that a masked index makes
the causes are followed back to an addition that has none: the root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from speedup.arrays import Bools, all_of, along, any_of
from speedup.barriers import command_for
from speedup.errors import SignatureError
from speedup.graph import Graph
from speedup.grow import what_comes
from speedup.infer import unseen
from speedup.keep import Event, KeepSets
from speedup.kinds import Kind
from speedup.node import Node, Value
from speedup.report.data import Kept
from speedup.report.partners import at_other, partners, weighs
from speedup.tie import WHY_ALL


@dataclass(eq=False)
class Root:
    """Where a reason starts.

    Attributes:
        event: the addition that has no cause.
        value: the value that it was made to.
        entries: the entries of the value that are meant, None when they cannot be followed there.
        part: the indices of the weight that stay for it.
        join: the first call on the way there that joins several tensors.
    """

    event: Event
    value: Value
    entries: Bools | None
    part: Bools
    join: Node | None


def find_stays(graph: Graph, keeps: KeepSets) -> list[Kept]:
    """Masked indices of parameters that are kept all the same, with the root of the reason.

    Along the first axis, and along others that make an axis of the output (the columns of a table of embeddings).
    """
    found = []
    for value in keeps.facts.masked:
        seen = 0
        for axis in _axes(value):
            stay = staying(keeps, value, axis)
            if not stay.any() or (seen and stay.all()):  # a weight that is masked whole is told of once
                continue
            seen += 1
            each = prod(s for a, s in enumerate(keeps.shape(value)) if a != axis)
            for root in _merged(roots(value, stay, keeps, axis)):
                indices = [int(i) for i in np.flatnonzero(root.part)]
                found.append(_kept(value.names[0], indices, each * len(indices), root, keeps, axis))
    return found


def _axes(value: Value) -> list[int]:
    """The first axis of a parameter, and all others of which the indices come out."""
    others: list[int] = []
    node = value.uses[0][0] if value.uses else None
    if value.ndim > 1 and node is not None and node.rule is not None and value in node.operands:
        try:
            layout = node.layout
        except SignatureError:
            return [0]
        dims = layout.operands[node.operands.index(value)]
        out = {n for n in layout.names_of(layout.n_inputs) if layout.sizes[n] > 1}
        others = [a for a, dim in enumerate(dims or ()) if a > 0 and out.intersection(dim)]
    return [0, *others]


def staying(keeps: KeepSets, value: Value, axis: int = 0) -> Bools:
    """Which indices of a parameter along an axis are masked whole and have anything kept."""
    masked = keeps.facts.masked.get(value)
    if masked is None or value.ndim < 1 or not value.is_read:
        return np.zeros(value.shape[axis : axis + 1] or (1,), dtype=bool)
    inner = tuple(a for a in range(value.ndim) if a != axis)
    whole = all_of(masked, inner).reshape(-1)
    stay = whole & keeps.lines(value).get(axis, np.True_) if whole.any() else whole
    return np.broadcast_to(stay, (value.shape[axis],))


def _kept(name: str, indices: list[int], parameters: int, root: Root, keeps: KeepSets, axis: int) -> Kept:
    event, node, why, kind = root.event, root.event.node, root.event.why, root.event.kind
    if kind is Kind.RIGID and node is not None:
        kind, why, node = _rigid(node, keeps) or (kind, why, node)
    apart: tuple[str, ...] = ()
    if event.kind is Kind.NEEDED and root.entries is not None:
        apart = partners(keeps, root.value, root.entries)
        if root.join is not None:
            node, why = root.join, "joined with a branch that is not masked alike"
        elif names := unseen(keeps.facts, root.value, root.entries):
            kind, why = Kind.CONTENTS, f"it would be constant, were {' and '.join(names)} not on the meta device"
    barrier = node if node is not None and node.rule is None else None
    return Kept(
        name,
        indices,
        why,
        node.where if node is not None else "",
        parameters,
        kind,
        node.label if node is not None else "",
        node.op_name if node is not None else "",
        apart,
        barrier.note if barrier is not None else "",
        (command_for(barrier) or "") if barrier is not None else "",
        axis,
    )


def _rigid(node: Node, keeps: KeepSets) -> tuple[Kind, str, Node] | None:
    """The barrier, or the tensor that no call makes, that reaches a call; None where the call itself reads all of an
    axis."""
    queue, seen = [node], {node}
    while queue:
        at = queue.pop(0)
        for value in at.operands if not weighs(at) else ():
            if value is None or value.is_source or not any(keeps.rigid[value]):
                continue
            before = value.producer
            if before is None:
                what, kind = what_comes(value)
                return kind, f"joined with {what}", at
            if before.rule is None:
                return Kind.BARRIER, f"made by {before.op_name}, which no rule knows", before
            if before not in seen and not weighs(before):
                seen.add(before)
                queue.append(before)
    return None


def _merged(found: Iterator[Root]) -> list[Root]:
    """One root per addition and way there."""
    first: dict[tuple[str, Node | None, Value, Node | None], Root] = {}
    for root in found:
        known = first.setdefault((root.event.why, root.event.node, root.value, root.join), root)
        if known is not root:
            known.part = known.part | root.part
            if known.entries is not None and root.entries is not None:
                known.entries = known.entries | root.entries
    return list(first.values())


@dataclass(eq=False)
class _Question:
    """Why a value keeps what it keeps.

    Attributes:
        at: the entries that are meant; None when they are not known any more.
        part: the indices of the weight behind them.
        asked: the later addition that they are the cause of.
        join: as in ``Root``.
    """

    value: Value
    at: Bools | None
    part: Bools
    asked: Event | None = None
    join: Node | None = None


def roots(weight: Value, stay: Bools, keeps: KeepSets, axis: int = 0) -> Iterator[Root]:
    """Split indices of a weight along an axis by the reason that they stay for, followed to where it starts."""
    if (reader := _reads_all(weight, axis)) is not None:
        yield Root(Event(stay, WHY_ALL, reader, None, 0, Kind.RIGID), weight, None, stay, None)
        return
    start = stay.reshape([-1 if a == axis else 1 for a in range(weight.ndim)])
    queue = [_Question(weight, start, stay)]
    if weight.uses:  # of this run
        out, named = _made_by(weight.uses[0][0], weight)
        queue = [_Question(out, named(start), stay)] if out is not None else queue
    while queue:
        question = queue.pop()
        value, at, part, asked = question.value, question.at, question.part, question.asked
        # A cause came before what it caused: so this ends.
        events = [e for e in keeps.events_of(value) if asked is None or e.order < asked.order]
        if at is None:
            events = events[-1:]  # entries cannot be followed across a change of shape: the newest was the trigger
        for event in events:
            mine, hit = part, None
            if at is not None:
                hit = at & event.added
                mine = part & _back(hit, at, part) if hit.any() else np.zeros_like(part)
            if not mine.any():
                continue
            part = part & ~mine
            join = question.join
            if join is None and event.cause is not None and event.node is not None and _joins(event.node):
                join = event.node
            behind = _behind(event, value, keeps) if event.kind is Kind.COUNT else None
            if behind is not None:
                event, hit = behind, None
            if event.cause is None:
                yield Root(event, value, hit, mine, join)
            else:
                entries = at_other(at, event.cause) if behind is None else None
                queue.append(_Question(event.cause, entries, mine, event, join))
        if asked is not None and part.any():
            yield Root(asked, value, None, part, question.join)


def _behind(event: Event, value: Value, keeps: KeepSets) -> Event | None:
    """Why another part of a value is as large as it is, where it could be smaller: parts keep equally many."""
    free = keeps.facts.known(value) | keeps.facts.unused(value)
    for earlier in reversed(keeps.events[value]):
        if earlier.order < event.order and earlier.kind is not Kind.COUNT and (earlier.added & free).any():
            return earlier
    return None


def _joins(node: Node) -> bool:
    return sum(v is not None and v.tensor is None for v in node.operands) > 1


def _back(hit: Bools, at: Bools, part: Bools) -> Bools:
    """The leading indices of the weight behind the entries of ``at`` that were hit."""
    lines = [a for a, s in enumerate(at.shape) if s == len(part) and s > 1]
    if not lines:
        return part
    return along(np.broadcast_to(hit, np.broadcast_shapes(hit.shape, at.shape)), lines[0])


def _reads_all(weight: Value, axis: int) -> Node | None:
    """The call that may read any index along an axis that does not come out: rows of a table are chosen by data."""
    node = weight.uses[0][0] if weight.uses else None
    if node is None or node.rule is None or weight not in node.operands:
        return None
    try:
        layout = node.layout
    except SignatureError:
        return None
    names = set((layout.operands[node.operands.index(weight)] or ())[axis])
    return node if names and names <= layout.mixed - layout.names_of(layout.n_inputs) else None


def _made_by(node: Node, weight: Value) -> tuple[Value | None, Callable[[Bools], Bools]]:
    """The output that a weight's leading indices make, and how to bring a mask there."""
    if node.rule is None or len(node.outputs) != 1 or weight not in node.operands:
        return None, lambda mask: mask
    try:
        layout = node.layout
    except SignatureError:
        return None, lambda mask: mask
    k, out = node.operands.index(weight), layout.n_inputs
    away = layout.axes(set(layout.names) - (layout.names_of(k) & layout.names_of(out)))
    return node.outputs[0], lambda mask: layout.from_named(out, any_of(layout.to_named(k, mask), away))
