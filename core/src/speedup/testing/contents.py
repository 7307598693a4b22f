"""Models with random contents, and inputs in float64."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

Model = TypeVar("Model", bound=nn.Module)


def randomize(model: Model, seed: int = 0) -> Model:
    """Give every floating-point parameter and buffer random contents, in place, and return the model.

    New layers hide mistakes: their shifts are 0, their scales 1, their running statistics trivial. What an entry is
    for is told from its shape and contents, not from the layer:

    * a parameter of two or more axes gets normal entries, of a size that keeps activations of order one;
    * one of fewer axes that is all ones (a scale) gets entries of either sign, away from 0; any other normal entries;
    * a buffer that is positive and has "var" in its name stays positive; any other whose entries are all equal gets
      normal entries; one whose entries differ (an index, a table of positions) was computed, and stays.

    Args:
        seed: the same seed gives the same contents; the global random state is not touched.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * scale

    def positive(tensor: torch.Tensor) -> torch.Tensor:
        return torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5

    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            if parameter.ndim > 1:
                fan = parameter[0].numel()
                parameter.copy_(normal(parameter, (2 / fan) ** 0.5))
            elif bool((parameter == 1).all()):
                parameter.copy_(positive(parameter) * normal(parameter, 1.0).sign())
            else:
                parameter.copy_(normal(parameter, 0.5))
        for name, buffer in model.named_buffers():
            if not buffer.is_floating_point() or not buffer.numel() or buffer.layout is not torch.strided:
                continue
            if "var" in name.rpartition(".")[2] and bool((buffer > 0).all()):
                buffer.copy_(positive(buffer))
            elif bool((buffer == buffer.flatten()[0]).all()):
                buffer.copy_(normal(buffer, 0.5))
    return model


def in_float64(inputs: Any) -> Any:
    """Inputs with floating-point tensors in float64."""
    return pytree.tree_map_only(torch.Tensor, lambda t: t.detach().double() if t.is_floating_point() else t, inputs)
