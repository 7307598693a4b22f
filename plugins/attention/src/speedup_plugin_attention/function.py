"""F.multi_head_attention_forward, called by other modules than torch's own, and by subclasses of nn.MultiheadAttention.

The function goes on being called. It divides the width of the query among the heads, and makes the scale of its softmax
of the width of a head. So queries, values and the query itself keep equal counts, and weight and bias of the queries
take up what the scale becomes: (W · sqrt(small / whole)) with a scale of small ** -0.5 is W with whole ** -0.5.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import handle_torch_function, has_torch_function_variadic, wrap_torch_function

from speedup import Bools, Node, NodeKeep, Rule, SignatureError, along
from speedup_plugin_attention.fused import Q, ScaledDotProductAttention, V
from speedup_plugin_attention.multihead import _merged
from speedup_plugin_attention.weighted import AttentionWithWeights, attention_with_weights

Tensor = torch.Tensor


def queries(query: Tensor, weight: Tensor, bias: Tensor | None, embed_dim_to_check: int, num_heads: int) -> Tensor:
    """The product with the weight of the queries. The numbers stand where the whole function has them."""
    if has_torch_function_variadic(query, weight):
        given = query, weight, bias, embed_dim_to_check, num_heads
        found: Tensor = handle_torch_function(queries, [t for t in given if isinstance(t, Tensor)], *given)
        return found
    return F.linear(query, weight, bias)


@wrap_torch_function(lambda query, key, value, *_: (query, key, value))
def by_width(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    """The fused function with a scale that is made of the width of the query."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal)


@wrap_torch_function(lambda query, key, value, *_: (query, key, value))
def weights_by_width(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, average: bool
) -> tuple[Tensor, Tensor]:
    """The same with its weights."""
    return attention_with_weights(query, key, value, attn_mask, 0.0, query.shape[-1] ** -0.5, average)


