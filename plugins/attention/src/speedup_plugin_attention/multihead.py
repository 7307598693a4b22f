"""nn.MultiheadAttention in plain calls, with sizes of its own for queries, values and heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from speedup import Call, Expanded, Expansion
from speedup_plugin_attention.fused import OUT, Q, ScaledDotProductAttention, V
from speedup_plugin_attention.weighted import attention_with_weights

Tensor = torch.Tensor
Three = tuple[Tensor, Tensor, Tensor]

if TYPE_CHECKING:
    Base = nn.MultiheadAttention
else:
    Base = object


class MultiheadForward(Expanded, Base):
    """The forward of nn.MultiheadAttention where the dimensions of a head are not embed_dim / num_heads.

    Attributes:
        num_heads, query_dim, value_dim: heads, and dimensions of each in queries (and keys), and in values.
        scale: of the original module.
    """

    num_heads: int
    scale: float
    query_dim: int
    value_dim: int

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        is_causal = is_causal and key_padding_mask is None and not need_weights
        batched = query.dim() == 3
        heads, scale, dims = self.num_heads, *sizes(self)
        q, k, v = self._projected(query, key, value, heads * dims[0], heads * dims[1])
        q, k, v = (x if not batched else x if self.batch_first else x.transpose(0, 1) for x in (q, k, v))
        q, k, v = (x if batched else x.unsqueeze(0) for x in (q, k, v))
        appended = 0
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], 1)
            appended += 1
        q, k = (torch.unflatten(x, -1, (heads, dims[0])).transpose(1, 2) for x in (q, k))
        v = torch.unflatten(v, -1, (heads, dims[1])).transpose(1, 2)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
            appended += 1
        mask = None if is_causal else _merged(attn_mask, key_padding_mask, heads, appended, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            out, weights = attention_with_weights(q, k, v, mask, dropout, scale, average_attn_weights)
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=scale)
        out = out.transpose(1, 2) if self.batch_first or not batched else out.permute(2, 0, 1, 3)
        out = self._put_out(out.flatten(2))
        if not batched:
            out, weights = out.squeeze(0), weights.squeeze(0) if weights is not None else None
        return out, weights

    def _put_out(self, x: Tensor) -> Tensor:
        """The original reads weight and bias of the layer, and calls neither its forward nor its hooks."""
        layer: nn.Module = self.out_proj
        if type(layer).forward is not nn.Linear.forward or layer._forward_hooks or layer._forward_pre_hooks:
            return F.linear(x, self.out_proj.weight, self.out_proj.bias)
        result: Tensor = layer(x)
        return result

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, rows: int, value_rows: int) -> Three:
        """Queries, keys and values, in one product as far as they are made of the same tensor."""
        widths = [rows, rows, value_rows]
        fused, bias = _held(self, "in_proj_weight"), _held(self, "in_proj_bias")
        if fused is not None and query is key and key is value:
            q, k, v = torch.split(F.linear(query, fused, bias), widths, -1)
            return q, k, v
        biases = [None] * 3 if bias is None else torch.split(bias, widths)
        weights = [_held(self, n) for n in _SEPARATE] if fused is None else torch.split(fused, widths)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))  # type: ignore[arg-type]
        return q, k, v


def _held(module: nn.Module, name: str) -> Tensor | None:
    """A parameter, or what stands in its place, such as a product with a mask."""
    held: Tensor | None = getattr(module, name)
    return held


_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


def sizes(module: nn.MultiheadAttention) -> tuple[float, tuple[int, int]]:
    """The scale, and the dimensions of a head in queries and values."""
    own, plain = vars(module), module.head_dim
    return own.get("scale", plain**-0.5), (own.get("query_dim", plain), own.get("value_dim", plain))


def _merged(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, heads: int, appended: int, like: Tensor
) -> Tensor | None:
    """Both masks as numbers to be added to the scores."""
    masks = []
    if attn_mask is not None:
        mask = torch.unflatten(attn_mask, 0, (-1, heads)) if attn_mask.dim() == 3 else attn_mask
        masks.append(_additive(mask, like))
    if key_padding_mask is not None:
        mask = key_padding_mask if key_padding_mask.dim() == 2 else key_padding_mask.unsqueeze(0)
        masks.append(_additive(mask[:, None, None, :], like))
    if appended:
        masks = [F.pad(m, (0, appended)) for m in masks]
    return None if not masks else masks[0] if len(masks) == 1 else masks[0] + masks[1]


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.is_floating_point():
        return mask
    if mask.dtype != torch.bool:
        raise AssertionError("only bool and floating types of attn_mask are supported")
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))


class MultiheadAttention(Expansion):
    """The projections are linear layers, and between them stands the fused function."""

    name = "multihead_attention"
    forwards = {nn.MultiheadAttention: MultiheadForward}  # noqa: RUF012

    def settle(self, module: nn.Module, path: str, calls: Sequence[Call]) -> bool:
        assert isinstance(module, nn.MultiheadAttention)
        scale, _ = sizes(module)
        fused = next((c.shapes for c in calls if isinstance(c.node.rule, ScaledDotProductAttention)), None)
        if fused is None:
            return False  # a subclass has not called it
        query, value, out = fused[Q], fused[V], fused[OUT]
        assert query is not None and value is not None and out is not None
        own = module.__dict__
        own.update(scale=scale, num_heads=query[1], query_dim=query[3], value_dim=value[3], head_dim=value[3])
        weights = [_held(module, n) for n in ("in_proj_weight", *_SEPARATE)]
        widths = [w.shape[1] for w in weights if w is not None] * 3
        own.update(zip(("embed_dim", "kdim", "vdim"), widths, strict=False))
        # Fast paths of torch, that of nn.TransformerEncoderLayer too, ask for this and know nothing of other sizes.
        own["_qkv_same_embed_dim"] = False
        return True
