"""Norms that forwards call as functions, and that go on counting what was removed: what such calls become.

The numbers are those of ``compensated``, of one group: how many channels there were at first, and mean and sum of
squared deviations of those that went.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.overrides import wrap_torch_function

from speedup_plugin_norm.compensated import normalized
from speedup_plugin_norm.inference import counting_layer_norm, is_inference, widened


@wrap_torch_function(lambda input, *_, **__: (input,))
def layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
    *,
    total: int,
    gone_mean: float = 0.0,
    gone_spread: float = 0.0,
) -> torch.Tensor:
    """As ``F.layer_norm`` over the last axis, of ``total`` channels at first."""
    gone = total - input.shape[-1]
    if eps > 0 and is_inference(input):
        return counting_layer_norm(input, weight, bias, eps, gone, gone_mean, gone_spread)
    y = normalized(widened(input), (-1,), eps, gone, gone_mean, gone_spread).to(input.dtype)
    return _scaled(y, weight, bias, (-1,))


@wrap_torch_function(lambda input, *_, **__: (input,))
def rms_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
    *,
    total: int,
    gone_squares: float = 0.0,
) -> torch.Tensor:
    """As ``F.rms_norm`` over the last axis, of ``total`` channels at first; of those that went the sum of squares is
    told."""
    left = input.shape[-1]
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    # With n of N left and S the sum of squares: (S + N eps) / n for eps, and the result times sqrt(N / n).
    y = F.rms_norm(input, (left,), weight, (gone_squares + total * eps) / left)
    result: torch.Tensor = y * (total / left) ** 0.5
    return result


@wrap_torch_function(lambda input, *_, **__: (input,))
def group_norm(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
    *,
    total: int,
    gone_mean: float = 0.0,
    gone_spread: float = 0.0,
) -> torch.Tensor:
    """As ``F.group_norm``, of ``total`` channels in each group at first."""
    left = input.shape[1] // num_groups
    grouped = widened(input).reshape(input.shape[0], num_groups, left, -1)
    y = normalized(grouped, (2, 3), eps, total - left, gone_mean, gone_spread, positions=grouped.shape[3])
    y = y.reshape(input.shape).to(input.dtype)
    return _scaled(y, weight, bias, (-1, *(1,) * (input.ndim - 2)))


def _scaled(
    y: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, shape: tuple[int, ...]
) -> torch.Tensor:
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)