_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def in_parts(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """What the function computes."""
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    a = bound.arguments
    heads, batched = a["num_heads"], a["query"].dim() == 3
    causal = a["is_causal"] and a["key_padding_mask"] is None and not a["need_weights"]
    given = [a[name] if batched else a[name].unsqueeze(1) for name in ("query", "key", "value")]
    if a["use_separate_proj_weight"]:
        weights = [a[f"{name}_proj_weight"] for name in "qkv"]
    else:
        weights = [*a["in_proj_weight"].chunk(3)]
    biases = [None] * 3 if a["in_proj_bias"] is None else [*a["in_proj_bias"].chunk(3)]
    named = {n: a[n] for n in ("embed_dim_to_check", "num_heads") if n in kwargs}
    q = queries(given[0], weights[0], biases[0], *(a[n] for n in _NUMBERS if n not in named), **named)
    k, v = (F.linear(x, w, b) for x, w, b in zip(given[1:], weights[1:], biases[1:], strict=True))
    appended = 0
    if a["bias_k"] is not None and a["bias_v"] is not None:
        k, v = (torch.cat([x, b.expand(-1, x.shape[1], -1)]) for x, b in ((k, a["bias_k"]), (v, a["bias_v"])))
        appended += 1
    q, k, v = (torch.unflatten(x, -1, (heads, -1)).permute(1, 2, 0, 3) for x in (q, k, v))
    if a["add_zero_attn"]:
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        appended += 1
    _check_mask(a["attn_mask"], given[0], given[1], heads)
    mask = None if causal else _merged(a["attn_mask"], a["key_padding_mask"], heads, appended, q)
    found = None
    if a["need_weights"]:
        out, found = weights_by_width(q, k, v, mask, a["average_attn_weights"])
    else:
        out = by_width(q, k, v, mask, causal)
    out = F.linear(out.permute(2, 0, 1, 3).flatten(2), a["out_proj_weight"], a["out_proj_bias"])
    return (out, found) if batched else (out.squeeze(1), None if found is None else found.squeeze(0))


def _check_mask(mask: Tensor | None, query: Tensor, key: Tensor, heads: int) -> None:
    """Refuse masks that the function refuses: products would stretch some of them.

    Raises:
        RuntimeError: as the function does.
    """
    places = (query.shape[0], key.shape[0])
    if mask is not None and mask.shape != (places if mask.dim() == 2 else (query.shape[1] * heads, *places)):
        raise RuntimeError(f"the shape of attn_mask is {tuple(mask.shape)}, which does not fit {places} positions")


_NUMBERS = ("embed_dim_to_check", "num_heads")


class MultiheadFunction(Rule):
    """The function, seen in parts."""

    name = "multi_head_attention_forward"
    functions = (F.multi_head_attention_forward,)

    def in_parts(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Callable[..., Any] | None:
        given = _SIGNATURE.bind(*args, **kwargs).arguments
        held = given.get("static_k") is not None or given.get("static_v") is not None
        drops = given.get("training", True) and given.get("dropout_p")
        return None if held or drops else in_parts

    def signature(self, node: Node) -> str:
        raise SignatureError("keys and values that are given as they are, or dropout in eval mode")


class Queries(Rule):
    """A linear layer that keeps as much for every head as the query has for it, and takes up the change of scale."""

    name = "queries of attention"
    functions = (queries,)
    call = "query, weight, bias, embed_dim_to_check, num_heads"
    operands = ("query", "weight", "bias")
    bias = "bias"
    sizes = {"embed_dim_to_check": "i"}  # noqa: RUF012

    def signature(self, node: Node) -> str:
        return f"* i, (h={node.arg('num_heads')} o) i, (h o)? -> * (h o)"

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        heads, value = node.arg("num_heads"), node.operands[0]
        assert value is not None
        grown = True
        while grown:
            super().constrain(node, keep)
            stream = np.broadcast_to(along(keep.sets[0], value.ndim - 1), value.shape[-1])
            width = node.outputs[0].shape[-1]
            own = np.broadcast_to(along(keep.sets[3], value.ndim - 1), width).reshape(heads, -1)
            count = max(-(-int(stream.sum()) // heads), int(own.sum(1).max()))
            count = (
                count if all(v is None or keep.takes(k) for k, v in enumerate(node.operands) if k) else width // heads
            )
            shape = [1] * (value.ndim - 1) + [-1]
            why = "torch divides the width of the query among the heads"
            grown = keep.grow(0, filled(stream[None], count * heads).reshape(shape), why, 3)
            grown |= keep.grow(3, filled(own, count).reshape(shape), why, 0)

    def rescale(self, node: Node, keep: NodeKeep) -> Mapping[str, float]:
        whole = node.outputs[0].shape[-1]
        left = int(np.broadcast_to(along(keep.sets[3], node.outputs[0].ndim - 1), whole).sum())
        names = enumerate(node.operand_names)
        factor = (left / whole) ** 0.5
        return {n: factor for k, n in names if factor != 1 and k and node.operands[k] is not None}


class Even(ScaledDotProductAttention):
    """Queries and values keep equally many dimensions, as many in every head; the scale is made of the width."""

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        return {}

    def fits(self, node: Node, keep: Sequence[Bools], call: Node | None = None) -> bool:
        return True

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        grown = True
        while grown:
            super().constrain(node, keep)
            grown = even(node, keep)


class ByWidth(Even):
    """The fused function."""

    name = "attention by width"
    functions: tuple[Callable[..., Any], ...] = (by_width,)
    call = "query, key, value, attn_mask, is_causal"


class WeightsByWidth(Even, AttentionWithWeights):
    """The same with weights."""

    name = "attention by width, with weights"
    functions: tuple[Callable[..., Any], ...] = (weights_by_width,)
    call = "query, key, value, attn_mask, average"


def even(node: Node, keep: NodeKeep) -> bool:
    """Keep as many dimensions of each head in the queries as in the values; whether that is more than before."""
    lines = {}
    for k in (Q, V):
        value = node.values[k]
        assert value is not None
        kept = keep.sets[k].any(axis=(0, 2))
        lines[k] = np.broadcast_to(kept, (value.shape[1], value.shape[3]))
    count = max(int(line.sum(1).max()) for line in lines.values())
    grown = False
    for k, line in lines.items():
        grown |= keep.grow(k, filled(line, count)[None, :, None], "torch has one width of a head for all", V + Q - k)
    return grown


def filled(lines: Bools, count: int) -> Bools:
    """Lines with further entries, the first that there are, until each has so many."""
    lacking = np.maximum(count - lines.sum(1, keepdims=True), 0)
    found: Bools = lines | (~lines & (np.cumsum(~lines, axis=1) <= lacking))
    return found


RULES = (MultiheadFunction, Queries, ByWidth, WeightsByWidth)
