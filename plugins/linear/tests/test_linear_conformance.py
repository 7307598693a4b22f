"""Every rule of this plugin shows what speedup asks of a rule: see ``speedup.testing.RuleTests``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import Case, RuleTests, around, chain

MAP = (2, 8, 6, 6)
VECTOR = (2, 8)
TOKENS = (2, 6, 8)


class TestConformance(RuleTests):
    plugins = ("linear",)

    def cases(self) -> list[Case]:
        return [
            chain(TOKENS, nn.Linear(8, 6), nn.Linear(6, 3, bias=False)),
            around(lambda m, x: F.bilinear(x, x + 1, m.weight[None].expand(4, 8, 8), m.scale[:4]), VECTOR),
            around(lambda m, x: torch.addmm(m.scale, x, m.weight) + x @ m.weight, VECTOR),
            around(lambda m, x: torch.baddbmm(m.scale, x, x.transpose(1, 2) @ x), TOKENS),
            around(lambda m, x: torch.addmv(m.scale, m.weight, x[0]) + torch.inner(x, m.weight), VECTOR),
            around(
                lambda m, x: torch.einsum("ntc,oc->nto", x, m.weight) + torch.einsum("ntc,nsc->nts", x, x).sum(), TOKENS
            ),
        ]
