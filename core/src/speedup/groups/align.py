"""Masks from elsewhere made removable: channels that can only go together go together, or stay together."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from speedup.auxiliary import widest_trace
from speedup.errors import InputError
from speedup.groups.find import groups_of
from speedup.groups.result import Group, Indices
from speedup.inputs import resolve_inputs
from speedup.masks import Prepared
from speedup.pruning.widths import RoundTo, Widths, check, widths_of
from speedup.registry import Registry, default_registry
from speedup.trace import sandbox

Policy = Literal["union", "intersection", "vote"]
POLICIES = ("union", "intersection", "vote")


def align(
    model: nn.Module,
    dummy_input: Any,
    masks: Any = None,
    policy: Policy = "union",
    *,
    round_to: RoundTo = 1,
    registry: Registry | None = None,
) -> dict[str, torch.Tensor]:
    """Make masks removable that were made layer by layer.

    Layers whose outputs are added, say, must lose the same channels. Each of them has a say about a channel when it has
    masks: it drops the channel if all of its masked parameters drop their entries of it.

    Args:
        masks: in any form that ``speedup.plan`` takes.
        policy: "union" drops a channel if any layer does, "intersection" if all layers do that make it, "vote" if more
            than half of them do.
        round_to: numbers of channels that are left are multiples of this, in groups that are large enough for it; or
            "cpu", "cuda", "measured", as for ``speedup.prune_masks``.

    Returns:
        ``{parameter name: bool tensor}``, True = keep. Entries that were masked one by one stay masked.

    Raises:
        MaskError, InputError: the arguments cannot be used.
        TraceError: the model rejects the dummy input.

    Example:
        >>> masks = speedup.align(model, x, "masks.pt", policy="vote", round_to=8)
        >>> small = speedup.plan(model, x, masks).apply()
    """
    if policy not in POLICIES:
        raise InputError(f"policy={policy!r}: it is one of {', '.join(POLICIES)}")
    check(round_to)
    rules = registry if registry is not None else default_registry()
    prepared = Prepared(model, masks)
    try:
        given = prepared.masks.parameters
        with sandbox(model, given):
            graph = widest_trace(model, resolve_inputs(dummy_input), rules)
            groups = groups_of(graph)
            widths = widths_of(round_to, graph, groups)
    finally:
        prepared.undo()
    ballots = [_ballots(group, given) for group in groups]
    dropped = [_elect(n, g, b, policy, widths) for n, (g, b) in enumerate(zip(groups, ballots, strict=True))]
    result = {name: mask.clone() for name, mask in given.items()}
    for group, ballot, gone in zip(groups, ballots, dropped, strict=True):
        _restore(result, group, ballot, gone)
    for name, mask in groups.masks(dropped).items():
        result[name] = result[name] & mask if name in result else mask
    return {name: mask for name, mask in result.items() if not mask.all()}


def _ballots(group: Group, given: dict[str, torch.Tensor]) -> dict[str, Indices | None]:
    """Per layer that makes channels of the group which of them it drops; None where it has no say.

    A layer without masks that has filters keeps all of its channels; one without filters (a norm) has no say.
    """
    by_layer: dict[str, list[str]] = defaultdict(list)
    for member in group.members:
        if member.makes:
            by_layer[member.parameter.rpartition(".")[0]].append(member.parameter)
    entries = {m.parameter: m for m in group.members if m.makes}
    result: dict[str, Indices | None] = {}
    for layer, names in by_layer.items():
        filters = [n for n in names if entries[n].channels.ndim > 1]
        masked = [n for n in names if n in given]
        decisive = filters or names[:1]
        if not any(n in given for n in decisive):
            result[layer] = np.zeros(group.size, dtype=bool) if filters else None
            continue
        part = Group(group.size, tuple(m for m in group.members if m.makes and m.parameter in masked), group.blocks)
        left = part.sums({n: given[n].double() for n in masked})
        has = part.sums({n: torch.ones(given[n].shape) for n in masked})
        result[layer] = ((left == 0) & (has > 0)).numpy()
    return result


def _elect(number: int, group: Group, ballots: dict[str, Indices | None], policy: Policy, widths: Widths) -> Indices:
    """The channels that go: as many from each block, the most votes first."""
    said = [b for b in ballots.values() if b is not None]
    votes = np.sum(said, axis=0) if said else np.zeros(group.size, dtype=int)
    voters = np.zeros(group.size + 1, dtype=int)  # a layer has a say about the channels that it makes
    for layer in (name for name, ballot in ballots.items() if ballot is not None):
        made = [m.channels for m in group.members if m.makes and m.parameter.rpartition(".")[0] == layer]
        voters[np.unique(np.concatenate([m.ravel() for m in made])) + 1] += 1
    voters = np.maximum(voters[1:], 1)
    needed = {"union": np.ones_like(voters), "intersection": voters, "vote": voters // 2 + 1}[policy]
    counts = [int((votes >= needed)[block].sum()) for block in group.blocks]
    if len(counts) == 1 or policy == "intersection":
        count = min(counts)
    else:
        count = max(counts) if policy == "union" else round(sum(counts) / len(counts))
    smallest = min(map(len, group.blocks))
    count = min(count, smallest - 1) if count >= smallest else count
    for fewer in widths.ranked(lambda n: {number: group.left(n * len(group.blocks))}, count) if count else ():
        gone = group.even(-votes.astype(np.float64), fewer) if fewer else np.zeros(0, dtype=np.int64)
        if gone is not None:
            return gone
    return np.zeros(0, dtype=np.int64)


def _restore(result: dict[str, torch.Tensor], group: Group, ballots: dict[str, Indices | None], gone: Indices) -> None:
    """Channels that a layer drops and the election keeps are whole again."""
    stays = np.ones(group.size + 1, dtype=bool)
    stays[0] = False
    stays[gone + 1] = False
    for member in group.members:
        ballot = ballots.get(member.parameter.rpartition(".")[0]) if member.makes else None
        if ballot is None or member.parameter not in result:
            continue
        again = stays & np.concatenate([[False], ballot])
        result[member.parameter] = result[member.parameter] | torch.from_numpy(again[member.channels + 1])
