"""Every rule of this plugin shows what speedup asks of a rule: see ``speedup.testing.RuleTests``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import Case, RuleTests, around, chain

MAP = (2, 8, 6, 6)


class FrozenBatchNorm2d(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.ones(features))
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.zeros(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class TestConformance(RuleTests):
    plugins = ("batchnorm",)

    def cases(self) -> list[Case]:
        return [
            chain(MAP, nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False), FrozenBatchNorm2d(8)),
            around(
                lambda m, x: torch.batch_norm(x, m.scale, m.scale, m.scale, m.scale.abs(), False, 0.1, 1e-5, False), MAP
            ),
            around(lambda m, x: F.batch_norm(x, m.scale, m.scale.abs(), training=False), MAP),
            around(lambda m, x: F.batch_norm(x, None, None, m.scale, m.scale, training=True), MAP),
        ]
