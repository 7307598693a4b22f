"""Masks from exact zeros: weights that other tools have set to 0."""

from __future__ import annotations

import torch
from torch import nn


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    """A mask for every parameter that has entries of exactly 0, True where it has another value.

    Example:
        >>> layer = nn.ParameterDict({"weight": torch.tensor([0.0, 0.5])})
        >>> zeros(layer)
        {'weight': tensor([False,  True])}
    """
    found = {}
    for name, parameter in model.named_parameters():
        keep = parameter.detach() != 0
        if not keep.all():
            found[name] = keep.cpu()
    return found
