"""A run of the small model of which nothing is noted, on whose way tensors get their numbers, see ``speedup.late``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from speedup import walk
from speedup.late import Late
from speedup.registry import Registry
from speedup.rule import Rule
from speedup.trace.calls import Calls, listening
from speedup.trace.meta import made_there
from speedup.trace.outputs import Returned
from speedup.trace.run import uncompiled, versioned
from speedup.trace.sandbox import undisturbed


def run_filled(
    model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], registry: Registry, late: Late
) -> Returned | Exception:
    """What the model returns, or what it raises. Call it inside ``sandbox``."""
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, inputs)
    filler = _Filler(registry, {}, {id(module): path for path, module in walk.named_modules(model)})
    filler.late = late
    try:
        with (
            versioned(model),
            undisturbed(model, late.buffers),
            made_there(model),
            uncompiled(),
            listening(filler),
        ):
            return Returned.of(model(*args, **kwargs))
    except Exception as error:
        return error


class _Filler(Calls):
    """Makes every call as it is."""

    def record(
        self,
        op: Any,
        rule: Rule | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        call: Callable[[], Any],
        module: nn.Module | None = None,
        held: dict[str, torch.Tensor] | None = None,
    ) -> Any:
        with self.unseen():
            return call()

    def enters(self, func: Any, parts: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return False

    def claim_by_structure(self, module: nn.Module) -> Rule | None:
        return None

    def held(self, rule: Any, module: nn.Module) -> dict[str, torch.Tensor]:
        return {}
