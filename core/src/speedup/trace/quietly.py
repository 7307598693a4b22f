"""A run of the small model of which nothing is noted: deferred tensors get their numbers, see ``speedup.deferred``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from speedup import walk
from speedup.deferred import Deferred
from speedup.registry import Registry
from speedup.trace.calls import Calls, listening
from speedup.trace.meta import made_there
from speedup.trace.outputs import Returned
from speedup.trace.run import uncompiled, versioned
from speedup.trace.sandbox import undisturbed


def run_quietly(
    model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], registry: Registry, deferred: Deferred
) -> Returned | Exception:
    """What the model returns, or what it raises. Call it inside ``sandbox``."""
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, inputs)
    calls = Calls(registry, {}, {id(module): path for path, module in walk.named_modules(model)})
    calls.deferred = deferred
    try:
        with (
            versioned(model),
            undisturbed(model, deferred.buffers),
            made_there(model),
            uncompiled(),
            listening(calls),
        ):
            return Returned.of(model(*args, **kwargs))
    except Exception as error:
        return error
