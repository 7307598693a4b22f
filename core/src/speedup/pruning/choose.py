"""From scores to channels: what goes first, how much of each group, and in equal numbers where that is needed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from speedup.arrays import Floats
from speedup.groups.result import ChannelGroups, Group, Indices
from speedup.pruning.widths import Widths


@dataclass(frozen=True)
class Step:
    """The smallest thing that can go next: one channel, one of each block, or one head; by group."""

    channels: Mapping[int, Sequence[int]]
    score: float


@dataclass(frozen=True, eq=False)
class Queue:
    """The steps of one group, or of groups whose heads go together, the cheapest first; at least one step stays.

    Attributes:
        share: the part that is to go.
        fixed: whether that part was asked for by name, so that a global choice does not touch it.
        widths: which numbers of channels may be left.
        mixed: the number of a group whose blocks are mixed, and its scores: it says which channels can go together.
    """

    steps: Sequence[Step]
    share: float
    fixed: bool
    widths: Widths
    mixed: tuple[int, Floats] | None = None

    def count(self, share: float) -> int:
        """How many steps go of this share."""
        return min(math.floor(len(self.steps) * share + 1e-9), len(self.steps) - 1)

    def gone(self, count: int, groups: Sequence[Group]) -> Mapping[int, Sequence[int]]:
        """The channels by group of the best number of steps up to ``count`` that can go."""

        def going(steps: int) -> dict[int, list[int]]:
            found: dict[int, list[int]] = {number: [] for step in self.steps[:1] for number in step.channels}
            for step in self.steps[:steps]:
                for group, channels in step.channels.items():
                    found[group] += channels
            return found

        def left(steps: int) -> dict[int, int]:
            return {number: groups[number].left(len(channels)) for number, channels in going(steps).items()}

        for fewer in self.widths.ranked(left, count) if count else ():
            if not fewer:
                break
            if self.mixed is None:
                return going(fewer)
            number, scores = self.mixed
            found = groups[number].even(scores, fewer)
            if found is not None:
                return {number: found.tolist()}
        return {}


def queues(
    groups: ChannelGroups,
    scores: Mapping[int, torch.Tensor],
    shares: Mapping[int, tuple[float, bool]],
    widths: Widths,
    whole_heads: bool,
) -> list[Queue]:
    """The queues of all groups that have scores."""
    found = []
    bundles: dict[int, list[int]] = defaultdict(list)
    for number in scores:
        group = groups[number]
        if whole_heads and group.bundle is not None:
            bundles[group.bundle].append(number)
            continue
        values = scores[number].numpy()
        lines = [block[np.argsort(values[block], kind="stable")] for block in group.blocks]
        steps = []
        for place in range(min(map(len, lines))):
            channels = [int(line[place]) for line in lines]
            steps.append(Step({number: channels}, float(values[channels].mean())))
        mixed = (number, values) if group.mixing is not None else None
        found.append(Queue(steps, *shares[number], widths, mixed))
    for members in bundles.values():
        # Heads that go together stand at the same places in their groups.
        count = min(len(groups[n].heads) for n in members)
        heads = []
        for place in range(count):
            channels_of = {n: groups[n].heads[place] for n in members}
            total = sum(float(scores[n][list(c)].sum()) for n, c in channels_of.items())
            heads.append(Step(channels_of, total))
        share = min((shares[n] for n in members), key=lambda s: (not s[1], s[0]))  # what was asked for by name first
        found.append(Queue(sorted(heads, key=lambda s: s.score), *share, widths))
    return found


def choose(groups: ChannelGroups, waiting: Sequence[Queue], share: float | None, comparable: bool) -> list[Indices]:
    """Per group the numbers of the channels that go.

    Args:
        share: the part of all channels that is to go wherever the scores are lowest; None takes each queue's own.
        comparable: whether scores of different queues mean the same.
    """
    counts = [queue.count(queue.share) for queue in waiting]
    if share is not None:
        free = [k for k, queue in enumerate(waiting) if not queue.fixed]
        for k, count in zip(free, _global([waiting[k] for k in free], share, comparable), strict=True):
            counts[k] = count
    dropped: list[list[int]] = [[] for _ in groups]
    for queue, count in zip(waiting, counts, strict=True):
        for number, channels in queue.gone(count, groups.groups).items():
            dropped[number] += channels
    return [np.array(sorted(d), dtype=np.int64) for d in dropped]


def _global(waiting: Sequence[Queue], share: float, comparable: bool) -> list[int]:
    """How many steps of each queue are among the lowest of all."""
    values, owners, sizes = [], [], []
    for k, queue in enumerate(waiting):
        scores = np.array([s.score for s in queue.steps])
        mean = np.abs(scores).mean()
        scores = scores if comparable or mean == 0 else scores / mean
        for step, score in zip(queue.steps[:-1], np.maximum.accumulate(scores), strict=False):
            values.append(score)
            owners.append(k)
            sizes.append(sum(map(len, step.channels.values())))
    total = sum(sum(map(len, s.channels.values())) for q in waiting for s in q.steps)
    order = np.argsort(np.array(values), kind="stable")
    inside = np.cumsum(np.array(sizes)[order]) <= share * total + 1e-9 if len(order) else np.zeros(0, dtype=bool)
    counts = np.bincount(np.array(owners, dtype=np.int64)[order[inside]], minlength=len(waiting))
    return [int(c) for c in counts]
