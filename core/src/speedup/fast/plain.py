"""A call as a plainer one, which the calls around it make right."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from speedup.arrays import Floats


@dataclass(frozen=True, eq=False)
class Plain:
    """A plainer module, and what the layers in front of it and behind it do instead.

    With another number in one channel of what comes in, the carrier, a constant so far,

        input[carrier] = sum over c of sums[c] * input[c]

    the module gives ``made``, and what the call gave is, for each channel c,

        output[c] = made[c] + onto[c] * made[carrier]

    Attributes:
        module: what can stand in the place of the module.
        axis: that of the channels, of what comes in and of what comes out; not negative.
        carrier: a channel that is a constant.
        sums, onto: (channels,), float64.
    """

    module: nn.Module
    axis: int
    carrier: int
    sums: Floats
    onto: Floats
