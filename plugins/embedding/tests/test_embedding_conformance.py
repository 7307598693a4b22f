"""Every rule of this plugin shows what speedup asks of a rule: see ``speedup.testing.RuleTests``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import Case, RuleTests, around

MAP = (2, 8, 6, 6)
VECTOR = (2, 8)
TOKENS = (2, 6, 8)


class TestConformance(RuleTests):
    plugins = ("embedding",)

    def cases(self) -> list[Case]:
        return [
            around(
                lambda m, x: (
                    x + F.embedding(torch.arange(6), m.weight)[None] + m.weight[torch.tensor([1, 1, 0, 2, 3, 4])]
                ),
                TOKENS,
            ),
            around(lambda m, x: x + m.layers[0](torch.arange(6) % 3), TOKENS, [nn.Embedding(3, 8)]),
            around(
                lambda m, x: x + torch.embedding(m.weight, torch.arange(6)) * torch.embedding(x[0], torch.arange(6)),
                TOKENS,
            ),
            around(lambda m, x: x + m.layers[0](torch.arange(6).view(2, 3)), VECTOR, [nn.EmbeddingBag(7, 8)]),
            around(
                lambda m, x: [
                    F.embedding_bag(i, table, mode=mode, padding_idx=padding)
                    for table in (m.layers[0].weight, x)
                    for i in [torch.tensor([[0, 1], [1, 1], [0, 0]])]
                    for mode in ("sum", "mean", "max")
                    for padding in (None, 0)
                ],
                VECTOR,
                [nn.Embedding(2, 8)],
            ),
            around(
                lambda m, x: [
                    F.embedding_bag(
                        torch.tensor([0, 1, 1]), t, torch.tensor([0, 0, 2, 3]), mode=mode, include_last_offset=last
                    )
                    for t in (m.weight, x)
                    for mode in ("sum", "mean", "max")
                    for last in (False, True)
                ],
                VECTOR,
            ),
            around(
                lambda m, x: F.embedding_bag(
                    torch.tensor([[0, 1], [1, 1]]), x, mode="sum", per_sample_weights=m.weight[:2, :2]
                ),
                VECTOR,
            ),
        ]
