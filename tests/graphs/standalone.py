"""What a network of a case is filled and fed with. A case's script holds this source, so it needs nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# (batch, what is added to every spatial size), in the order in which inputs are drawn
SIZES = ((2, 0), (3, 0), (1, 2), (2, 3))


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every norm random statistics, scales and shifts, and every bias, and whatever is 0, random values."""
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == "running_mean":
                buffer.copy_(torch.randn(buffer.shape, generator=g) * 0.3)
            elif name == "running_var":
                buffer.copy_(torch.rand(buffer.shape, generator=g) + 0.5)
        norm = "Norm" in type(module).__name__
        for name, parameter in module.named_parameters(recurse=False):
            if norm and name == "weight":
                parameter.data.copy_(torch.rand(parameter.shape, generator=g) + 0.5)
            elif "bias" in name or not parameter.any():  # heads and tokens that begin as 0 would answer 0 to all
                parameter.data.copy_(torch.randn(parameter.shape, generator=g) * 0.3)
    return model


def draw_inputs(shapes: list[tuple[Any, ...]], seed: int) -> list[tuple[torch.Tensor, ...]]:
    """Inputs of every size in SIZES. A shape is (batch, channels, ...), or ("tokens", batch, length) for indices."""
    g = torch.Generator().manual_seed(seed)
    drawn = []
    for batch, more in SIZES:
        one = []
        for shape in shapes:
            if shape[0] == "tokens":
                one.append(torch.randint(0, 7, (batch, shape[2] + more), generator=g))
            else:
                size = (batch, shape[1], *[n + more for n in shape[2:]])
                one.append(torch.randn(size, generator=g, dtype=torch.float64))
        drawn.append(tuple(one))
    return drawn
