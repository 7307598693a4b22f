"""Channel groups: which filters of a model can only go together, found by the engine that takes them away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from speedup.arrays import Bools
from speedup.ask import ask
from speedup.auxiliary import widest_trace
from speedup.collector import rarely_collected
from speedup.errors import InputError
from speedup.graph import Graph
from speedup.groups.assemble import assemble
from speedup.groups.blocks import Blocks
from speedup.groups.labels import STAYS, Labels, Numbers, varied
from speedup.groups.mixing import mixings
from speedup.groups.result import ChannelGroups
from speedup.grow import bare_keep_sets
from speedup.inputs import check_made, resolve_inputs
from speedup.movement import Movement
from speedup.node import Value
from speedup.registry import Registry, default_registry
from speedup.rigid import rigid_axes
from speedup.trace import sandbox


@rarely_collected
def channel_groups(model: nn.Module, dummy_input: Any, *, registry: Registry | None = None) -> ChannelGroups:
    """Find out which filters of a model can only go together.

    Through additions, concatenations, grouped and depthwise convolutions, attention heads and shared weights: what the
    engine keeps together is one channel. The model runs once and is not changed.

    Args:
        dummy_input: a tensor, a tuple of arguments, or a dict of keyword arguments that the model accepts.
        registry: the rules to use; by default those of the installed plugins.

    Raises:
        InputError: the arguments cannot be used.
        TraceError: the model rejects the dummy input.

    Example:
        >>> groups = speedup.channel_groups(model, torch.randn(1, 3, 224, 224))
        >>> print(groups)
        >>> groups[0].channel(5)  # all that goes with filter 5 of the first convolution
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}, not a torch.nn.Module")
    check_made(model)
    rules = registry if registry is not None else default_registry()
    with sandbox(model):
        graph = widest_trace(model, resolve_inputs(dummy_input), rules)
        return groups_of(graph)


def groups_of(graph: Graph) -> ChannelGroups:
    """The channel groups of a traced model."""
    labels = _tied(graph)
    classes, lines, made = _merged(labels)
    mixed = mixings(graph, labels, classes, _usable(classes, lines, made))
    blocks = Blocks(labels, classes, [own for _, own in mixed])
    blocks.settle()
    usable = _usable(blocks.classes, lines, made)
    return assemble(graph, labels, blocks, usable, {int(own[0][0]): mixing for mixing, own in mixed})


def _usable(classes: Numbers, lines: Numbers, made: Numbers) -> Bools:
    """Per class whether it is a channel that can go."""
    usable = np.zeros(len(classes), dtype=bool)
    usable[classes[made]] = True
    usable[classes[lines]] = False
    usable[STAYS] = False
    return usable


def _tied(graph: Graph) -> Labels:
    """Let every rule say what it ties, and hold what can never go."""
    whole = bare_keep_sets(graph)
    fixed: set[tuple[Value, int]] = set()
    while True:
        labels = Labels(rigid_axes(graph, fixed) if fixed else whole.rigid, graph.from_input)
        for node in graph.nodes:
            if node.rule is not None:
                ask(node, "tie", labels)
        for value in graph.replaced:
            if value.next is not None and value.is_replaced_alike and labels.has(value) and labels.has(value.next):
                _join_next(labels, value, value.next)
        for value in graph.values:
            if labels.has(value) and whole.sets[value].any():
                labels.freeze(value)
        found = (
            labels.alone - fixed
            or _crossed(labels) - fixed
            or _choose(labels) - fixed
            or _parted(graph, labels) - fixed
            or _places(graph, labels) - fixed
        )
        if not found:
            return labels
        fixed |= found


def _join_next(labels: Labels, value: Value, later: Value) -> None:
    """A tensor of the model loses what goes of that which the next call reads in its place, and nothing else."""
    told = {varied(n): n for n in labels.arrays(later) if varied(n)}
    for numbers in told.values():
        labels.add(value, numbers)
    for numbers in labels.arrays(value):
        if varied(numbers) not in told:
            labels.join(numbers, np.zeros((1,) * numbers.ndim, dtype=np.int64))


