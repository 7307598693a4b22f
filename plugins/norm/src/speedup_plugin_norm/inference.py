"""Layer norms over the last axis and what was removed, where nothing but an answer is asked for.

When a norm is reached, the layer before it has left nothing of it in the caches, neither numbers nor what is called: a
call takes several times as long as it does by itself. So this is one function, and asks little.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import constant_pad_nd as pad
from torch import get_num_threads, is_grad_enabled
from torch._C import (
    _get_tracing_state as is_traced,  # as ``nn.Module`` asks; ``torch.jit.is_tracing`` is two calls more
)
from torch.compiler import is_dynamo_compiling
from torch.linalg import vector_norm

HALF = (torch.float16, torch.bfloat16)
_AT_ONCE = 1 << 20  # numbers that several passes are made over: of more, each touches memory that is new
# Zeros for each channel that is left, and numbers for each thread, up to which to write the zeros out takes less than
# passes: of half precision more, which passes would have to be made over in a wider type.
_FEW_ZEROS, _FEW, _FEW_HALF = 2, 1 << 13, 3 << 14


def widened(x: torch.Tensor) -> torch.Tensor:
    """In float32 at least."""
    return x.float() if x.dtype in HALF else x


def is_inference(x: torch.Tensor) -> bool:
    """Whether nothing but an answer is asked for.

    A compiler fuses the plain calls better by itself. ``torch.jit.trace`` compares what it records with gradients with
    what it records without, and is to see the same calls. Exporters bring tensors of a class of their own.
    """
    return type(x) is torch.Tensor and not (is_grad_enabled() or is_dynamo_compiling() or is_traced())


def counting_layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    gone: int,
    gone_mean: float = 0.0,
    gone_spread: float = 0.0,
) -> torch.Tensor:
    """The layer norm over the last axis and what was removed; no gradients are to be taken.

    By sums over what is left, in float32 at least. Over all N channels, of which R went and were zeros,

        N · variance = Σ (x - mean)² + R · mean²

    Torch's kernel takes longer for its mean and variance than these sums do, and would have to be corrected.

    Args:
        gone, gone_mean, gone_spread: how many were removed, their mean and sum of squared deviations.
    """
    left, dtype, count = x.shape[-1], x.dtype, x.numel()
    if count > _AT_ONCE and count > left:
        return _in_parts(x, weight, bias, eps, gone, gone_mean, gone_spread)
    few = count <= (_FEW_HALF if dtype in HALF else _FEW) * get_num_threads() and 0 < gone <= _FEW_ZEROS * left
    alike = (weight is None or weight.dtype == dtype) and (bias is None or bias.dtype == dtype)
    if few and alike and gone_mean == gone_spread == 0:
        return _padded(x, weight, bias, eps, gone)
    wide = widened(x)
    if weight is not None:
        if dtype in HALF and weight.dtype != dtype:
            dtype = torch.promote_types(dtype, weight.dtype)
        # An original with a forward of its own may bring weights to the type of the input.
        weight = weight.to(wide.dtype)
    if bias is not None:
        bias = bias.to(wide.dtype)
    if gone_mean:
        wide = wide - gone_mean  # all are moved, so that zeros went
    total, wide = left + gone, wide.contiguous()
    sums = wide.sum(-1, True)
    y = wide.sub(sums, alpha=1 / total) if wide is x else wide.sub_(sums, alpha=1 / total)
    squares = torch.addcmul(vector_norm(y, 2, -1, True).square(), sums, sums, value=gone / total**2)
    y = y.mul_(squares.add_(eps * total + gone_spread).rsqrt_())
    root = total**0.5
    if weight is not None:
        y = y.mul_(root) * weight if bias is None else torch.addcmul(bias, y, weight, value=root)
    else:
        y = y.mul_(root) if bias is None else torch.add(bias, y, alpha=root)
    return y.to(dtype)


def _in_parts(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """The same, some positions at a time, so that the passes use the same memory again."""
    left = x.shape[-1]
    rows, step = x.reshape(-1, left), max(1, _AT_ONCE // left)
    made: torch.Tensor | None = None
    for start in range(0, len(rows), step):
        part = counting_layer_norm(rows[start : start + step], *arguments)
        made = part.new_empty(rows.shape) if made is None else made
        made[start : start + step] = part
    assert made is not None
    return made.view(x.shape)


def _padded(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, gone: int
) -> torch.Tensor:
    """The same by torch's kernel, over as many zeros as went."""
    zeros, total = (0, gone), x.shape[-1] + gone
    weight = weight if weight is None else pad(weight, zeros)
    bias = bias if bias is None else pad(bias, zeros)
    return pad(torch.native_layer_norm(pad(x, zeros), (total,), weight, bias, eps)[0], (0, -gone))
