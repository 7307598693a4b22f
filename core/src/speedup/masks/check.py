"""Checking masks against a model: every source ends here.

A mask is a 0/1 tensor of exactly its parameter's shape: 1 keeps an entry, 0 drops it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from speedup import walk
from speedup.arrays import count, some
from speedup.errors import InputError, MaskError
from speedup.masks import hints
from speedup.masks.names import Names

_LIMIT = 10
_FIRST, _ALL = slice(0, 1), slice(None)
_NUMPY = (torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64)


def normalize_masks(
    model: nn.Module, masks: Mapping[Any, Any], names: Names | None = None, *, may_be_empty: bool = False
) -> dict[str, torch.Tensor]:
    """Check `masks` against `model` and return them by qualified parameter name.

    `masks` are `{module: {parameter: mask or None}}` (the layout of NNI), or flat, `{parameter name: mask}`. Names are
    those of `model.named_modules()`, so the model itself is `""`; what wrappers add to names does not matter
    (`module.`, `_orig_mod.`).

    Accepted masks: torch tensors on any device, of any bool, integer or floating-point dtype, dense or sparse, and
    numpy arrays. `None`, as a mask or as a module's whole entry, means "no mask". Nothing that is passed in is changed,
    and nothing that is returned shares memory with it.

    Tied parameters (one `Parameter` object under several names): an entry is dropped if any of the given masks
    drops it, and this merged mask is returned under each of the names that were given.

    Args:
        names: those of the model, if they are known already.

    Returns:
        `{"features.0.weight": keep, ...}` with bool tensors on the CPU, True = keep, each of exactly the parameter's
        shape (an axis along which a mask does not vary is expanded, see `compact`); in the order of `masks`; only
        parameters that have a mask.

    Raises:
        InputError: `model` is not an `nn.Module`.
        MaskError: anything is wrong with the masks. *All* of them are checked first; the message lists up to ten
            mistakes, each with its place and what to do.

    Example:
        >>> model = nn.ParameterDict({"weight": torch.ones(2, 3)})
        >>> normalize_masks(model, {"": {"weight": torch.tensor([[1, 1, 0], [0, 1, 1]]), "bias": None}})
        {'weight': tensor([[ True,  True, False],
                [False,  True,  True]])}
    """
    check_model(model)
    _check_masks(masks)
    known = names if names is not None else Names(model)
    return normalize_nested(known, known.nested(masks), may_be_empty=may_be_empty)


def normalize_nested(names: Names, masks: Mapping[Any, Any], *, may_be_empty: bool = False) -> dict[str, torch.Tensor]:
    """`normalize_masks` for masks by the names of the model, as `Names.nested` gives them."""
    if not masks and not may_be_empty:
        raise MaskError("the dict of masks is empty: there is nothing to make smaller")
    modules = names.modules
    scripted = walk.scripted(modules)
    problems = _Problems()
    keeps: dict[str, torch.Tensor] = {}
    tied: dict[int, list[str]] = {}
    for module_name, entry in masks.items():
        place = f"module {module_name!r}"
        if not isinstance(module_name, str) or module_name not in modules:
            problems.add(place, hints.unknown_module, modules, module_name, entry)
        elif entry is not None and not isinstance(entry, Mapping):
            problems.add(place, hints.not_a_dict, modules[module_name], module_name, entry)
        else:
            for name, mask in (entry or {}).items():
                if mask is None:
                    continue
                parameter = walk.parameter(modules[module_name], name)
                if parameter is None:
                    problems.add(f"{place}, {name!r}", hints.unknown_parameter, modules, module_name, name)
                    continue
                try:
                    keep = _to_keep(mask, parameter)
                except Refused as refused:
                    problems.add(f"{place}, {name!r}", refused.say, *refused.arguments)
                    continue
                if id(parameter) in scripted and not bool(compact(keep).all()):
                    problems.add(f"{place}, {name!r}", hints.scripted, scripted[id(parameter)])
                    continue
                qualified = f"{module_name}.{name}" if module_name else name
                keeps[qualified] = keep
                tied.setdefault(id(parameter), []).append(qualified)
    problems.raise_if_any()
    if not keeps and not may_be_empty:
        raise MaskError("there is no mask in the dict: every entry is None or empty. Nothing would be made smaller")
    for first, *others in tied.values():
        for other in others:
            both = compact(keeps[first]) & compact(keeps[other])
            keeps[first] = both.expand(keeps[other].shape)
        keeps.update(dict.fromkeys(others, keeps[first]))
    return keeps


def fully_masked(masks: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the weights of which nothing is kept, in the order of `masks` (as `normalize_masks` returns them).

    Biases are left out: masking all of a bias is ordinary, while a weight without any kept entry turns its layer's
    output into a constant.

    Example:
        >>> fully_masked({"a.weight": torch.zeros(2, dtype=torch.bool), "a.bias": torch.zeros(2, dtype=torch.bool)})
        ['a.weight']
    """
    weights = (name for name in masks if "bias" not in name.rpartition(".")[2])
    return [name for name in weights if masks[name].numel() and not some(compact(masks[name]).numpy())]


