"""Models around a function: something in front that can be masked, and tensors for the function to use."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from speedup.testing.case import Case


class Around(nn.Module):
    """A layer that can be masked, then a function of this module and of what the layer makes.

    Attributes:
        first: a linear layer along the last axis, or a 1x1 convolution for inputs of four axes; it keeps the size.
        layers: the modules given.
        weight, scale: parameters of shape (C, C) and (C,) for the function to use, C channels of the input.
    """

    def __init__(self, function: Callable[..., Any], shape: Sequence[int], layers: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        last = len(shape) != 4
        channels = shape[-1] if last else shape[1]
        self.first: nn.Module = nn.Linear(channels, channels) if last else nn.Conv2d(channels, channels, 1)
        self.layers = nn.ModuleList(layers)
        self.weight = nn.Parameter(torch.ones(channels, channels))
        self.scale = nn.Parameter(torch.ones(channels))
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, self.first(x))


def around(
    function: Callable[..., Any], shape: Sequence[int], layers: Sequence[nn.Module] = (), **options: Any
) -> Case:
    """Give a case for a function, or for modules that are called in some other way than one after the other.

    Args:
        function: takes the ``Around`` module and a tensor, and gives what the model gives.
        shape: of the input: (N, C, H, W), or any other number of axes with the channels last.
        layers: modules for the function to call, as ``m.layers[0]``.
        options: of the ``Case``.

    Example:
        >>> case = around(lambda m, x: torch.addcmul(x, x, m.scale), (2, 8))
    """
    x = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(1))
    return Case(lambda: Around(function, shape, copy.deepcopy(list(layers))), x, **options)


def chain(shape: Sequence[int], *layers: nn.Module, **options: Any) -> Case:
    """Give a case for modules that are called one after the other; see ``around``.

    Example:
        >>> case = chain((2, 8, 6, 6), nn.BatchNorm2d(8), nn.ReLU())
    """
    return around(_in_turn, shape, layers, **options)


def _in_turn(model: Around, x: torch.Tensor) -> torch.Tensor:
    for layer in model.layers:
        x = layer(x)
    return x
