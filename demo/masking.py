"""Masks as data: the layout of a mask file, and the masked model (masks multiplied into the weights, once)."""

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

#: `{module: {"weight": mask, "bias": mask or None}}`, the layout of NNI 1.x; a mask is a float tensor of 0 and 1.
Masks = dict[str, dict[str, Tensor | None]]

Net = TypeVar("Net", bound=nn.Module)


def masked_copy(model: Net, masks: Mapping[str, Mapping[str, Tensor | None]]) -> Net:
    """A copy of `model` in which every masked entry is 0. The model itself stays as it was."""
    masked = copy.deepcopy(model)
    apply_masks(masked, masks)
    return masked


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Mapping[str, Tensor | None]]) -> None:
    """Set every masked entry of the model's parameters to 0, in place.

    Raises ValueError for a module or parameter that the model does not have, and for a mask of another shape.
    """
    modules = dict(model.named_modules())
    for name, by_parameter in masks.items():
        if name not in modules:
            raise ValueError(f"the masks name a module {name!r}, which the model does not have")
        for kind, mask in by_parameter.items():
            if mask is None:
                continue
            parameter = getattr(modules[name], kind, None)
            if not isinstance(parameter, nn.Parameter):
                raise ValueError(f"the masks name a parameter {name}.{kind}, which the model does not have")
            if parameter.shape != mask.shape:
                raise ValueError(
                    f"the mask of {name}.{kind} has shape {tuple(mask.shape)}, the parameter {tuple(parameter.shape)}"
                )
            parameter.mul_(mask.to(parameter))


def sparsity(masks: Mapping[str, Mapping[str, Tensor | None]]) -> float:
    """The share of masked entries among all entries of the weight masks."""
    weights = [mask for by_parameter in masks.values() if (mask := by_parameter.get("weight")) is not None]
    entries = sum(mask.numel() for mask in weights)
    kept = sum(float(mask.sum()) for mask in weights)
    return 1.0 - kept / entries if entries else 0.0
