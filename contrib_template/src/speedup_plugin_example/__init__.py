"""speedup rules for ChannelGain."""

from __future__ import annotations

from collections.abc import Iterable

from speedup import Rule, hookimpl

from .layers import ChannelGain

speedup_contract = 1


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    return [
        Rule(
            name="channel_gain",
            modules=(ChannelGain,),
            operands=("input", "gain"),  # "gain" is an attribute of the module, "input" is what its forward is given
            axes="n c *, c -> n c *",
            annihilates={"gain": ("input",)},  # where the gain is 0, the output does not depend on the input
            sizes={"channels": "c"},  # this attribute of the module counts the channels
        ),
    ]
