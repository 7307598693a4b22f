"""Every rule of this plugin shows what speedup asks of a rule: see ``speedup.testing.RuleTests``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import Case, RuleTests, around, chain

MAP = (2, 8, 6, 6)
TOKENS = (2, 6, 8)


class OtherNorm(nn.Module):
    """As libraries write them."""

    def __init__(self, features: int, centered: bool) -> None:
        super().__init__()
        self.weight, self.eps, self.centered = nn.Parameter(torch.ones(features)), 1e-6, centered
        if centered:
            self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.centered:
            x = x - x.mean(-1, keepdim=True)
            return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight + self.bias
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class TestConformance(RuleTests):
    plugins = ("norm",)

    def cases(self) -> list[Case]:
        return [
            chain(TOKENS, nn.LayerNorm(8), nn.RMSNorm(8), nn.LayerNorm((6, 8), elementwise_affine=False)),
            chain(MAP, nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(8, 8)),
            chain(MAP, nn.InstanceNorm2d(8, track_running_stats=True)),
            chain(TOKENS, OtherNorm(8, True), OtherNorm(8, False)),
            around(lambda m, x: F.layer_norm(x, (8,), m.scale, m.scale) + F.rms_norm(x, (8,), m.scale), TOKENS),
            around(lambda m, x: F.group_norm(x, 4, m.scale, m.scale) + F.instance_norm(x, weight=m.scale), MAP),
        ]
