"""What a call ties of the channels, by the names of its axes or by where it moves entries (``Rule.tie``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from speedup.groups.labels import STAYS, Labels, Numbers, varied
from speedup.node import Node, Value

if TYPE_CHECKING:
    from speedup.movement import Movement


def by_signature(node: Node, labels: Labels) -> None:
    """Tie the channels at a node by the names of its axes (``speedup.axes``)."""
    from speedup.pattern import rigid_names

    layout = node.layout
    values = node.values
    fixed = rigid_names(layout, [labels.rigid[v] if v is not None else [] for v in values])
    still = {n for n in layout.names if n in fixed or layout.sizes[n] <= 1}
    first_output = layout.n_inputs
    free = {k: layout.names_of(k) - still for k in range(len(values)) if layout.present(k)}
    named: dict[int, list[tuple[frozenset[str], Numbers]]] = {}
    # Of a weight that is made of parameters, each axis is one by itself, as of a parameter.
    computed = all(v is None or labels.of_parameters(v, not layout.contracted) for v in node.operands)
    if computed:
        labels.computed.update(node.outputs)
        labels.products.update(node.outputs if layout.contracted else ())
    for k, value in enumerate(values[:first_output]):
        if value is None or not layout.present(k) or (value.is_source and not labels.has(value) and not computed):
            continue
        for numbers in labels.arrays(value):
            named.setdefault(k, []).append(_settled(labels, layout, layout.to_named(k, numbers), fixed))
    weights = any(v is not None and v not in labels.from_input for v in node.operands)
    held = any(v is not None and v.is_source for v in node.operands)  # what is made of numbers alone has no channels
    lines = [pair for pairs in named.values() for pair in pairs if pair[0]]
    of_weights = [p for k, pairs in named.items() if values[k] not in labels.from_input for p in pairs]
    for k in range(first_output, len(values)):
        value = values[k]
        assert value is not None
        if labels.has(value):
            continue
        inside = [pair for pair in lines if pair[0] <= free[k]]
        alike = next((n for names, n in lines if names == free[k]), None)
        new = (lines or held) and (value in labels.from_input or not inside)
        if alike is None and free[k] and new and not _is_outer(inside, free[k]):
            alike = labels.fresh([layout.sizes[n] if n in free[k] else 1 for n in layout.names])
            if weights:
                labels.made.append(alike)
            if inside:
                own = free[k] - frozenset[str]().union(*(names for names, _ in inside))
                beside = [layout.from_named(k, numbers) for _, numbers in inside]
                axes = [a for a, dim in enumerate(layout.operands[k] or ()) if dim and own.issuperset(dim)]
                labels.crossed += [(value, a, beside) for a in axes]
            lines.append((free[k], alike))
        elif alike is not None and layout.contracted and (value in labels.from_input or computed):
            labels.made += [n for names, n in of_weights if names == free[k]]
        if alike is None and free[k] - frozenset[str]().union(*(names for names, _ in inside)):
            labels.leave(numbers for _, numbers in inside)
        for _, numbers in [(free[k], alike)] if alike is not None else inside:
            assert numbers is not None
            labels.add(value, layout.from_named(k, numbers))
        if not labels.has(value):
            labels.add(value, np.zeros((1,) * value.ndim, dtype=np.int64))
    by_names: dict[frozenset[str], Numbers] = {}
    for names, numbers in lines:
        labels.join(by_names.setdefault(names, numbers), numbers)
    _share(labels, layout, by_names)
    for names, numbers in list(by_names.items()):
        if len(names) > 1:
            _keep_lines(labels, layout, names, numbers, list(free.values()), by_names)
    for k, value in enumerate(node.operands):
        if value is None or not layout.present(k):
            continue
        summed = [n for names, n in named.get(k, []) if names & layout.contracted]
        given = computed and k == 0  # of what is made of parameters alone, the first is what the others read
        if value in labels.computed and not given:
            labels.taken += summed
        elif value in labels.placed and not given:
            labels.read_in_place += summed
        for names, numbers in by_names.items():
            if value.is_source and names <= layout.names_of(k):
                added = layout.from_named(k, numbers)
                labels.add(value, added)
                if names & layout.contracted and not given:
                    labels.reads.add((value, varied(added)))
            elif not value.is_source and names == free[k] and names & layout.contracted and weights:
                labels.read.append(value)


def _is_outer(inside: Sequence[tuple[frozenset[str], Numbers]], names: frozenset[str]) -> bool:
    """Whether a call multiplies (adds, compares) what has some of these names by what has others: an entry of what
    comes out goes when its number in any of them does, as of a parameter."""
    parts = {own for own, _ in inside}
    return len(parts) > 1 and names not in parts and names == frozenset[str]().union(*parts)


def _settled(labels: Labels, layout: Any, numbers: Numbers, fixed: Iterable[str]) -> tuple[frozenset[str], Numbers]:
    """Named numbers that are the same all along names which can lose no index; with the names that are left."""
    for axis in layout.axes(set(fixed)):
        if numbers.shape[axis] > 1:
            first = np.take(numbers, [0], axis)
            labels.join(first, numbers)
            numbers = first
    names = frozenset(n for n, s in zip(layout.names, numbers.shape, strict=True) if s > 1)
    if not names:
        labels.join(numbers, np.zeros_like(numbers))
    return names, numbers


def _share(labels: Labels, layout: Any, by_names: dict[frozenset[str], Numbers]) -> None:
    """Where operands have some names in common and others not, what is common goes with all that it contains."""
    for names, numbers in list(by_names.items()):
        for others, more in list(by_names.items()):
            common = names & others
            if not common or (common in (names, others) and names != common):
                continue
            if common == names and len(others) > len(names):
                labels.share(numbers, more)
            elif common not in (names, others):
                line = by_names.get(common)
                if line is None:
                    line = labels.fresh([layout.sizes[n] if n in common else 1 for n in layout.names])
                labels.share(line, numbers)
                labels.share(line, more)


def _keep_lines(
    labels: Labels,
    layout: Any,
    names: frozenset[str],
    numbers: Numbers,
    operands: Sequence[frozenset[str]],
    by_names: dict[frozenset[str], Numbers],
) -> None:
    """Along the last name, lines may keep other indices if every operand that has it tells the lines apart; else
    they are the same, and those of an operand that has no other name."""
    last = [n for n in layout.names if n in names][-1]
    lacking = {n for other in operands if last in other for n in names - {last} - other}
    for axis in layout.axes(lacking):
        first = np.take(numbers, [0], axis)
        labels.join(first, numbers)
        numbers = first
    if lacking == names - {last}:
        labels.join(by_names.setdefault(frozenset({last}), numbers), numbers)
    labels.keep_dense(numbers, layout.names.index(last))


def by_movement(rule: Movement, node: Node, labels: Labels) -> None:
    """Tie the channels at a call that moves entries: what comes out has the numbers of what went in."""
    operands = [v for v in node.operands if v is not None]
    given = [labels.arrays(v) for v in operands]
    kinds = [{tuple([a - n.ndim for a in varied(n)]): n for n in arrays} for arrays in given]
    several = any(len(arrays) > 1 for arrays in given)
    if any(len(own) != len(kinds[0]) or (several and own.keys() != kinds[0].keys()) for own in kinds):
        common = set.intersection(*map(set, kinds))
        labels.leave(n for own in kinds for kind, n in own.items() if kind not in common)
        for value in (*operands, *node.outputs):
            labels.freeze(value)
        return
    if all(map(labels.of_parameters, operands)) and labels.products.isdisjoint(operands):
        labels.placed.update(node.outputs)
    # Below 0: fillers that go with what they stand beside.
    filled = -1 if rule.fills and not rule.fill_stays else STAYS
    beside: dict[tuple[Value, tuple[int, ...]], list[Numbers]] = {}
    for arrays in zip(*given, strict=True):
        for value, moved in zip(node.outputs, rule.gather(node, arrays, filled), strict=True):
            if moved.size == 0:  # nothing comes out, so nothing is tied
                moved = labels.fresh((1,) * moved.ndim)
            for axis in range(moved.ndim):
                if moved.shape[axis] > 1 and labels.rigid[value][axis]:
                    one = moved.max(axis, keepdims=True)
                    labels.join(one, np.where(moved < 0, one, moved))
                    moved = one
            moved = np.maximum(moved, STAYS)
            if len(given[0]) == 1 and labels.has(value):  # a tensor that is changed in place
                labels.join(labels.arrays(value)[0], moved)
            beside.setdefault((value, varied(moved)), []).append(moved)
    for (value, axes), parts in beside.items():
        if axes and len(parts) > 1:
            labels.add_one_of(value, parts)
        else:
            for moved in parts:
                labels.add(value, moved)
    for value in node.outputs:
        if not labels.has(value):
            labels.add(value, np.zeros((1,) * value.ndim, dtype=np.int64))
    for k, each in enumerate(node.values):
        assert each is not None
        divided = rule.parts(node).get(k)
        for numbers in labels.arrays(each):
            if divided is not None and numbers.shape[divided[0]] > 1:
                axis, count = divided
                shape = numbers.shape
                inner = (*shape[:axis], count, shape[axis] // count, *shape[axis + 1 :])
                labels.keep_dense(numbers.reshape(inner), axis + 1)
            else:
                labels.keep_dense(numbers, None)
