"""New contents of parameters and buffers of several modules, and modules that hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from speedup.graph import Value
from speedup.shell import shell_of


class Edits:
    """Changes of parameters and buffers, noted in the order in which they are to be made, in float64."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._changes: dict[tuple[str, str], list[Callable[[torch.Tensor], torch.Tensor]]] = {}

    def change(self, value: Value, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Note a change of what has one name in the model."""
        path, _, name = value.names[0].rpartition(".")
        self._changes.setdefault((path, name), []).append(change)

    def modules(self, others: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """New modules by path, each behind those that it is in.

        Args:
            others: those that change otherwise; none of which has its tensors changed.
        """
        made: dict[str, nn.Module] = {}
        for (path, name), changes in self._changes.items():
            if path not in made:
                made[path] = shell_of(self._model.get_submodule(path))
            old = getattr(made[path], name)
            wide = old.detach().to(torch.float64)
            for change in changes:
                wide = change(wide)
            new = wide.to(old.dtype)
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
                new.__dict__.update(old.__dict__)
            held = made[path].__dict__
            held["_parameters" if name in held["_parameters"] else "_buffers"][name] = new
        assert made.keys().isdisjoint(others)
        return dict(sorted({**made, **others}.items()))
