"""Masks for tests, and models with their masked entries set to 0."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from speedup.masks import normalize_masks

Masks = dict[str, dict[str, torch.Tensor]]
Model = TypeVar("Model", bound=nn.Module)

KINDS = ("filters", "filters+biases", "columns", "fine", "biases", "whole", "mixed")


def mask_indices(model: nn.Module, dropped: Mapping[str, Sequence[int]], axis: int = 0) -> Masks:
    """Masks that drop whole indices along one axis of the named parameters and keep all else.

    Example:
        >>> mask_indices(nn.Sequential(nn.Linear(2, 3)), {"0.weight": [1]})["0"]["weight"]
        tensor([[1., 1.],
                [0., 0.],
                [1., 1.]])
    """
    masks: Masks = {}
    for name, indices in dropped.items():
        parameter = model.get_parameter(name)
        mask = torch.ones(parameter.shape)
        mask.index_fill_(axis, torch.tensor(list(indices), dtype=torch.long), 0)
        path, _, attribute = name.rpartition(".")
        masks.setdefault(path, {})[attribute] = mask
    return masks


def random_masks(model: nn.Module, seed: int = 0, kind: str = "filters", share: float = 0.5) -> Masks:
    """Random masks that are not aligned between layers; each parameter keeps at least one entry, except for "whole".

    ==================  =============================================================================
    ``filters``         whole leading indices of every weight (a parameter of two or more axes); in
                        about half of the modules the same indices of the bias, if it has as many
    ``filters+biases``  the same, with every such bias
    ``columns``         whole indices along axis 1 of every weight
    ``fine``            single entries of every weight
    ``biases``          entries of every parameter of one axis (scales, shifts, slopes), in about half of
                        the modules the same ones
    ``whole``           one module with everything masked that is a weight, and perhaps its biases
    ``mixed``           for every module one of the above, or nothing
    ==================  =============================================================================

    Args:
        share: about how much is dropped.

    Raises:
        ValueError: an unknown kind, or a model that has nothing to mask in this way.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no kind of masks {kind!r}; kinds: {', '.join(KINDS)}")
    draw = _Draw(seed, share)
    owned: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim:
            path, _, attribute = name.rpartition(".")
            owned.setdefault(path, {})[attribute] = parameter
    able = [path for path, own in owned.items() if kind == "mixed" or _masks_of(own, kind, _Draw(0, share))]
    if not able:
        raise ValueError(f"the model has no parameter for masks of kind {kind!r}")
    if kind == "whole":
        able = [able[draw.integer(len(able))]]
    masks: Masks = {}
    for path in able:
        how = draw.choice((*KINDS[:5], "")) if kind == "mixed" else kind
        if found := _masks_of(owned[path], how, draw):
            masks[path] = found
    return masks or random_masks(model, seed + 1, kind, share)


class _Draw:
    """Random choices."""

    def __init__(self, seed: int, share: float) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.share = share

    def integer(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.generator))

    def choice(self, among: Sequence[str]) -> str:
        return among[self.integer(len(among))]

    def coin(self) -> bool:
        return self.integer(2) == 1

    def keep(self, shape: Sequence[int]) -> torch.Tensor:
        kept = torch.rand(tuple(shape), generator=self.generator) >= self.share
        kept.view(-1)[self.integer(kept.numel())] = True
        return kept.float()


def _masks_of(own: Mapping[str, nn.Parameter], kind: str, draw: _Draw) -> dict[str, torch.Tensor]:
    """Masks for the parameters of one module."""
    weights = {name: p for name, p in own.items() if p.ndim > 1}
    flat = {name: p for name, p in own.items() if p.ndim == 1}
    masks: dict[str, torch.Tensor] = {}
    if kind in ("filters", "filters+biases", "columns"):
        axis = int(kind == "columns")
        for name, p in weights.items():
            keep = draw.keep(p.shape[axis : axis + 1])
            masks[name] = keep.reshape([-1 if a == axis else 1 for a in range(p.ndim)]).expand(p.shape).clone()
            if kind == "filters+biases" or (kind == "filters" and draw.coin()):
                masks.update({n: keep.clone() for n, q in flat.items() if q.shape == keep.shape and n not in masks})
    elif kind == "fine":
        masks = {name: draw.keep(p.shape) for name, p in weights.items()}
    elif kind == "biases":
        alike: dict[torch.Size, torch.Tensor] | None = {} if draw.coin() else None
        for name, p in flat.items():
            keep = draw.keep(p.shape)
            masks[name] = keep if alike is None else alike.setdefault(p.shape, keep).clone()
    elif kind == "whole" and weights:
        masks = {name: torch.zeros(p.shape) for name, p in weights.items()}
        if draw.coin():
            masks.update({name: torch.zeros(p.shape) for name, p in flat.items()})
    return masks


def masked_copy(model: Model, masks: Mapping[str, Any]) -> Model:
    """A copy of the model with every masked entry set to 0: what the small model must be equal to."""
    copied = copy.deepcopy(model)
    keeps = normalize_masks(copied, masks)
    with torch.no_grad():
        for name, keep in keeps.items():
            parameter = copied.get_parameter(name)
            parameter.masked_fill_(~keep.to(parameter.device), 0)
    return copied
