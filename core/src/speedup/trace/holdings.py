"""What modules hold outside of parameters and buffers: a forward may change it, and it is to be put back."""

from __future__ import annotations

import random
import types
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from speedup.trace.outputs import is_empty_of_tensors

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_CLOSED = (nn.Module, type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType)

# How deep to look: objects may hold the whole program (a trainer, say), so they count for three.
_DEPTH = 6
_OBJECT = 3


class Holdings:
    """The contents of lists, dicts, sets, tensors, arrays, random generators and objects, to be put back.

    Found in the attributes of modules and in one another; only what has changed is written to.
    """

    def __init__(self, held: Iterable[Any], besides: Iterable[torch.Tensor]) -> None:
        """Save what modules hold; ``besides`` are tensors that somebody else takes care of."""
        self._known = {id(t) for t in besides}
        self._undo: list[Callable[[], None]] = []
        self._alive: list[Any] = []  # an id is one object's as long as that lives
        for item in held:
            if not is_empty_of_tensors(item):
                self._add(item, _DEPTH)

    def restore(self) -> None:
        for undo in self._undo:
            undo()

    def _add(self, item: Any, depth: int) -> None:
        if type(item) in _PLAIN or depth <= 0 or id(item) in self._known or isinstance(item, _CLOSED):
            return
        self._known.add(id(item))
        self._alive.append(item)
        undo, inside = _saved(item)
        if undo is not None:
            self._undo.append(undo)
        for each in inside:
            self._add(each, depth - (_OBJECT if _is_object(item) else 1))


def _is_object(item: Any) -> bool:
    return not isinstance(item, list | tuple | dict | set | deque)


def _saved(item: Any) -> tuple[Callable[[], None] | None, Iterable[Any]]:
    """How to put one object back, and what is in it."""
    if isinstance(item, tuple):
        return None, item
    if isinstance(item, dict):
        return _dict(item), item.values()
    if isinstance(item, list | deque):
        return _sequence(item), list(item)
    if isinstance(item, set):
        return _set(item), ()
    if isinstance(item, torch.Tensor):
        return _tensor(item), ()
    if isinstance(item, np.ndarray):
        return _array(item), ()
    if isinstance(item, torch.Generator):
        state = item.get_state()
        return lambda: _generator(item, state), ()
    if isinstance(item, random.Random):
        numbers = item.getstate()
        return lambda: item.setstate(numbers), ()
    if isinstance(item, np.random.Generator):
        words = item.bit_generator.state
        return lambda: setattr(item.bit_generator, "state", words), ()
    held = getattr(item, "__dict__", None)
    return (_dict(held), held.values()) if isinstance(held, dict) else (None, ())


def _generator(item: torch.Generator, state: torch.Tensor) -> None:
    item.set_state(state)


def _dict(item: dict[Any, Any]) -> Callable[[], None]:
    saved = dict(item)

    def undo() -> None:
        if list(item) != list(saved) or any(item[k] is not v for k, v in saved.items()):
            item.clear()
            item.update(saved)

    return undo


def _sequence(item: list[Any] | deque[Any]) -> Callable[[], None]:
    saved = list(item)

    def undo() -> None:
        if len(item) != len(saved) or any(a is not b for a, b in zip(item, saved, strict=True)):
            item.clear()
            item.extend(saved)

    return undo


def _set(item: set[Any]) -> Callable[[], None]:
    saved = set(item)

    def undo() -> None:
        if item != saved:
            item.clear()
            item.update(saved)

    return undo


def _tensor(item: torch.Tensor) -> Callable[[], None] | None:
    if item.layout is not torch.strided:
        return None
    saved = item.detach().clone()

    def undo() -> None:
        if item.shape == saved.shape and not same(item.detach(), saved):
            with torch.inference_mode() if item.is_inference() else torch.no_grad():
                item.copy_(saved)

    return undo


def _array(item: np.ndarray[Any, Any]) -> Callable[[], None]:
    saved = item.copy()

    def undo() -> None:
        if item.flags.writeable and item.shape == saved.shape and item.tobytes() != saved.tobytes():
            item[...] = saved

    return undo


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same entries, NaN included; on the meta device there are none to compare."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_meta and b.is_meta:
        return True
    if a.layout is not torch.strided:
        if a.layout != b.layout or a._nnz() != b._nnz():
            return False
        return all(map(same, _parts(a), _parts(b)))
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What a sparse tensor is stored as."""
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
