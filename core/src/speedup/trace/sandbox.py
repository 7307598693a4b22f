"""Rooms in which the model can run, masked and in eval mode, and that leave it as it was, bit for bit."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import nn

from speedup import caches, walk
from speedup.attributes import Snapshot
from speedup.masking import Masking
from speedup.trace.buffers import Buffers
from speedup.trace.holdings import Holdings
from speedup.trace.meta import StandIns, all_on_meta

_TRAINING: ContextVar[frozenset[nn.Module]] = ContextVar("modules that train", default=frozenset())


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Runs at sizes that the user never gave: nobody hears what they warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def sandbox(model: nn.Module, masks: Mapping[str, torch.Tensor] | None = None) -> Iterator[StandIns]:
    """Eval mode, no gradients, masked parameters set to 0; everything is put back on exit, also after an error.

    What it gives are the stand-ins of a model that is partly on the meta device.

    Args:
        masks: bool tensors by qualified parameter name, True = keep. What they mask stands in memory a second time;
            for runs that are traced, see ``Masking``.
    """
    with (
        ordinary(model),
        all_on_meta(model) as stands,
        undisturbed(model),
        torch.no_grad(),
        Masking(model, masks, whole=True).run(),
    ):
        for module in walk.modules(model):
            # What torch.jit has frozen may have no such flag.
            if getattr(module, "training", False) and module not in _TRAINING.get():
                module.training = False
        yield stands


@contextlib.contextmanager
def in_training(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside ``sandbox``: these modules alone, not those in them, are told that they train."""
    before = _TRAINING.set(_TRAINING.get().union(modules))
    try:
        for module in modules:
            module.training = True
        yield
    finally:
        _TRAINING.reset(before)
        for module in modules:
            module.training = False


def ordinary(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Outside of the inference mode that the caller is in, unless the model was made in it: what is made is ordinary,
    and can be trained."""
    made_in_it = (
        any(t.is_inference() for _, t in walk.named_tensors(model)) if torch.is_inference_mode_enabled() else True
    )
    return contextlib.nullcontext() if made_in_it else torch.inference_mode(False)


@contextlib.contextmanager
def undisturbed(model: nn.Module, but: Sequence[torch.Tensor] = ()) -> Iterator[None]:
    """Whatever a run of the model changes is put back on exit, so that every run starts from the same state.

    Put back: module attributes and what they hold (see ``Holdings``), buffers that the forward writes to, training
    flags, and the random state of Python, NumPy, the CPU and the devices that the model is on. Caches of functions are
    emptied, before and after.

    Args:
        but: buffers that keep what they are given meanwhile.
    """
    modules = walk.modules(model)
    attributes = Snapshot(modules)
    parameters = {id(p): p for m in modules for p in m._parameters.values() if p is not None}
    own = {id(b): b for m in modules for b in m._buffers.values() if b is not None}
    holdings = Holdings(attributes.own, (*parameters.values(), *own.values()))
    kept = set(map(id, but))
    buffers = Buffers([b for key, b in own.items() if key not in kept])
    devices = sorted({p.device.index or 0 for p in parameters.values() if p.device.type == "cuda"})
    of_python, of_numpy = random.getstate(), np.random.get_state()
    caches.empty(modules)
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        buffers.restore()
        holdings.restore()
        attributes.restore()
        caches.empty(modules)
