"""What is said of the channels of a model: groups of them, and where each has its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from speedup.groups.mixing import Mixing

Indices: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Member:
    """The part of one parameter that belongs to the channels of a group.

    Attributes:
        parameter: its qualified name.
        axis: the axis whose indices belong to channels; None where a channel is no whole index (a column of one
            group of a grouped convolution).
        channels: int array that broadcasts to the parameter's shape: the number of the channel in its group that an
            entry belongs to, -1 where to none.
        makes: whether the entries make the channel (a filter, a bias, the scale of a norm); else they read it.
    """

    parameter: str
    axis: int | None
    channels: Indices
    makes: bool

    def indices(self, channel: int) -> tuple[int, ...]:
        """The indices along ``axis`` that belong to one channel."""
        if self.axis is None:
            return ()
        return tuple(int(i) for i in np.flatnonzero(self.channels.reshape(-1) == channel))


@dataclass(frozen=True, eq=False)
class Activation:
    """An activation that holds channels of a group, as the layer that reads them sees it.

    Attributes:
        call: the number of the call that makes it, in the order in which the model makes its calls.
        output: which of the tensors that the call gives.
        channels: int array that broadcasts to it: the number of the channel, -1 where there is none.
    """

    call: int
    output: int
    channels: Indices


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that are alike: they come from the same layers and are read by the same layers.

    One channel is the smallest thing that can go, and goes with all of its members. Channels of different blocks go in
    equal numbers: the groups of a grouped convolution, the heads of an attention, the halves of a ``chunk``.

    Attributes:
        size: the number of channels.
        members: where they are.
        blocks: arrays of channel numbers; the same count goes from each. One block with all where nothing binds them.
        heads: what can also go whole: the heads of an attention, the groups of a grouped convolution. Each is a tuple
            of channel numbers; empty where there are none.
        bundle: a number that groups share whose heads go together (the queries and values of one attention); None
            where there are no heads.
        mixing: which channels of the blocks can stay together, where what is shuffled is divided again; None where
            equal counts are enough.
    """

    size: int
    members: tuple[Member, ...]
    blocks: tuple[Indices, ...]
    heads: tuple[tuple[int, ...], ...] = ()
    bundle: int | None = None
    activations: tuple[Activation, ...] = ()
    mixing: Mixing | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The first parameter that makes the channels."""
        return next((m.parameter for m in self.members if m.makes), self.members[0].parameter)

    @property
    def producers(self) -> tuple[str, ...]:
        """The parameters that make the channels."""
        return tuple(dict.fromkeys(m.parameter for m in self.members if m.makes))

    def left(self, gone: int) -> int:
        """How many channels a layer has left when ``gone`` of the group go."""
        return (self.size - gone) // (len(self.blocks) if self.mixing is not None else 1)

    def even(self, scores: ArrayLike, count: int) -> Indices | None:
        """The channels of lowest scores, ``count`` of each block; None where that many cannot go.

        Args:
            scores: one number per channel.
            count: how many, less than a block has.

        Example:
            >>> group.even(group.sums(magnitudes), 4)
        """
        values = np.asarray(scores, dtype=np.float64)
        if self.mixing is None:
            order = [block[np.argsort(values[block], kind="stable")[:count]] for block in self.blocks]
            return np.sort(np.concatenate(order))
        stay = self.mixing.best([values[block] for block in self.blocks], self.mixing.size - count)
        if stay is None:
            return None
        gone = [np.delete(block, places) for block, places in zip(self.blocks, stay, strict=True)]
        return np.sort(np.concatenate(gone))

    def channel(self, number: int) -> list[tuple[str, int, tuple[int, ...]]]:
        """Where one channel is: (parameter, axis, indices) for every member that it is a whole index of."""
        found = [(m.parameter, m.axis, m.indices(number)) for m in self.members if m.axis is not None]
        return [each for each in found if each[2]]

    def sums(self, of: Mapping[str, torch.Tensor], makes: bool | None = None) -> torch.Tensor:
        """Per channel the sum of the entries that belong to it, float64.

        Args:
            of: a tensor by parameter name, of the parameter's shape; members without one count as 0.
            makes: only members that make the channels, or that read them.
        """
        total = torch.zeros(self.size + 1, dtype=torch.float64)
        for member in self.members:
            if member.parameter in of and makes in (None, member.makes):
                values = of[member.parameter].detach().to("cpu", torch.float64)
                numbers = torch.from_numpy(member.channels)
                over = [a for a, s in enumerate(numbers.shape) if s == 1 and values.shape[a] > 1]
                summed = values.sum(over, keepdim=True) if over else values
                total.index_add_(0, (numbers + 1).reshape(-1), summed.expand(numbers.shape).reshape(-1))
        return total[1:]

    def __str__(self) -> str:
        even = f", {len(self.blocks)} blocks go evenly" if len(self.blocks) > 1 else ""
        heads = f", or {len(self.heads)} heads whole" if self.heads else ""
        lines = [f"{self.name}: {self.size} channels{even}{heads}"]
        for member in self.members:
            verb = "makes" if member.makes else "reads"
            where = "entries" if member.axis is None else f"axis {member.axis}"
            if member.axis is not None:
                where += f" {_ranges(np.flatnonzero(member.channels.reshape(-1) >= 0))}"
            lines.append(f"  {verb} {member.parameter} {where}")
        return "\n".join(lines)


def _ranges(indices: Indices) -> str:
    """``[0, 1, 2, 7]`` as ``[0-2, 7]``."""
    parts = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
    texts = [f"{p[0]}" if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts if len(p)]
    shown = texts[:4] + (["..."] if len(texts) > 4 else [])
    return f"[{', '.join(shown)}]"


@dataclass(frozen=True, eq=False)
class ChannelGroups(Sequence[Group]):
    """All groups of a model, in the order in which the model makes them; printable.

    Attributes:
        shapes: of the parameters, by name.
    """

    groups: tuple[Group, ...]
    shapes: Mapping[str, tuple[int, ...]]

    def __getitem__(self, number: Any) -> Any:
        return self.groups[number]

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def of(self, parameter: str) -> list[Group]:
        """The groups that a parameter has channels of."""
        return [g for g in self.groups if any(m.parameter == parameter for m in g.members)]

    def masks(self, dropped: Sequence[Indices]) -> dict[str, torch.Tensor]:
        """Masks that drop channels: per group their numbers. ``{parameter name: bool tensor}``, True = keep."""
        masks: dict[str, torch.Tensor] = {}
        for group, numbers in zip(self.groups, dropped, strict=True):
            gone = np.zeros(group.size + 1, dtype=bool)
            gone[np.asarray(numbers, dtype=np.int64) + 1] = True
            if not gone.any():
                continue
            for member in group.members:
                keep = ~gone[member.channels + 1]
                if not keep.all():
                    shape = self.shapes[member.parameter]
                    mask = masks.setdefault(member.parameter, torch.ones(shape, dtype=torch.bool))
                    mask &= torch.from_numpy(keep)
        return masks

    def __str__(self) -> str:
        return "\n".join(str(group) for group in self.groups) or "no channel can go"
