"""Masks: reading them from a file, and checking them against a model.

A mask is a 0/1 tensor of exactly its parameter's shape: 1 keeps an entry, 0 drops it. Masks come as
`{module: {parameter: mask or None}}` (the layout of NNI 1.x); module names are those of `model.named_modules()`, so
the model itself is `""`. Inside the engine they are `{qualified parameter name: bool tensor}`, True = keep.

    masks = normalize_masks(model, load_masks("masks.pt"))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from speedup import _mask_hints as hints
from speedup.errors import InputError, MaskError

__all__ = ["fully_masked", "load_masks", "normalize_masks"]

_LIMIT = 10
_NUMPY = (torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64)


def load_masks(source: str | os.PathLike[str] | Mapping[Any, Any], map_location: Any = None) -> Mapping[Any, Any]:
    """Return the masks in the file `source`; a mapping is returned as it is.

    Files are those of `torch.save`, read with `weights_only=True`: code in them never runs. What the dict contains is
    checked by `normalize_masks`, not here.

    Args:
        source: path of the file, or a mapping of masks.
        map_location: as in `torch.load`. Default: the CPU, so a file that was saved on a device that this machine
            lacks can be read.

    Raises:
        MaskError: no such file, unreadable, truncated, no file of `torch.save`, one that holds objects or code, or one
            that holds something other than a dict. The original error is its cause.

    Example:
        >>> load_masks({"fc": {"weight": torch.ones(2, 3)}}).keys()
        dict_keys(['fc'])
    """
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, str | os.PathLike):
        raise MaskError(f"masks are a dict or the path of a file, not {type(source).__name__}")
    path = os.fspath(source)
    try:
        loaded = torch.load(path, map_location="cpu" if map_location is None else map_location, weights_only=True)
    except FileNotFoundError as error:
        raise MaskError(f"mask file {path!r}: no such file (looked for {os.path.abspath(path)!r})") from error
    except OSError as error:
        raise MaskError(f"mask file {path!r} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file can fail in any way inside torch.load
        raise MaskError(f"mask file {path!r} {hints.load_failure(path, error)}") from error
    if not isinstance(loaded, Mapping):
        raise MaskError(
            f"mask file {path!r} holds {type(loaded).__name__}, not a dict of masks {{module: {{parameter: mask}}}}"
        )
    return loaded


def normalize_masks(model: nn.Module, masks: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """Check `masks` against `model` and return them by qualified parameter name.

    Accepted masks: torch tensors on any device, of any bool, integer or floating-point dtype, dense or sparse, and
    numpy arrays. `None`, as a mask or as a module's whole entry, means "no mask". Nothing that is passed in is changed,
    and nothing that is returned shares memory with it.

    Tied parameters (one `Parameter` object under several names): an entry is dropped if any of the given masks
    drops it, and this merged mask is returned under each of the names that were given.

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
    _check_arguments(model, masks)
    modules = dict(model.named_modules(remove_duplicate=False))
    _check_not_flat(modules, masks)
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
                parameter = modules[module_name]._parameters.get(name)
                if parameter is None:
                    problems.add(f"{place}, {name!r}", hints.unknown_parameter, modules, module_name, name)
                    continue
                try:
                    keep = _to_keep(mask, parameter)
                except _Refused as refused:
                    problems.add(f"{place}, {name!r}", refused.say, *refused.arguments)
                    continue
                qualified = f"{module_name}.{name}" if module_name else name
                keeps[qualified] = keep
                tied.setdefault(id(parameter), []).append(qualified)
    problems.raise_if_any()
    if not keeps:
        raise MaskError("there is no mask in the dict: every entry is None or empty. Nothing would be made smaller")
    for names in tied.values():
        for other in names[1:]:
            keeps[names[0]] = keeps[names[0]] & keeps[other]
        keeps.update(dict.fromkeys(names, keeps[names[0]]))
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
    return [name for name in weights if masks[name].numel() and not compact(masks[name]).any()]


class _Refused(Exception):
    """A mask cannot be used; `say(*arguments)` is the reason in words (just the text, if it is ready)."""

    def __init__(self, say: Callable[..., str] | str, *arguments: Any) -> None:
        super().__init__(say, *arguments)
        self.say = (lambda: say) if isinstance(say, str) else say
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


