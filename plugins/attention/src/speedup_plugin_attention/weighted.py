"""Attention that returns its weights too, and its rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import wrap_torch_function

from speedup import Bools, Node, NodeFacts, NodeKeep, SignatureError
from speedup_plugin_attention.fused import OUT, Q, ScaledDotProductAttention

WEIGHTS = OUT + 1


@wrap_torch_function(lambda query, key, value, *_: (query, key, value))
def attention_with_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    scale: float,
    average: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``F.scaled_dot_product_attention``, for (batch, head, position, dimension), with the weights.

    Args:
        average: whether the weights are averaged over heads.
    """
    scores = (query * scale) @ key.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores + attn_mask
    weights = scores.softmax(-1)
    if dropout_p:
        weights = F.dropout(weights, dropout_p)
    return weights @ value, weights.mean(1) if average else weights


class AttentionWithWeights(ScaledDotProductAttention):
    """The same axes, and a second output. Where it is read, all heads stay whose weights it has."""

    name = "attention_with_weights"
    functions: tuple[Callable[..., Any], ...] = (attention_with_weights,)
    call = "query, key, value, attn_mask, dropout_p, scale, average"

    def signature(self, node: Node) -> str:
        if any(v is None or v.ndim != 4 for v in node.operands[:3]):
            raise SignatureError("four axes are expected")
        return f"{super().signature(node)}, {'~1' if node.arg('average') else '*'} ~1 ~1"

    def idle(self, node: Node, facts: NodeFacts, zeros: bool = False) -> Bools:
        return super().idle(node, facts, zeros) & _unread_weights(node, facts)

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        super().constrain(node, keep)
        if node.arg("average") and not _unread_weights(node, keep.facts).all():
            value = node.values[Q]
            assert value is not None
            first = (np.arange(value.shape[-1]) == 0).reshape(1, 1, 1, -1)
            keep.grow(Q, first, "the weights are averaged over all heads", WEIGHTS)


def _unread_weights(node: Node, facts: NodeFacts) -> Bools:
    return node.layout.project_all(WEIGHTS, node.layout.to_named(WEIGHTS, facts.unused(WEIGHTS)))
