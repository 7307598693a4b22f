"""Random masks of every kind: aligned and not, on everything that a network holds."""

from __future__ import annotations

import random

import torch
from torch import nn

from tests.graphs.case import Masks, owned

# What is masked. "mixed" draws another kind for every parameter; the others are pure.
STYLES = (
    *("mixed",) * 5,
    *("aligned",) * 2,
    *("unaligned",) * 2,
    "filters and biases",
    "biases",
    "norms",
    "columns",
    "fine",
    "whole layer",
    "output layer",
    "raw parameters",
)

_AXES_FROM_2 = "filters filters filters filters aligned aligned aligned aligned columns columns fine lines none".split()


def filter_masks(
    model: nn.Module, p: float = 0.5, seed: int = 0, kinds: tuple[type, ...] = (nn.modules.conv._ConvNd, nn.Linear)
) -> Masks:
    """Masks on whole filters, independent of one another: nothing lines up."""
    g = torch.Generator().manual_seed(seed)
    masks: Masks = {}
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            keep = (torch.rand(weight.shape[0], generator=g) > p).double()
            masks[name] = {"weight": keep.reshape(-1, *[1] * (weight.ndim - 1)).expand_as(weight).clone(), "bias": None}
            if module.bias is not None and torch.rand(1, generator=g) < 0.5 and not _transposed(module):
                masks[name]["bias"] = keep.clone()
    return masks


def random_masks(model: nn.Module, rng: random.Random, style: str = "mixed") -> Masks:
    """Masks in one of STYLES; where a network has nothing for the style, unaligned filters."""
    draw = _Draw(rng)
    masks: Masks = {}
    modules = list(owned(model))
    done: set[int] = set()
    chosen = _chosen(style, modules, rng)
    for name, module, own in modules:
        entry: dict[str, torch.Tensor | None] = {}
        line: torch.Tensor | None = None
        for parameter, tensor in own:
            tied = id(tensor) in done
            done.add(id(tensor))
            if not tensor.numel() or (tied and rng.random() < 0.7) or (chosen is not None and name not in chosen):
                continue
            kind = draw.kind(style, module, parameter, tensor)
            follows = style == "filters and biases" or rng.random() < 0.6
            if "bias" in parameter and line is not None and line.numel() == tensor.numel() and follows:
                entry[parameter] = line.reshape(tensor.shape).clone()
            elif kind != "none":
                entry[parameter] = draw.mask(kind, tensor, _transposed(module))
                if tensor.ndim > 1 and kind in ("filters", "aligned", "whole"):
                    line = _line_of(entry[parameter], _transposed(module))
        if entry:
            masks[name] = entry
    if any(m is not None for e in masks.values() for m in e.values()):
        return masks
    return random_masks(model, rng, "unaligned" if style != "unaligned" else "all")


def _chosen(
    style: str, modules: list[tuple[str, nn.Module, list[tuple[str, nn.Parameter]]]], rng: random.Random
) -> set[str] | None:
    """Names of the modules that get masks; None for all."""
    if style == "whole layer":
        return {rng.choice(modules)[0]}
    if style == "output layer":
        return {modules[-1][0], rng.choice(modules)[0]}
    if style == "raw parameters":
        return {n for n, m, own in modules if len(own) and type(m).__module__ == "random_graph"}
    if style == "norms":
        return {n for n, m, _ in modules if "Norm" in type(m).__name__}
    return None


def _transposed(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvTransposeNd)


def _line_of(mask: torch.Tensor | None, transposed: bool) -> torch.Tensor:
    assert mask is not None
    return (mask.transpose(0, 1) if transposed else mask).flatten(1).amax(1)


class _Draw:
    """Random masks for single parameters; aligned ones are the same for every axis of one size."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.aligned = {n: self.line(n, rng.choice((0.3, 0.5, 0.8))) for n in range(1, 65)}

    def line(self, n: int, p: float) -> torch.Tensor:
        keep = torch.tensor([float(self.rng.random() > p) for _ in range(n)], dtype=torch.float64)
        if not keep.any() and self.rng.random() < 0.9:
            keep[self.rng.randrange(n)] = 1
        return keep

    def kind(self, style: str, module: nn.Module, parameter: str, tensor: torch.Tensor) -> str:
        rng = self.rng
        flat = tensor.ndim < 2
        if style in ("norms", "output layer", "raw parameters"):
            return rng.choice(("filters", "filters", "none" if flat else "fine", "aligned"))
        if style == "whole layer":
            return "whole" if not flat or rng.random() < 0.4 else "none"
        if style == "biases":
            return rng.choice(("filters", "aligned", "none")) if flat else "none"
        if style in ("columns", "fine"):
            return "none" if flat else style
        if style == "filters and biases":
            return "none" if flat else "filters"
        if style == "all":
            return "filters"
        if flat:
            return rng.choice(("none", "none", "filters", "aligned", "aligned", "whole", "none", "none", "none"))
        if style == "aligned":
            return rng.choice(("aligned", "aligned", "aligned", "none"))
        if style == "unaligned":
            return "filters"
        return "whole" if rng.random() < 0.04 else rng.choice(_AXES_FROM_2)

    def mask(self, kind: str, tensor: torch.Tensor, transposed: bool) -> torch.Tensor:
        rng, shape = self.rng, tuple(tensor.shape)
        if not shape:
            return torch.tensor(float(rng.random() < 0.5), dtype=torch.float64)
        first, second = (1, 0) if transposed and len(shape) > 1 else (0, min(1, len(shape) - 1))
        mask = torch.ones(shape, dtype=torch.float64)
        if kind == "whole":
            return mask.zero_()
        if kind == "fine":
            g = torch.Generator().manual_seed(rng.randrange(1 << 30))
            return (torch.rand(shape, generator=g) > rng.choice((0.3, 0.7))).double()
        if kind == "aligned":
            known = self.aligned.get(shape[first])
            _apply(mask, first, known if known is not None else self.line(shape[first], 0.5))
        if kind in ("filters", "lines"):
            _apply(mask, first, self.line(shape[first], rng.choice((0.3, 0.6))))
        if kind in ("columns", "lines"):
            _apply(mask, second, self.line(shape[second], 0.5))
        return mask


def _apply(mask: torch.Tensor, axis: int, keep: torch.Tensor) -> None:
    mask.mul_(keep.reshape([-1 if a == axis else 1 for a in range(mask.ndim)]))
