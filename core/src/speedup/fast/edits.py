"""New contents of parameters and buffers of several modules, and modules that hold them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn

from speedup.node import Value
from speedup.shell import like, shell_of


class Edits:
    """Changes of parameters and buffers, noted in the order in which they are to be made, in float64."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._changes: dict[str, dict[str, list[Callable[[torch.Tensor], torch.Tensor]]]] = defaultdict(dict)

    def change(self, value: Value, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Note a change of what has one name in the model."""
        path, _, name = value.names[0].rpartition(".")
        self._changes[path].setdefault(name, []).append(change)

    def modules(self) -> dict[str, nn.Module]:
        """New modules by path."""
        made = {}
        for path, by_name in self._changes.items():
            module = self._model.get_submodule(path)
            made[path] = shell_of(module, {n: _changed(getattr(module, n), steps) for n, steps in by_name.items()})
        return made


def _changed(old: torch.Tensor, changes: list[Callable[[torch.Tensor], torch.Tensor]]) -> torch.Tensor:
    wide = old.detach().to(torch.float64)
    for change in changes:
        wide = change(wide)
    return like(old, wide.to(old.dtype))