def _check_arguments(model: object, masks: object) -> None:
    if not isinstance(model, nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        hint = ": make an instance of it first" if isinstance(model, type) else ""
        raise InputError(f"the model must be a torch.nn.Module, not {kind}{hint}")
    if not isinstance(masks, Mapping):
        raise MaskError(f"masks must be a dict {{module: {{parameter: mask}}}}, not {type(masks).__name__}")
    if not masks:
        raise MaskError("the dict of masks is empty: there is nothing to make smaller")


def _check_not_flat(modules: Mapping[str, nn.Module], masks: Mapping[Any, Any]) -> None:
    """Refuse `{"fc.weight": mask}` with one message for the whole dict, instead of one for each entry."""
    flat = all(isinstance(name, str) and (mask is None or hints.is_array(mask)) for name, mask in masks.items())
    dotted = next((name for name in masks if flat and "." in name and name not in modules), None)
    if dotted is not None:
        module, _, parameter = dotted.rpartition(".")
        raise MaskError(hints.FLAT.format(key=dotted, module=module, parameter=parameter))


def _to_keep(mask: object, parameter: nn.Parameter) -> torch.Tensor:
    """`mask` as a new bool tensor on the CPU, True = keep; raises `_Refused` if it is no 0/1 mask of `parameter`."""
    tensor = _as_tensor(mask)
    if isinstance(parameter, UninitializedParameter):
        raise _Refused("the parameter has no shape yet (a lazy module): call the model once before")
    if tensor.shape != parameter.shape:  # before densifying: a small sparse tensor can claim any size
        raise _Refused(hints.wrong_shape, tensor.shape, parameter.shape)
    try:
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        small = _varying(tensor)
        if tensor.dtype == torch.bool:
            return small.to("cpu", copy=True, memory_format=torch.contiguous_format).expand(tensor.shape)
        ones = small == 1
        if torch.equal(ones, small != 0):  # NaN != 0, so NaN does not pass
            return ones.cpu().contiguous().expand(tensor.shape)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise _Refused(f"the mask cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    raise _Refused(hints.not_binary, tensor)


def compact(mask: torch.Tensor) -> torch.Tensor:
    """The entries of a mask that `normalize_masks` has made, without those that repeat others: it broadcasts."""
    for axis, step in enumerate(mask.stride()):
        if step == 0 and mask.shape[axis] > 1:
            mask = mask.narrow(axis, 0, 1)
    return mask


def _varying(tensor: torch.Tensor) -> torch.Tensor:
    """A mask without the axes along which it is the same, which cost as much as weights do: it broadcasts."""
    tensor = compact(tensor)
    for axis in sorted(range(tensor.ndim), key=lambda a: -tensor.shape[a]):
        if tensor.shape[axis] > 1 and all(_same(t, axis) for t in (tensor.narrow(axis, 0, 2), tensor)):
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _same(tensor: torch.Tensor, axis: int) -> bool:
    """Whether all indices of an axis hold the same; NaN is like nothing."""
    head = tensor.narrow(axis, 0, 1)
    if tensor.device.type == "cpu" and tensor.dtype in _NUMPY:
        return bool((tensor.numpy() == head.numpy()).all())  # some times faster
    return bool((tensor == head).all())


def _as_tensor(mask: object) -> torch.Tensor:
    """`mask` as a real torch tensor without gradient, no copy where that is possible."""
    if isinstance(mask, np.ndarray):
        try:
            array = np.asarray(mask, mask.dtype.newbyteorder("="))
            if not (array.flags.carray and all(step >= 0 for step in array.strides)):
                array = array.copy()  # from_numpy takes no negative strides, and warns of read-only memory
            tensor = torch.from_numpy(array)
        except (TypeError, ValueError) as error:
            raise _Refused(f"a numpy array of dtype {mask.dtype} cannot be a mask: use mask.astype(bool)") from error
    elif isinstance(mask, torch.Tensor):
        tensor = mask.detach()
    else:
        raise _Refused(f"a mask is a torch tensor or a numpy array, not {type(mask).__name__}: use torch.tensor(...)")
    if tensor.is_complex():
        raise _Refused(f"a mask of complex numbers ({tensor.dtype}) is not accepted: use 0 and 1, or bool")
    if tensor.is_quantized or tensor.is_nested:
        raise _Refused("a quantized or nested tensor is not accepted as a mask: use a plain tensor of 0 and 1")
    if tensor.is_meta:
        raise _Refused("the mask is on the meta device, so it has no values: load or make it on a real device")
    return tensor
