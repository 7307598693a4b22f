"""What is kept whole where a call cannot take the sizes that the plan gives it, and nothing repairs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from speedup.errors import CheckError
from speedup.graph import Graph
from speedup.keep import KeepSets, Lock
from speedup.kinds import Kind
from speedup.node import Node, Value
from speedup.repair.arguments import numbers
from speedup.repair.locate import in_other_modules, runs_of
from speedup.repair.stale import counted_axes, missing, same_number, stale_numbers


class UnsteadyError(CheckError):
    """Two runs of the model itself make other calls."""


def lock_counted(node: Node) -> list[Lock]:
    """Lock what a call takes the mean of, which it divides by how many there are."""
    value = node.operands[0]
    assert value is not None
    why = f"the code takes a mean over it, which counts what goes ({node.where})"
    return [Lock(value.number, counted_axes(node), why, kind=Kind.MEAN)]


def lock_read(node: Node, keeps: KeepSets) -> list[Lock]:
    """Lock what a function reads that cannot be told of what went."""
    read = dict.fromkeys(v for v in node.operands if v is not None and not v.is_source)
    why = f"a function counts it, and the code that calls it cannot be changed ({node.where})"
    return [Lock(v.number, None, why, kind=Kind.MEAN) for v in read if not keeps.whole(v)]


def lock_uneven(node: Node, graph: Graph, keeps: KeepSets, module: nn.Module) -> list[Lock]:
    """Locks with which all runs of a call of ``module``, in a loop, say, keep equally many indices: one number in the
    code does for each then. None where they do, and where the call is given no number."""
    if node.module is not None or not numbers(node.args, node.kwargs):
        return []
    runs = runs_of(node, graph, module)
    why = f"every run of the line keeps as many ({node.where})"
    for sides in ([n.outputs for n in runs], [n.tensors for n in runs]):  # what comes out asks for what goes in
        locks = [lock for values in zip(*sides, strict=False) for lock in _lock_even(values, keeps, why)]
        if locks:
            return locks
    return []


def lock_all_uneven(node: Node, graph: Graph, keeps: KeepSets, model: nn.Module) -> list[Lock]:
    """As ``lock_uneven``, and for the same line in other modules of the same class: what one number cannot do here it
    cannot do there."""
    own = lock_uneven(node, graph, keeps, model.get_submodule(node.scope))
    others = in_other_modules(node, graph) if own else ()
    return own + [k for n in others for k in lock_uneven(n, graph, keeps, model.get_submodule(n.scope))]


def lock_following(
    node: Node, graph: Graph, keeps: KeepSets, args: Sequence[Any] | None, kwargs: dict[str, Any] | None
) -> list[Lock]:
    """Locks where a call is given the size of another tensor, which keeps another number of indices (heads of values
    that are as large as those of keys): like calls of the same forward keep equally many. None where it is not so.

    Args:
        args, kwargs: of the call as the small model makes it.
    """
    if args is None or kwargs is None or len(node.outputs) != 1:
        return []
    before = dict(numbers(node.args, node.kwargs))
    # A number that is neither what it was nor what the plan wants is made of something else that became smaller.
    wanted = {
        s.wanted
        for s in stale_numbers(node, keeps, args, kwargs, node)
        if s.now is not None and s.path in before and not same_number(s.now, before[s.path])
    }
    (own,) = node.outputs
    alike = [n.outputs[0] for n in graph.by_scope[node.scope] if n.op_name == node.op_name and len(n.outputs) == 1]
    why = f"calls of one forward share a size ({node.where})"
    locks: list[Lock] = []
    for axis, size in enumerate(own.shape):
        if keeps.shape(own)[axis] in wanted:
            values = [v for v in alike if v.ndim == own.ndim and v.shape[axis] == size]
            locks += _lock_alike(values, axis, keeps, why)
    return locks


def _lock_even(values: Sequence[Value], keeps: KeepSets, why: str) -> Iterator[Lock]:
    """Locks with which tensors of one shape keep equally many indices along each axis."""
    if len({v.shape for v in values}) > 1 or any(v.is_source for v in values):
        return
    for axis in range(values[0].ndim):
        yield from _lock_alike(values, axis, keeps, why)


def _lock_alike(values: Sequence[Value], axis: int, keeps: KeepSets, why: str) -> Iterator[Lock]:
    """Locks with which tensors keep equally many indices along an axis that is as long in all of them: the first ones
    more of those that went, in each line where lines differ."""
    kept = [keeps.shape(v)[axis] for v in values]
    for value, count in zip(values, kept, strict=True):
        keep = keeps.sets[value]
        gone = ~np.broadcast_to(keep, [value.shape[a] if a == axis else s for a, s in enumerate(keep.shape)])
        lock = Lock(value.number, None, why, gone & (np.cumsum(gone, axis=axis) <= max(kept) - count), Kind.RUNS)
        if not keeps.holds(lock):
            yield lock


def lock_for_missing(node: Node, keeps: KeepSets) -> Callable[[], list[Lock]] | None:
    """A lock of one operand that makes an argument needless which the smaller call would have to be given."""
    wanted = missing(node, keeps)
    for value in dict.fromkeys(v for v in node.operands if wanted and v is not None):
        if not missing(node, keeps, whole=value):
            why = f"the code of the call leaves {', '.join(wanted)} to be made of a size ({node.where})"
            return partial(list, [Lock(value.number, None, why)])
    return None


def lock_scope(node: Node, graph: Graph, keeps: KeepSets, why: str) -> list[Lock]:
    """Lock the smaller tensors that a call can have a size from: those of the same forward, else all before it."""
    before = [n for n in graph.nodes if n.index < node.index]
    near = {v for n in before if n.scope == node.scope for v in (*n.tensors, *n.outputs) if not v.is_source}
    smaller = [v for v in graph.values if v in near and not keeps.whole(v)]
    if smaller:
        return [Lock(v.number, None, f"{why} ({node.where})") for v in smaller]
    return lock_before(node, graph, keeps, why, frozenset())


def stale_axes(full: tuple[int, ...], planned: tuple[int, ...], got: tuple[int, ...]) -> tuple[int, ...] | None:
    if len(planned) != len(got):
        return None
    wrong = [a for a in range(len(full)) if planned[a] != got[a]]
    stale = [a for a in wrong if got[a] == full[a]]
    return tuple(stale or wrong)


def changed_axes(node: Node, keeps: KeepSets) -> tuple[int, tuple[int, ...]] | None:
    """The axes of a call's only output that the plan makes smaller."""
    if len(node.outputs) != 1:
        return None
    value = node.outputs[0]
    planned = keeps.shape(value)
    return 0, tuple(a for a, (p, f) in enumerate(zip(planned, value.shape, strict=True)) if p != f)


