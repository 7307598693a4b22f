"""Every rule of this plugin shows what speedup asks of a rule: see ``speedup.testing.RuleTests``."""

from __future__ import annotations

import torch
from torch import nn

from speedup.testing import Case, RuleTests, around

MAP = (2, 8, 6, 6)
VECTOR = (2, 8)
TOKENS = (2, 6, 8)


def written(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    y.copy_(x)
    z = torch.empty(x.shape, dtype=x.dtype)
    torch.add(x, y, out=z)
    return z + y.zero_() + x.new_empty(x.shape).copy_(x)


class TestConformance(RuleTests):
    plugins = ("elementwise",)

    def cases(self) -> list[Case]:
        return [
            around(lambda m, x: (x + m.scale) * x.exp() - torch.maximum(x, x.flip(-1)), TOKENS),
            around(
                lambda m, x: x / (x.abs() + 1) + torch.addcmul(x, x, m.scale) + torch.where(x > 0, x, m.scale), TOKENS
            ),
            around(lambda m, x: x.to(torch.float32).double() + x.type_as(x), VECTOR),
            around(
                lambda m, x: x + torch.zeros(2, 8) + torch.ones(8) + torch.full((8,), 3.0) + torch.full((2, 8), 2.0),
                VECTOR,
            ),
            around(
                lambda m, x: x * x.new_ones(8) + x.new_zeros(2, 8) + x.new_full((8,), 2.0) + torch.ones_like(x), VECTOR
            ),
            around(lambda m, x: m.scale.expand_as(x) * x + x.clone().fill_(2.0), VECTOR),
            around(lambda m, x: torch.where((x > 0).logical_and(x < 1), -x, 2 * x - m.scale), VECTOR),
            around(written, VECTOR),
            around(lambda m, x: (torch.cat([x, x + 1, x], 1), torch.stack([x, -x], 1)), MAP),
        ]
