"""A layer to have something to write a rule for. Delete this file and import your own layer instead."""

from __future__ import annotations

import torch
from torch import nn


@torch.library.custom_op("speedup_plugin_example::gained_tanh", mutates_args=())
def gained_tanh(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """tanh(x) times one gain per channel (axis 1). As a custom op, it is closed to speedup: only a rule can tell."""
    return torch.tanh(x) * gain.reshape(-1, *[1] * (x.ndim - 2))


class ChannelGain(nn.Module):
    """tanh(x) times one gain per channel (axis 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return gained_tanh(x, self.gain)
