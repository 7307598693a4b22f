"""Rooms in which the model can run, masked and in eval mode, and that leave it as it was, bit for bit."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from speedup.attributes import Attributes
from speedup.masks import compact
from speedup.trace.holdings import Holdings, same
from speedup.trace.meta import StandIns, all_on_meta


@contextlib.contextmanager
def sandbox(model: nn.Module, masks: Mapping[str, torch.Tensor] | None = None) -> Iterator[StandIns]:
    """Eval mode, no gradients, masked parameters set to 0; everything is put back on exit, also after an error.

    What it gives are the stand-ins of a model that is partly on the meta device.

    Args:
        masks: bool tensors by qualified parameter name, True = keep.
    """
    with all_on_meta(model) as stands, _masked(model, masks):
        yield stands


@contextlib.contextmanager
def _masked(model: nn.Module, masks: Mapping[str, torch.Tensor] | None) -> Iterator[None]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    data = [(p, p.data) for p in {id(p): p for p in parameters.values()}.values()]
    with undisturbed(model), torch.no_grad():
        try:
            for name, mask in (masks or {}).items():
                parameter = parameters[name]
                masked = torch.empty_like(parameter.data)  # with the strides that it has
                parameter.data = torch.mul(parameter.data, compact(mask).to(parameter.device), out=masked)
            for module in model.modules():
                module.training = False
            yield
        finally:
            for parameter, tensor in data:
                if parameter.data is not tensor:
                    parameter.data = tensor


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Whatever a run of the model changes is put back on exit, so that every run starts from the same state.

    Put back: module attributes and what they hold (see ``Holdings``), buffers that the forward writes to, training
    flags, and the random state of Python, NumPy, the CPU and the devices that the model is on.
    """
    modules = list(model.modules())
    attributes = [Attributes(m) for m in modules]
    holdings = Holdings(modules, (*model.parameters(), *model.buffers()))
    buffers = [(b, b.clone()) for b in {id(b): b for b in model.buffers()}.values()]
    devices = sorted({t.device.index or 0 for t in model.parameters() if t.device.type == "cuda"})
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        with torch.no_grad():
            for buffer, saved in buffers:
                if not same(buffer, saved):
                    buffer.copy_(saved)
        holdings.restore()
        for attribute in attributes:
            attribute.restore()