def _crossed(labels: Labels) -> set[tuple[Value, int]]:
    """Axes that a layer makes beside channels that another has made. An entry is of one channel, so they are held."""
    made = np.concatenate([np.zeros(0, np.int64), *(m.ravel() for m in labels.made)])
    return {(v, a) for v, a, beside in labels.crossed if all(np.isin(n, made).any() for n in beside)}


def _choose(labels: Labels) -> set[tuple[Value, int]]:
    """Axes of parameters that come out as one with others (``weight.view(out, -1)`` beside a flatten): all but the one
    that stands for the channels which the merged axis meets."""
    classes = labels.classes()
    for own, parts in labels.merged:
        channels = classes[own].ravel()
        left = sorted((p.ravel() for p in parts), key=lambda p: len(np.unique(p)))
        while len(left) > 1:
            k = next((k for k in range(len(left)) if _told(channels, left[:k] + left[k + 1 :])), 0)
            labels.leave([left.pop(k)])
    return labels.alone


def _told(channels: Numbers, by: Sequence[Numbers]) -> bool:
    """Whether entries that are alike in some numbers are the same channel."""
    return len(np.unique([*by, channels], axis=1).T) == len(np.unique(by, axis=1).T)


def _parted(graph: Graph, labels: Labels) -> set[tuple[Value, int]]:
    """Axes that come out of a longer one and have the same channels at every index: the samples, of which each had its
    heads beside those of the others."""
    found: set[tuple[Value, int]] = set()
    for node in graph.nodes:
        if not isinstance(node.rule, Movement) or all(len(labels.flexible(v)) < 2 for v in node.outputs):
            continue
        for origin, value in zip(node.rule.origins(node), node.outputs, strict=True):
            along = [{a + value.ndim - c.ndim for a, s in enumerate(c.shape) if s > 1} for c in origin.coordinates]
            parts = set[int]().union(*(axes for axes in along if len(axes) > 1))
            for numbers in labels.arrays(value):
                same = [a for a in parts.intersection(varied(numbers)) if (numbers == np.take(numbers, [0], a)).all()]
                found |= {(value, a) for a in same}
    return found


def _places(graph: Graph, labels: Labels) -> set[tuple[Value, int]]:
    """Axes of activations that can lose no index, as it turns out, and that layers take for channels beside their own:
    places that a forward counts itself (points that it chooses)."""
    if not any(node.rule is not None and _has_grid(labels, v) for node in graph.nodes for v in node.outputs):
        return set()
    classes = labels.classes()

    def stays(value: Value) -> bool:
        return labels.has(value) and all((classes[n] == STAYS).all() for n in labels.arrays(value))

    found: set[tuple[Value, int]] = set()
    for node in graph.nodes:
        if any(_has_grid(labels, v) and not stays(v) for v in node.outputs):
            fixed = [v for v in node.operands if v is not None and not v.is_source and stays(v)]
            found |= {(v, a) for v in fixed for numbers in labels.arrays(v) for a in varied(numbers)}
    return found


def _has_grid(labels: Labels, value: Value) -> bool:
    """Whether an activation has numbers that vary along several axes."""
    return not value.is_source and labels.has(value) and any(len(varied(n)) > 1 for n in labels.arrays(value))


def _merged(labels: Labels) -> tuple[Numbers, Numbers, Numbers]:
    """The classes; the lines that are no channels, as they only stand for all that they contain; what layers make.

    A line that a layer makes is a channel of its own, and one with all that it contains.
    """
    made = np.unique(np.concatenate([np.zeros(0, np.int64), *(m.ravel() for m in labels.made)]))
    classes = labels.classes()
    real = np.zeros(len(classes), dtype=bool)
    real[classes[made]] = True
    lines = [np.zeros(0, np.int64)]
    for line, contained in labels.shares:
        of = classes[line]
        own = real[of] & (of != STAYS)
        if own.all():
            labels.join(line, contained)
        else:
            lines.append(line.ravel())
    return labels.classes(), np.concatenate(lines), made
