"""The order in which what is left of an axis stands in the small model.

As a rule it is the order in which it stood before. A shuffle of channels of which each group keeps other positions
(ShuffleNet) puts what is left in another order. Then the order is noted, call by call in the direction of the data:
entry-wise calls hand it on, weights are cut in the same order, and a contraction ends it. A call that cannot be made
in that order is locked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from speedup.arrays import Bools, any_of
from speedup.ask import ask
from speedup.cutting import gather
from speedup.graph import Graph
from speedup.kinds import Kind
from speedup.node import Node, Value
from speedup.regular import varied

if TYPE_CHECKING:
    from speedup.keep import KeepSets, Lock
    from speedup.rule import Rule

# By axis: for each place in the small tensor, which of the kept indices stands there, counted from 0. An array that
# broadcasts to the small tensor: the order may differ along another axis, from group to group.
Ranks = np.ndarray[Any, np.dtype[np.int64]]
Orders = Mapping[int, Ranks]


def in_order(tensor: torch.Tensor, orders: Orders) -> torch.Tensor:
    """What was cut out of a tensor, in the order in which it stands in the small model."""
    for axis, ranks in orders.items():
        index = torch.from_numpy(ranks).to(tensor.device)
        if ranks.size == ranks.shape[axis]:
            tensor = tensor.index_select(axis, index.flatten())
        else:
            tensor = gather(tensor, axis, index.expand_as(tensor))
    return tensor


def same_orders(a: Orders, b: Orders) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[axis], b[axis]) for axis in a)


def arrange(graph: Graph, keeps: KeepSets) -> list[Lock]:
    """Note the orders of all values in ``keeps.orders``; locks for the calls that cannot be made on what is kept."""
    from speedup.keep import Lock

    keeps.orders = {}
    settled: dict[Value, Orders] = {}
    locks = []
    for node in graph.nodes:
        if not keeps.orders and (node.rule is None or _takes_all(type(node.rule))):
            settled |= {v: {} for v in node.operands if v is not None and v.is_source}
            continue
        values: Sequence[Value | None] = node.values
        there = [v for v in values if v is not None]
        given = keeps.orders_of(node)
        found: Sequence[Orders] | None
        if node.rule is None or any(v in keeps.orders for v in node.others):
            values = there = [v for v in node.tensors if v in keeps.orders]
            found = None if values else []
        elif all(map(keeps.whole, there)) and not any(given):
            found = given
        else:
            found = ask(node, "arrange", keeps.of(values), given)
        if found is not None:
            # A weight that several calls read stands in one order.
            pairs = [(v, o) for v, o in zip(values, found, strict=False) if v is not None and v.is_source]
            if all(same_orders(settled.setdefault(v, o), o) for v, o in pairs):
                keeps.orders |= {v: o for v, o in zip(values, found, strict=False) if v is not None and o}
                continue
        why = f"{node.op_name} cannot take fewer indices here ({node.where})"
        near = [v for v in there if not keeps.whole(v) or v in keeps.orders]
        locks += [Lock(v.number, None, why, kind=Kind.RULE) for v in _to_lock(near, keeps)]
    for value, others in graph.together.items():
        if any(not same_orders(keeps.orders.get(value, {}), keeps.orders.get(v, {})) for v in others):
            locks.append(Lock(value.number, None, "with other data it stands in another order here", kind=Kind.DATA))
    return locks


def _to_lock(values: Sequence[Value], keeps: KeepSets) -> Sequence[Value]:
    """What is to be whole for values to be so, and in their order: they, or, where they are whole, what gives them
    another order."""
    near, seen = values, set(values)
    while near and all(map(keeps.whole, near)):
        made_of = dict.fromkeys(v for n in near if n.producer is not None for v in n.producer.tensors)
        near = [v for v in made_of if v not in seen and (v in keeps.orders or not keeps.whole(v))]
        seen.update(near)
    return near or values


def _takes_all(rule: type[Rule]) -> bool:
    """Whether calls of these rules fit whatever is kept, as long as all stands in its order."""
    from speedup.rule import Rule

    return rule.arrange is Rule.arrange and rule.fits is Rule.fits


def along_names(node: Node, keep: Sequence[Bools], orders: Sequence[Orders]) -> list[Orders] | None:
    """Orders of the operands and outputs of a call that has an axes signature: one for each name; None for no way."""
    layout = node.layout
    present = [k for k in range(len(layout.operands)) if layout.present(k)]
    known: dict[str, Ranks] = {}  # in named space
    for k in present:
        for axis, ranks in orders[k].items():
            names = _names(node, k, axis)
            named = _to_names(node, k, ranks) if len(names) == 1 else _of_parts(node, k, axis, ranks, keep[k])
            if named is None or names[-1] in layout.mixed:
                return None
            if not np.array_equal(known.setdefault(names[-1], named), named):
                return None
    found: list[Orders] = [{} for _ in orders]
    for k in present:
        value, own, mask = node.values[k], orders[k], keep[k]
        assert value is not None
        wanted: dict[int, Ranks] = {}
        for axis in range(layout.ndim(k)):
            names = _names(node, k, axis)
            if not known.keys() & set(names):
                continue
            stands = axis in own or k >= layout.n_inputs or value.is_source
            named = known.get(names[-1])
            new = _from_names(node, k, axis, named, mask) if named is not None else None
            if new is None or not stands or not (_is_line(mask, axis) or new.size > new.shape[axis]):
                return None
            wanted[axis] = new
        found[k] = wanted
    return found


def _to_names(node: Node, k: int, ranks: Ranks) -> Ranks | None:
    """An array over the axes of an operand as one over the names of the call, where each axis is one name."""
    layout = node.layout
    of_axes = [_names(node, k, a) if size > 1 else [""] for a, size in enumerate(ranks.shape)]
    if any(len(names) != 1 for names in of_axes):
        return None
    names = [own for (own,) in of_axes]
    shape = dict(zip(names, ranks.shape, strict=True))
    order = [names.index(n) for n in layout.names if n in names]
    rest = [a for a in range(ranks.ndim) if a not in order]
    return ranks.transpose([*order, *rest]).reshape([shape.get(n, 1) for n in layout.names])


def _of_parts(node: Node, k: int, axis: int, ranks: Ranks, keep: Bools) -> Ranks | None:
    """The order along an axis of two names, groups and what is in each, as one along the second name in each group;
    None where something has come into another group."""
    names, size = _names(node, k, axis), _in_each(node, k, axis, keep)
    if len(names) != 2 or size is None or ranks.size != ranks.shape[axis]:
        return None
    lines = ranks.reshape(-1, size)
    lines = lines - size * np.arange(len(lines))[:, None]
    if ((lines < 0) | (lines >= size)).any():
        return None
    shape = dict(zip(names, lines.shape, strict=True))
    if node.layout.names.index(names[0]) > node.layout.names.index(names[1]):
        lines = lines.T
    return lines.reshape([shape.get(n, 1) for n in node.layout.names])


def _from_names(node: Node, k: int, axis: int, named: Ranks, keep: Bools) -> Ranks | None:
    """The order along an axis of an operand; None where the operand lacks one of the names."""
    layout = node.layout
    of_axes = [_names(node, k, a) for a in range(layout.ndim(k))]
    if any(len(names) > 2 for names in of_axes):
        return None
    varies = [n for n, size in zip(layout.names, named.shape, strict=True) if size > 1]
    last = {names[-1]: a for a, names in enumerate(of_axes) if len(names) == 1 or a == axis}
    first = {names[0]: a for a, names in enumerate(of_axes) if len(names) == 2}
    if any(n not in last and n not in first for n in varies):
        return None
    lines = named.reshape([s for s in named.shape if s > 1])
    if len(of_axes[axis]) == 2:  # each group after the other
        size = named.shape[layout.names.index(of_axes[axis][1])]
        if set(varies) != set(of_axes[axis]) or _in_each(node, k, axis, keep) != size:
            return None
        lines = lines.transpose([varies.index(n) for n in of_axes[axis]])
        return _along((lines + size * np.arange(len(lines))[:, None]).ravel(), axis, layout.ndim(k))
    at = [last[n] if n in last else first[n] for n in varies]
    for place, n in enumerate(varies):
        if n not in last:  # the same for all that is in the group
            size = _in_each(node, k, first[n], keep)
            if size is None:
                return None
            lines = np.repeat(lines, size, place)
    order = sorted(range(len(at)), key=lambda i: at[i])
    sizes = {at[i]: lines.shape[i] for i in order}
    return lines.transpose(order).reshape([sizes.get(a, 1) for a in range(layout.ndim(k))])


def _names(node: Node, k: int, axis: int) -> list[str]:
    """The names behind an axis."""
    names = [n for n in (node.layout.operands[k] or ())[axis] if node.layout.sizes[n] > 1]
    return names or [""]


def _in_each(node: Node, k: int, axis: int, keep: Bools) -> int | None:
    """How many indices of an axis are kept in each group, those with the same first name; None if it is no number."""
    sizes = [node.layout.sizes[n] for n in _names(node, k, axis)]
    line = any_of(keep, tuple(a for a in range(keep.ndim) if a != axis)).reshape(-1)
    counts = np.broadcast_to(line, (prod(sizes),)).reshape(sizes[0], -1).sum(1)
    return int(counts[0]) if (counts == counts[0]).all() else None


def _is_line(keep: Bools, axis: int) -> bool:
    """Whether the same indices of an axis are kept everywhere."""
    if keep.shape[axis] == 1 or varied(keep) == [axis]:
        return True
    line = any_of(keep, tuple(a for a in range(keep.ndim) if a != axis))
    rest = any_of(keep, axis)
    return bool((keep == (line & rest)).all())


def reordering(wanted: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> Orders | None:
    """The axis and order in which all of some tensors stand otherwise; None where that is not all that differs.

    Args:
        wanted, got: tensors of one shape, in which the same entries may stand at other places.
    """
    if all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True)):
        return {}
    if any(a.shape != b.shape for a, b in zip(wanted, got, strict=True)):
        return None
    ndim = wanted[0].ndim
    for axis in range(ndim):
        ranks = _ranks(wanted, got, axis)
        if ranks is not None:
            return {axis: _along(ranks, axis, ndim)}
    for axis in range(ndim):
        for other in range(ndim):
            if other == axis or wanted[0].shape[other] == 1:
                continue
            found = _by_group(wanted, got, axis, other)
            if found is not None:
                return {axis: found}
    return None


def _by_group(wanted: Sequence[torch.Tensor], got: Sequence[torch.Tensor], axis: int, other: int) -> Ranks | None:
    """As ``_ranks``, of each index of another axis."""
    found = []
    for i in range(wanted[0].shape[other]):
        ranks = _ranks([t.narrow(other, i, 1) for t in wanted], [t.narrow(other, i, 1) for t in got], axis)
        if ranks is None:
            return None
        found.append(_along(ranks, axis, wanted[0].ndim))
    return np.concatenate(found, axis=other)


def _ranks(wanted: Sequence[torch.Tensor], got: Sequence[torch.Tensor], axis: int) -> Ranks | None:
    """What stands where along an axis, if that is all that differs."""
    places: dict[bytes, list[int]] = {}
    for place, row in enumerate(_rows(wanted, axis)):
        places.setdefault(row, []).append(place)
    ranks = [places[row].pop(0) if places.get(row) else -1 for row in _rows(got, axis)]
    return None if -1 in ranks else np.array(ranks)


def _rows(tensors: Sequence[torch.Tensor], axis: int) -> list[bytes]:
    """What stands at every index of an axis."""
    size = tensors[0].shape[axis]
    flat = [t.movedim(axis, 0).reshape(size, -1).numpy() for t in tensors]
    return [b"".join(f[i].tobytes() for f in flat) for i in range(size)]


def _along(line: Ranks, axis: int, ndim: int) -> Ranks:
    return line.reshape([-1 if a == axis else 1 for a in range(ndim)])
