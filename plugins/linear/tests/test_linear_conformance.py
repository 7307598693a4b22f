"""Every rule of this plugin shows what speedup asks of a rule: see ``speedup.testing.RuleTests``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import Case, RuleTests, around, chain

MAP = (2, 8, 6, 6)
VECTOR = (2, 8)
TOKENS = (2, 6, 8)


class Experts(nn.Module):
    """A mixture of experts, as in transformers."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = (nn.Parameter(torch.ones(s)) for s in ((3, 2 * inner, 8), (3, 8, inner)))
        self.act_fn = nn.SiLU()

    def forward(self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        gate, up = torch.einsum("th,tkuh->tku", x, self.gate_up_proj[index]).chunk(2, -1)
        each = torch.einsum("tki,tkoi->tko", self.act_fn(gate) * up, self.down_proj[index])
        return (each * weights[..., None]).sum(1)


def routed(model: Any, x: torch.Tensor) -> torch.Tensor:
    weights, index = x[:, :3].topk(2)
    result: torch.Tensor = model.layers[0](x, index, weights)
    return result


class TestConformance(RuleTests):
    plugins = ("linear",)
    unasked = ("tensordot", "outer", "multi_dot", "solve_triangular")  # taken apart, see ``test_products``

    def cases(self) -> list[Case]:
        return [
            chain(TOKENS, nn.Linear(8, 6), nn.Linear(6, 3, bias=False)),
            around(lambda m, x: F.bilinear(x, x + 1, m.weight[None].expand(4, 8, 8), m.scale[:4]), VECTOR),
            around(routed, VECTOR, [Experts(4)]),
            around(lambda m, x: torch.addmm(m.scale, x, m.weight) + x @ m.weight, VECTOR),
            around(lambda m, x: torch.baddbmm(m.scale, x, x.transpose(1, 2) @ x), TOKENS),
            around(lambda m, x: torch.addmv(m.scale, m.weight, x[0]) + torch.inner(x, m.weight), VECTOR),
            around(
                lambda m, x: torch.einsum("ntc,oc->nto", x, m.weight) + torch.einsum("ntc,nsc->nts", x, x).sum(), TOKENS
            ),
            around(lambda m, x: torch.einsum("nc,co,no->no", x, m.weight, x), VECTOR),
            around(lambda m, x: torch.addmm(m.scale, x, m.weight, alpha=0.5), VECTOR),
        ]
