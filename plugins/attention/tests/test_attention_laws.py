"""The laws of inference, for forms of attention that the tests of all families do not have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import check_laws, random_masks, randomize
from speedup_plugin_attention.weighted import attention_with_weights


class Net(nn.Module):
    """Query of four heads, key and value of ``heads``, through a function."""

    def __init__(self, heads: int, function: Any) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, 12), nn.Linear(5, 3 * heads), nn.Linear(5, 2 * heads)
        self.heads, self.function = heads, function
        self.table = nn.Parameter(torch.zeros(4, 6, 6))
        self.register_buffer("closed", torch.ones(6, 6).triu(0).bool())

    def forward(self, x: torch.Tensor) -> Any:
        q = self.q(x).unflatten(-1, (4, 3)).transpose(1, 2)
        k, v = (m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.k, self.v))
        return self.function(self, q, k, v)


def _masked(m: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, m.table.masked_fill(m.closed, -torch.inf))


def _mask_of_the_input(m: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, q[..., :1] > k[..., 0].unsqueeze(-2))


NETS: dict[str, tuple[int, Any]] = {
    "causal": (4, lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
    "grouped": (2, lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, m.table, enable_gqa=True)),
    "one key": (1, lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)),
    "broadcast": (1, lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v)),
    "table": (4, lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, m.table)),
    "rows that are closed": (4, _masked),
    "mask of the input": (4, _mask_of_the_input),
    "weights": (4, lambda m, q, k, v: attention_with_weights(q, k, v, m.table, 0.0, 0.3, True)),
    "weights of heads": (4, lambda m, q, k, v: attention_with_weights(q, k, v, None, 0.0, 0.3, False)),
}


@pytest.mark.parametrize("kind", ["filters", "filters+biases", "mixed"])
@pytest.mark.parametrize("name", NETS)
def test_laws(name: str, kind: str) -> None:
    for seed in range(2):
        model = randomize(Net(*NETS[name]), seed)
        x = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(seed))
        asked = check_laws(model, x, random_masks(model, seed, kind), seed=seed, rounds=6)
        assert asked & {"scaled_dot_product_attention", "attention_with_weights"}