class Refused(Exception):
    """A mask cannot be used; `say(*arguments)` is the reason in words (just the text, if it is ready)."""

    def __init__(self, say: Callable[..., str] | str, *arguments: Any) -> None:
        super().__init__(say, *arguments)
        self.say: Callable[..., str] = (lambda: say) if isinstance(say, str) else say
        self.arguments = arguments


class _Problems:
    """Collects mistakes; the words of those that will not be shown are never made (finding near names takes time)."""

    def __init__(self) -> None:
        self.count = 0
        self.lines: list[str] = []

    def add(self, place: str, say: Callable[..., str], *arguments: Any) -> None:
        self.count += 1
        if self.count <= _LIMIT:
            self.lines.append(f"  - {place}: {say(*arguments)}")

    def raise_if_any(self) -> None:
        if not self.count:
            return
        title = "a mistake in the masks" if self.count == 1 else f"{self.count} mistakes in the masks"
        more = [f"  ... and {self.count - _LIMIT} more"] if self.count > _LIMIT else []
        raise MaskError("\n".join([f"{title} (nothing was changed):", *self.lines, *more]))


def check_model(model: object) -> None:
    """Raise InputError for what is no model."""
    if not isinstance(model, nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        hint = ": make an instance of it first" if isinstance(model, type) else ""
        raise InputError(f"the model must be a torch.nn.Module, not {kind}{hint}")


def _check_masks(masks: object) -> None:
    if not isinstance(masks, Mapping):
        raise MaskError(f"masks must be a dict {{module: {{parameter: mask}}}}, not {type(masks).__name__}")


def _to_keep(mask: object, parameter: nn.Parameter) -> torch.Tensor:
    """`mask` as a new bool tensor on the CPU, True = keep; raises `Refused` if it is no 0/1 mask of `parameter`."""
    tensor = _as_tensor(mask)
    if isinstance(parameter, UninitializedParameter):
        raise Refused("the parameter has no shape yet (a lazy module): call the model once before")
    if tensor.shape != parameter.shape:  # before densifying: a small sparse tensor can claim any size
        raise Refused(hints.wrong_shape, tensor.shape, parameter.shape)
    return _keep_of(tensor)


def as_keep(mask: object) -> torch.Tensor:
    """`mask` as a new bool tensor on the CPU, True = keep; raises `Refused` if it is no 0/1 mask."""
    return _keep_of(_as_tensor(mask))


def _keep_of(tensor: torch.Tensor) -> torch.Tensor:
    try:
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        if tensor.dtype in _NUMPY and tensor.device.type == "cpu":  # some times faster
            entries = _varying(tensor.numpy(), tensor.stride())
            if tensor.dtype == torch.bool:
                return torch.from_numpy(entries.copy()).expand(tensor.shape)
            ones = np.equal(entries, 1, out=np.empty(entries.shape, bool))
            if np.array_equal(ones, entries != 0):  # NaN != 0, so NaN does not pass
                return torch.from_numpy(ones).expand(tensor.shape)
        else:
            small = _varying(tensor, tensor.stride())
            keep: torch.Tensor = small == 1
            if torch.equal(keep, small != 0):
                return keep.cpu().contiguous().expand(tensor.shape)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise Refused(f"the mask cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    raise Refused(hints.not_binary, tensor)


def compact(mask: torch.Tensor) -> torch.Tensor:
    """The entries of a mask that `normalize_masks` has made, without those that repeat others: it broadcasts."""
    for axis, step in enumerate(mask.stride()):
        if step == 0 and mask.shape[axis] > 1:
            mask = mask.narrow(axis, 0, 1)
    return mask


def _varying(entries: Any, steps: Sequence[int]) -> Any:
    """A mask (array or tensor, with its strides) without the axes along which it is the same, which cost as much as
    weights do: it broadcasts."""
    entries = entries[(*[_FIRST if step == 0 else _ALL for step in steps], ...)]
    last = None
    if entries.ndim > 1 and isinstance(entries, np.ndarray) and entries.size and entries.flags.c_contiguous:
        last = _last_varying(entries)
        entries = entries[(*[_ALL] * (last + 1), *[_FIRST] * (entries.ndim - 1 - last))]
    for _, axis in sorted([(-size, a) for a, size in enumerate(entries.shape) if size > 1 and a != last]):
        lines = entries.swapaxes(0, axis)
        # Most that differ do so at once. NaN is like nothing.
        if bool((lines[0] == lines[1]).all()) and bool((lines == lines[0]).all()):
            entries = lines[:1].swapaxes(0, axis)
    return entries


def _last_varying(entries: Any) -> int:
    """The last axis along which an array varies; -1 where it is the same everywhere.

    Whole filters, or whole kernels of them, as mostly: one pass in the order of memory finds where an entry differs
    from the one before, and it is the same within all blocks of a size if that is at their borders alone.
    """
    flat = entries.reshape(-1)
    changes = flat[1:] != flat[:-1]
    total, block = count(changes), flat.size
    for axis, size in enumerate(entries.shape):
        if count(changes[block - 1 :: block]) == total:
            return axis - 1
        block //= size
    return int(entries.ndim) - 1


def _as_tensor(mask: object) -> torch.Tensor:
    """`mask` as a real torch tensor without gradient, no copy where that is possible."""
    if isinstance(mask, np.ndarray):
        try:
            array = np.asarray(mask, mask.dtype.newbyteorder("="))
            if not (array.flags.carray and all(step >= 0 for step in array.strides)):
                array = array.copy()  # from_numpy takes no negative strides, and warns of read-only memory
            tensor = torch.from_numpy(array)
        except (TypeError, ValueError) as error:
            raise Refused(f"a numpy array of dtype {mask.dtype} cannot be a mask: use mask.astype(bool)") from error
    elif isinstance(mask, torch.Tensor):
        tensor = mask.detach() if mask.requires_grad or type(mask) is not torch.Tensor else mask
    else:
        raise Refused(f"a mask is a torch tensor or a numpy array, not {type(mask).__name__}: use torch.tensor(...)")
    if tensor.is_complex():
        raise Refused(f"a mask of complex numbers ({tensor.dtype}) is not accepted: use 0 and 1, or bool")
    if tensor.is_quantized or tensor.is_nested:
        raise Refused("a quantized or nested tensor is not accepted as a mask: use a plain tensor of 0 and 1")
    if tensor.is_meta:
        raise Refused("the mask is on the meta device, so it has no values: load or make it on a real device")
    return tensor
