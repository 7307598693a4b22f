"""A case: the source of a network, its inputs and its masks; and how to build and run it."""

from __future__ import annotations

import copy
import linecache
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from tests.graphs.script import script
from tests.graphs.standalone import randomize

Masks = dict[str, dict[str, "torch.Tensor | None"]]


@dataclass
class Case:
    """A network, its input and its masks.

    Attributes:
        shapes: what the inputs are, as in ``standalone.draw_inputs``.
        others: further inputs, of another batch size and another spatial size, that the original accepts.
        steps: the names of the generator's steps that made the network.
        style: the style of the masks.
    """

    seed: int
    source: str
    inputs: tuple[torch.Tensor, ...]
    masks: Masks
    others: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    shapes: list[tuple[Any, ...]] = field(default_factory=list)
    steps: tuple[str, ...] = ()
    style: str = ""

    def model(self) -> nn.Module:
        """The network, with random weights that depend on the seed only."""
        return build(self.source, self.seed)

    def script(self) -> str:
        """A script that shows the case without this package."""
        return script(self.seed, self.source, self.masks, self.shapes)


def build(source: str, seed: int) -> nn.Module:
    """Make the module that the source of a class ``Net`` describes, in float64 and eval mode."""
    name = f"<graph {seed} {zlib.crc32(source.encode())}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "__name__": "random_graph"}
    exec(compile(source, name, "exec"), space)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomize(space["Net"]().double().eval(), seed)


def masked_copy(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy of the model with every masked entry set to 0: what the small model must agree with."""
    model = copy.deepcopy(model)
    for name, entry in masks.items():
        for parameter, mask in entry.items():
            if mask is not None:
                target = getattr(model.get_submodule(name), parameter).data
                target.mul_(mask.to(target))
    return model


def owned(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[tuple[str, nn.Parameter]]]]:
    """Every module that owns parameters, with its own ones."""
    for name, module in model.named_modules():
        own = list(module.named_parameters(recurse=False))
        if own:
            yield name, module, own


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def run(model: nn.Module, inputs: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The output tensors; the model gets copies, as it may write into its inputs."""
    with torch.no_grad():
        return tensors(model(*[t.clone() for t in inputs]))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
