"""Every rule of this plugin shows what speedup asks of a rule: see ``speedup.testing.RuleTests``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import Case, RuleTests, around, chain
from speedup_plugin_attention.weighted import attention_with_weights

TOKENS = (2, 6, 8)


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


class Function(nn.Module):
    """Calls the whole function with weights of its own."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.weights, self.o = weights, nn.Linear(8, 8)
        self.w, self.c = nn.Parameter(torch.zeros(24, 8)), nn.Parameter(torch.zeros(24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.multi_head_attention_forward(
            x, x, x, x.shape[-1], 2, self.w, self.c, None, None, False, 0.0, self.o.weight, self.o.bias,
            need_weights=self.weights,
        )[0]  # fmt: skip


class TestConformance(RuleTests):
    plugins = ("attention",)
    unasked = ("multi_head_attention_forward",)  # its calls are taken apart

    def cases(self) -> dict[str, Case]:
        attention = nn.MultiheadAttention(8, 2, batch_first=True)
        return {
            "function": chain(TOKENS, Function(False)),
            "function with weights": chain(TOKENS, Function(True)),
            "one tensor": around(lambda m, x: F.scaled_dot_product_attention(x, x + 1, x), TOKENS),
            "module": around(lambda m, x: m.layers[0](x, x, x)[0], TOKENS, [attention]),
            "encoder layer": chain(TOKENS, nn.TransformerEncoderLayer(8, 2, 4, batch_first=True)),
            **{name: Case(lambda net=net: Net(*net), torch.randn(2, 6, 5)) for name, net in NETS.items()},
        }
