"""The gate of many language models as one fused op: silu(gate) * value, with gate and value in one tensor."""

from __future__ import annotations

import torch
import torch.nn.functional as F


@torch.library.custom_op("third_party::silu_and_mul", mutates_args=())
def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """silu(x[..., :c]) * x[..., c:], for x of 2·c channels."""
    gate, value = x.chunk(2, -1)
    return F.silu(gate) * value


@silu_and_mul.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


def _backward(ctx, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
    (x,) = ctx.saved_tensors
    gate, value = x.chunk(2, -1)
    s = gate.sigmoid()
    return torch.cat([grad * value * s * (1 + gate * (1 - s)), grad * gate * s], -1)


silu_and_mul.register_autograd(_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
