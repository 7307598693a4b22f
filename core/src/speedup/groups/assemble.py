"""From numbers to groups: channels with the same members, or that go evenly, are one group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from speedup.arrays import Bools
from speedup.graph import Graph
from speedup.groups.blocks import Blocks
from speedup.groups.labels import Labels, Numbers, varied
from speedup.groups.mixing import Mixing
from speedup.groups.result import Activation, ChannelGroups, Group, Indices, Member
from speedup.node import Value


def assemble(graph: Graph, labels: Labels, blocks: Blocks, usable: Bools, mixed: Mapping[int, Mixing]) -> ChannelGroups:
    """Make the groups.

    Args:
        usable: per class whether it is a channel that can go.
        mixed: what is known of mixed blocks, by the first class of the first of them.
    """
    classes = blocks.classes
    found: list[tuple[Value, Numbers, bool]] = []
    taken, read = (
        np.unique(np.concatenate([np.zeros(0, np.int64), *(n.ravel() for n in numbers)]))
        for numbers in (labels.taken, labels.read_in_place)
    )
    for value in graph.sources:
        if labels.has(value) and value.kind == "parameter":
            seen: list[Numbers] = []
            for numbers in labels.arrays(value):
                if np.isin(numbers, taken).all():
                    continue
                resolved = classes[numbers]
                if not usable[resolved].any() or any(np.array_equal(resolved, s) for s in seen):
                    continue
                seen.append(resolved)
                reads = (value, varied(numbers)) in labels.reads or np.isin(numbers, read).all()
                found.append((value, resolved, not reads))
    group_of, number_of, sizes = _grouped(found, blocks, usable)
    members: dict[int, list[Member]] = defaultdict(list)
    for value, resolved, makes in found:
        owners = np.where(usable[resolved], group_of[resolved], -1)
        for group in np.unique(owners[owners >= 0]).tolist():
            channels = np.where(owners == group, number_of[resolved], -1)
            axes = varied(channels)
            members[group].append(Member(value.names[0], axes[0] if len(axes) == 1 else None, channels, makes))
    activations: dict[int, list[Activation]] = defaultdict(list)
    for value in dict.fromkeys(labels.read):
        if value.producer is None:
            continue
        resolved = classes[labels.arrays(value)[0]]
        owners = np.where(usable[resolved], group_of[resolved], -1)
        for group in np.unique(owners[owners >= 0]).tolist():
            channels = np.where(owners == group, number_of[resolved], -1)
            place = value.producer.index, value.producer.outputs.index(value)
            activations[group].append(Activation(*place, channels))
    bounds = _bounds(blocks, group_of, number_of, usable, sizes)
    groups = []
    for group in sorted(members):
        even, heads, bundle = bounds[group]
        mixing = next((m for first, m in mixed.items() if group_of[first] == group), None)
        own = tuple(members[group]), even, heads, bundle, tuple(activations[group])
        groups.append(Group(sizes[group], *own, mixing))
    shapes = {v.names[0]: v.shape for v in graph.sources}
    return ChannelGroups(tuple(groups), shapes)


def _grouped(
    found: list[tuple[Value, Numbers, bool]], blocks: Blocks, usable: Numbers
) -> tuple[Numbers, Numbers, list[int]]:
    """Per class its group and its number in it; the sizes of the groups."""
    marks = np.random.default_rng(0).integers(1, 2**63 - 1, size=len(found) + len(blocks.channels) + 1)
    keys = np.zeros(len(usable), dtype=np.int64)
    for mark, (_, resolved, _) in zip(marks, found, strict=False):
        members = np.unique(resolved)
        keys[members] ^= mark
    usable &= keys != 0
    blocked = np.flatnonzero(blocks.block >= 0)
    keys[blocked] = [marks[len(found) + blocks.family(int(b))] for b in blocks.block[blocked]]
    channels = np.flatnonzero(usable)
    _, first, inverse = np.unique(keys[channels], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    group_of = np.full(len(usable), -1)
    number_of = np.full(len(usable), -1)
    group_of[channels] = rank[inverse]
    sizes = np.bincount(group_of[channels], minlength=len(first)).tolist()
    order = np.argsort(group_of[channels], kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) if sizes else np.zeros(0, np.int64)
    ranked = channels[order]
    number_of[ranked] = np.arange(len(ranked)) - starts[group_of[ranked]]
    return group_of, number_of, sizes


def _bounds(
    blocks: Blocks, group_of: Numbers, number_of: Numbers, usable: Numbers, sizes: list[int]
) -> list[tuple[tuple[Indices, ...], tuple[tuple[int, ...], ...], int | None]]:
    """Per group its blocks, its heads and the number that bundles the heads of several groups."""
    even: dict[int, list[Indices]] = defaultdict(list)
    whole: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    heads = blocks.heads()
    for number, channels in enumerate(blocks.channels):
        inside = channels[usable[channels]]
        for group in np.unique(group_of[inside]).tolist():
            mine = number_of[inside[group_of[inside] == group]]
            even[group].append(mine)
            if number in heads:
                whole[group][heads[number]] += mine.tolist()
    result: list[tuple[tuple[Indices, ...], tuple[tuple[int, ...], ...], int | None]] = []
    for group, size in enumerate(sizes):
        mine = tuple(even.get(group, ())) or (np.arange(size),)
        by_head = whole.get(group, {})
        complete = len(by_head) > 1 and sum(map(len, by_head.values())) == size
        ordered = sorted(by_head) if complete else []
        result.append((mine, tuple(tuple(by_head[h]) for h in ordered), min(ordered) if ordered else None))
    return result
