"""A network, its masks, and what must be left of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from speedup.testing import mask_indices
from tests.graphs import Masks, build

Width = int | tuple[int, ...]


@dataclass(frozen=True)
class Minimal:
    """A network, its masks, and the widths that must be left.

    Attributes:
        init, forward: its source; every bias and every statistic is random, and so not 0.
        drop: indices along axis 0 of parameters that are masked; a name of a module means its weight and its bias.
        columns: the same along axis 1, of parameters.
        widths: per parameter the sizes of its first axes; a name of a module means its weight.
        why: why no less will do.
        gap: what stays although it could go; then the case is expected to fail.
    """

    name: str
    init: str
    forward: str
    drop: Mapping[str, tuple[int, ...]]
    widths: Mapping[str, Width]
    why: str
    columns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shape: tuple[int, ...] = (2, 3, 8, 8)
    other: tuple[int, ...] = (3, 3, 11, 9)
    gap: str = ""

    def model(self) -> nn.Module:
        lines = ["class Net(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        lines += [f"        {line}" for line in self.init.splitlines()]
        lines += ["    def forward(self, x):", *(f"        {line}" for line in self.forward.splitlines()), ""]
        return build("\n".join(lines), 0)

    def masks(self, model: nn.Module) -> Masks:
        masks: Masks = {}
        names = dict(model.named_parameters())
        wanted = [(name, indices, 0) for name, indices in self.drop.items()]
        wanted += [(name, indices, 1) for name, indices in self.columns.items()]
        for name, indices, axis in wanted:
            own = [name] if name in names else [n for n in (f"{name}.weight", f"{name}.bias") if n in names]
            for parameter in own:
                for path, entry in mask_indices(model, {parameter: indices}, axis).items():
                    for attribute, mask in entry.items():
                        known = masks.setdefault(path, {}).get(attribute)
                        masks[path][attribute] = mask if known is None else mask * known
        return masks

    def inputs(self) -> list[torch.Tensor]:
        """The dummy input, and one of another batch and spatial size."""
        g = torch.Generator().manual_seed(0)
        return [torch.randn(size, generator=g, dtype=torch.float64) for size in (self.shape, self.other)]

    def sizes(self, state: Mapping[str, torch.Tensor]) -> dict[str, Width]:
        """The widths that a state_dict has, in the form of ``widths``."""
        found: dict[str, Width] = {}
        for name, width in self.widths.items():
            tensor = state[name] if name in state else state[f"{name}.weight"]
            found[name] = tensor.shape[0] if isinstance(width, int) else tuple(tensor.shape[: len(width)])
        return found


# What many of the networks begin with.
AB = "self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, {})"
ABC = "self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d({}, 8, 1)\nself.c = nn.Conv2d({}, 5, 1)"
LAB = "self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 5)"
VECTOR = {"shape": (2, 4), "other": (7, 4)}