def why_stale(full: tuple[int, ...], planned: tuple[int, ...], got: tuple[int, ...]) -> str:
    return f"the code of the call holds a size: it gives {got} where {planned} is left of {full}"


def lock_call(
    node: Node,
    graph: Graph,
    keeps: KeepSets,
    at: tuple[int, tuple[int, ...] | None] | None,
    why: str,
    sizes: frozenset[tuple[int, int]] = frozenset(),
) -> list[Lock]:
    """Lock a call, and all others from the same line of source, which hold the same size.

    Args:
        at: the output and its axes to lock; None locks everything that goes in and comes out.
        sizes: (planned, got) where they differ: the call may have its size from another tensor that became smaller.
    """
    locks = []
    for other in graph.nodes:
        if not _is_same_line(other, node) or len(other.outputs) != len(node.outputs):
            continue
        reason = f"{why} ({other.where})"
        if at is not None and at[1] is not None:
            locks.append(Lock(other.outputs[at[0]].number, at[1], reason))
        else:
            locks += [Lock(v.number, None, reason) for v in (*other.tensors, *other.outputs)]
    new = [k for k in locks if not keeps.holds(k)]
    if not new:
        new = [Lock(v.number, None, f"{why} ({node.where})") for v in (*node.tensors, *node.outputs)]
        new = [k for k in new if not keeps.holds(k)] or lock_before(node, graph, keeps, why, sizes)
    return new


def _is_same_line(other: Node, node: Node) -> bool:
    """Whether a call is made by the same line as another one."""
    return other is node or (node.where != "" and other.where == node.where and other.op_name == node.op_name)


def lock_before(node: Node, graph: Graph, keeps: KeepSets, why: str, sizes: frozenset[tuple[int, int]]) -> list[Lock]:
    """Lock earlier tensors whose shape the call may have been given: those with its size, else those that the same
    forward has made, for all calls of the line at once, else all; parameters last."""
    smaller = [v for v in graph.values if not keeps.whole(v)]
    made = [v for v in smaller if v.producer is not None]
    before = [v for v in made if v.producer is not None and v.producer.index < node.index]
    alike = [v for v in before if sizes & set(zip(v.shape, keeps.shape(v), strict=True))]
    ends = {n.scope: n.index for n in graph.nodes if _is_same_line(n, node)}  # the last ones
    near = [v for v in made if v.producer is not None and v.producer.index < ends.get(v.producer.scope, 0)]
    chosen = alike or near or before or made or smaller
    if not chosen:
        raise UnsteadyError(f"{node.label} differs in two runs of the model with everything kept: {why} ({node.where})")
    return [Lock(v.number, None, f"{why} ({node.where})") for v in chosen]
