"""Every rule of this plugin shows what speedup asks of a rule: see ``speedup.testing.RuleTests``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import Case, RuleTests, around, chain

MAP = (2, 8, 6, 6)
TOKENS = (2, 6, 8)


class StdConv(nn.Conv2d):
    """With standardised filters, as in BiT."""

    eps = 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        var, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        return self._conv_forward(x, (self.weight - mean) * torch.rsqrt(var + self.eps), self.bias)


class TestConformance(RuleTests):
    plugins = ("conv",)

    def cases(self) -> list[Case]:
        return [
            chain(MAP, nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular")),
            chain(MAP, nn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1, groups=2), nn.ConvTranspose2d(4, 3, 1)),
            chain(TOKENS, nn.Conv1d(6, 6, 3, groups=6), nn.ConvTranspose1d(6, 2, 2)),
            chain(MAP, StdConv(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 6, 1)),
            around(
                lambda m, x: x * m.layers[0](x.mean((2, 3))[:, None])[:, 0, :, None, None],
                MAP,
                [nn.Conv1d(1, 1, 3, padding=1)],
            ),
            around(lambda m, x: F.conv2d(x, m.weight[:, :, None, None], m.scale), MAP),
        ]
