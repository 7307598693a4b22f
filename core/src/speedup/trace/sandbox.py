"""A room in which the model can run, masked and in eval mode, and that leaves it as it was, bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def sandbox(model: nn.Module, masks: Mapping[str, torch.Tensor] | None = None) -> Iterator[None]:
    """Eval mode, no gradients, masked parameters set to 0; everything is put back on exit, also after an error.

    Put back: training flags, module attributes (lists, dicts and sets one level deep), parameters, buffers that the
    forward writes to, and the random state of the CPU and of the devices that the model is on.

    Args:
        masks: bool tensors by qualified parameter name, True = keep.
    """
    modules = list(model.modules())
    attributes = [Attributes(m) for m in modules]
    buffers = [(b, b.clone()) for b in {id(b): b for b in model.buffers()}.values()]
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    data = [(p, p.data, p._version) for p in {id(p): p for p in parameters.values()}.values()]
    devices = sorted({p.device.index or 0 for p in parameters.values() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            masked: dict[int, torch.Tensor] = {}
            for name, mask in (masks or {}).items():
                parameter = parameters[name]
                base = masked.get(id(parameter), parameter.data)
                masked[id(parameter)] = base * mask.to(base.device)
            for parameter, _, _ in data:
                if id(parameter) in masked:
                    parameter.data = masked[id(parameter)]
            for module in modules:
                module.training = False
            yield
    finally:
        with torch.no_grad():
            for parameter, tensor, _ in data:
                if parameter.data is not tensor:
                    parameter.data = tensor
            for buffer, saved in buffers:
                if not _same(buffer, saved):
                    buffer.copy_(saved)
        for attribute in attributes:
            attribute.restore()


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


class Attributes:
    """The attributes of one module, to be put back."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.saved = dict(module.__dict__)
        self.contents: dict[str, Any] = {k: v.copy() for k, v in self.saved.items() if _is_container(v)}

    def restore(self) -> None:
        now = self.module.__dict__
        for name in [n for n in now if n not in self.saved]:
            del now[name]
        for name, value in self.saved.items():
            now[name] = value
            if name in self.contents:
                content = self.contents[name]
                if isinstance(value, list):
                    value[:] = content
                elif list(value) != list(content) or not _identical(value, content):
                    value.clear()
                    value.update(content)


def _is_container(value: Any) -> bool:
    return isinstance(value, list | dict | set)


def _identical(a: Any, b: Any) -> bool:
    return not isinstance(a, dict) or all(a[k] is b[k] for k in b)
