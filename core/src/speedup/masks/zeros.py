"""Masks from exact zeros: weights that other tools have set to 0."""

from __future__ import annotations

import torch
from torch import nn

from speedup import walk
from speedup.errors import MaskError


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    """A mask for every parameter that has entries of exactly 0, True where it has another value.

    Raises:
        MaskError: a parameter has no contents.

    Example:
        >>> layer = nn.ParameterDict({"weight": torch.tensor([0.0, 0.5])})
        >>> zeros(layer)
        {'weight': tensor([False,  True])}
    """
    found = {}
    scripted = walk.scripted(dict(walk.all_paths(model)))
    for name, parameter in model.named_parameters():
        if id(parameter) in scripted:
            continue  # stays as it is
        if parameter.is_meta:
            raise MaskError(
                f"{name} is on the meta device: without contents there are no zeros to find. Pass masks, or the model "
                "with its weights"
            )
        keep = parameter.detach() != 0
        if not keep.all():
            found[name] = keep.cpu()
    return found
