"""What calls give on the meta device, where there are sizes and no contents: found once for calls that are made alike.

Torch works out most of these sizes in Python, op by op, which takes several times as long as all else that a recorded
call needs; and a deep model repeats its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from speedup import walk
from speedup.attributes import INTERNAL
from speedup.masking import memory_of
from speedup.recall import frozen

_Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]


class Shapes:
    """The layouts of what calls have given, for runs of a model that is on meta."""

    def __init__(self) -> None:
        self._given: dict[Hashable, _Layout] = {}

    def result(
        self,
        op: Any,
        module: nn.Module | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        tensors: Sequence[torch.Tensor],
        call: Callable[[], Any],
    ) -> Any:
        """What a call gives that writes into nothing and reads nothing but its arguments and its own module.

        Args:
            args, kwargs: with a ``Ref`` for every tensor, by its number in ``tensors``.
        """
        key = _key(op, module, args, kwargs, tensors)
        if key is None:
            return call()
        known = self._given.get(key)
        if known is not None:
            size, stride, dtype = known
            return torch.empty_strided(size, stride, dtype=dtype, device="meta")
        before = [walk.version_of(t) for t in tensors]
        result = call()
        changed = None in before or [walk.version_of(t) for t in tensors] != before
        if type(result) is torch.Tensor and result.is_meta and not changed and not _shares(result, module, tensors):
            self._given[key] = _layout(result)
        return result


def _key(
    op: Any, module: nn.Module | None, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[torch.Tensor]
) -> Hashable | None:
    if not all(t.is_meta for t in tensors):
        return None
    try:
        own = _of_module(module) if module is not None else ()
        key = op, own, frozen(tuple(args)), frozen(dict(kwargs)), tuple([_layout(t) for t in tensors])
        hash(key)
    except TypeError:
        return None
    return key


def _of_module(module: nn.Module) -> Hashable:
    """All that the forward of a module without children can read."""
    if module._modules:
        raise TypeError("its children may hide something")
    own = tuple([(n, None if t is None else _layout(t)) for h in _tensors(module) for n, t in h.items()])
    attributes = tuple([(n, frozen(v)) for n, v in vars(module).items() if n not in INTERNAL])
    return type(module), own, attributes, module.training


def _tensors(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return module._parameters, module._buffers


def _layout(tensor: torch.Tensor) -> _Layout:
    return tensor.shape, tensor.stride(), tensor.dtype


def _shares(result: torch.Tensor, module: nn.Module | None, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a result is one of the tensors that its call reads, or a view of one."""
    read = [*tensors, *(t for h in (_tensors(module) if module is not None else ()) for t in h.values())]
    return memory_of(result) in {memory_of(t) for t in read if t is not None}
