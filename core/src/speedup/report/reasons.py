"""Reasons: what keeps masked indices, ranked by the parameters that it costs, and what can be done about each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from speedup.kinds import Kind
from speedup.report.data import Kept, short_path


@dataclass(frozen=True)
class Reason:
    """One thing that keeps masked indices, at one place in the code.

    Attributes:
        kind: see `speedup.kinds.Kind`.
        why: what keeps them.
        op: the op of the call that does.
        calls: the calls that do, by their modules.
        where: ``file:line`` in the code of the model.
        indices: how many masked indices stay.
        parameters: how many parameters they are.
        layers: the parameters that they are of, the largest share first.
        advice: what can be done about it; "" where nothing can.
    """

    kind: Kind
    why: str
    op: str
    calls: tuple[str, ...]
    where: str
    indices: int
    parameters: int
    layers: tuple[str, ...]
    advice: str

    @property
    def call(self) -> str:
        """The calls in short."""
        return some(self.calls, 1)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "kind": self.kind.value, "calls": list(self.calls), "layers": list(self.layers)}


def ranked(stays: Sequence[Kept]) -> list[Reason]:
    """The reasons for what stays, the most parameters first; calls on one line of code are one reason."""
    groups: dict[tuple[str, str, str], list[Kept]] = {}
    for kept in stays:
        groups.setdefault((kept.why, kept.op, kept.where), []).append(kept)
    found = [_reason(group) for group in groups.values()]
    return sorted(found, key=lambda r: (-r.parameters, r.where, r.why))


def _reason(group: Sequence[Kept]) -> Reason:
    first = group[0]
    return Reason(
        first.kind,
        first.why,
        first.op,
        tuple(dict.fromkeys(k.call for k in group if k.call)),
        first.where,
        sum(len(k.indices) for k in group),
        sum(k.parameters for k in group),
        tuple(dict.fromkeys(k.name for k in sorted(group, key=lambda k: -k.parameters))),
        advice(group),
    )


def advice(group: Sequence[Kept]) -> str:
    """What can be done about masked indices that stay for one reason."""
    return _ADVICE[group[0].kind](group)


def _needed(group: Sequence[Kept]) -> str:
    apart = tuple(dict.fromkeys(p for k in group for p in k.partners))
    if not apart:
        return "Something that is not masked makes these indices too. Mask it alike, or leave these masks out."
    return f"Mask the same indices of {some(apart, 4)} too: they are joined there, and only what all have masked goes."


def _barrier(group: Sequence[Kept]) -> str:
    first = group[0]
    if first.note:
        return f"No rule takes this call of {first.op}: {first.note}. Change the call, or write a rule for it."
    begin = f" (begin with: {first.command})" if first.command else ""
    return f"Write a rule for {first.op}, about ten lines{begin}: docs/write-a-plugin.md"


def _size(group: Sequence[Kept]) -> str:
    place = short_path(group[0].where)
    at = f" at {place}" if place else ""
    return (
        f"The code{at} holds a size that could not be repaired. Take it from the tensor: x.flatten(1) or x.shape[1] "
        "or -1 in place of a number."
    )


def _mean(group: Sequence[Kept]) -> str:
    place = short_path(group[0].where)
    at = f" at {place}" if place else ""
    return (
        f"The code{at} takes a mean over these, and what is left would be divided by too little. Take the mean in the "
        "forward of a module, or in a function that the forward calls by name: there it is repaired."
    )


def _contents(group: Sequence[Kept]) -> str:
    return (
        "Masks alone do not tell what these numbers are. Mask the same indices of them too (a bias, the weight and "
        "shift of a norm), or plan with the weights in memory."
    )


def _carrier(group: Sequence[Kept]) -> str:
    return (
        "These few carry what all that went contributed, and nothing needs to be done. With constants of 0 behind a "
        "convolution (its bias and the shift of its norm masked too) none is needed."
    )


def _constant(group: Sequence[Kept]) -> str:
    return (
        "The masked indices give constants that are not 0, and the layer that reads them cannot take them up: its "
        "weight is computed, or read elsewhere too, where other constants go. Mask the bias, or the shift of the norm, "
        "that makes them."
    )


def _data(group: Sequence[Kept]) -> str:
    return (
        "Code that looks at the data may take another way for other data. Compute with tensors instead (torch.where), "
        "or move the look behind the last layer that is masked."
    )


_ADVICE: dict[Kind, Callable[[Sequence[Kept]], str]] = {
    Kind.NEEDED: _needed,
    Kind.BARRIER: _barrier,
    Kind.SIZE: _size,
    Kind.MEAN: _mean,
    Kind.CONTENTS: _contents,
    Kind.CARRIER: _carrier,
    Kind.CONSTANT: _constant,
    Kind.DATA: _data,
    Kind.OUTPUT: lambda _: (
        "Outputs keep their shape. Leave the layer that makes them unmasked, or cut the output yourself before."
    ),
    Kind.INPUT: lambda _: "Inputs come as they are. Masks that meet them cannot take anything away.",
    Kind.ATTRIBUTE: lambda _: (
        "Register it as a buffer, self.register_buffer(name, tensor, persistent=False): buffers are cut, and move "
        "along with the model."
    ),
    Kind.RUNS: lambda _: (
        "One number in the code says how large these are in every run of the line: mask as many in each."
    ),
    Kind.COUNT: lambda _: (
        "Parts of one tensor (groups, heads, chunks) stay equally large: mask the same number in each, or a whole part."
    ),
    Kind.LEAST: lambda _: "A tensor is never empty. A layer that is masked whole can be taken out by hand.",
    Kind.RIGID: lambda _: "The call mixes this axis or reads all of it: what is masked behind it goes, not before.",
    Kind.RULE: lambda _: "The call would not work, or not give the same, with fewer. Mask what it reads alike.",
}


def some(names: Sequence[str], most: int) -> str:
    """The first of some names, and how many more there are."""
    text = ", ".join(names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text
