"""From whatever the user has to masks of one model: the source is detected, or named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from speedup import walk
from speedup.attributes import Attributes
from speedup.errors import MaskError
from speedup.inputs import check_made
from speedup.masks import files
from speedup.masks.activations import Multiplied, split
from speedup.masks.carried import Unwrapped
from speedup.masks.check import check_model, normalize_masks, normalize_nested
from speedup.masks.names import Names
from speedup.masks.zeros import zeros

Source: TypeAlias = Literal["auto", "torch", "safetensors", "numpy", "dict", "model", "zeros"]
SOURCES = ("auto", "torch", "safetensors", "numpy", "dict", "model", "zeros")


@dataclass(eq=False)
class LoadedMasks:
    """Masks of one model.

    Attributes:
        parameters: bool tensors by qualified parameter name, True = keep, of the parameters' shapes.
        activations: bool tensors by module and then by `_input_0`, `_output_0` …; they broadcast to the activations.
    """

    parameters: dict[str, torch.Tensor]
    activations: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)


class Prepared:
    """A model in the form in which the engine can make it smaller: what computes masked weights is taken out, and
    masks of activations are products in the model. `undo` takes it back, bit for bit.

    Attributes:
        masks: what was read.
        facts: masks of parameters, and the buffers that activations are multiplied with, by qualified name.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: Any = None,
        *,
        source: Source = "auto",
        map_location: Any = None,
        may_be_empty: bool = False,
    ) -> None:
        check_model(model)
        check_made(model)
        self._unwrapped = Unwrapped(model)
        self._multiplied: Multiplied | None = None
        try:
            carried = self._unwrapped.masks
            self.masks = _load(model, masks, source, map_location, carried, may_be_empty)
            self._multiplied = Multiplied(model, self.masks.activations)
            self.facts = {**self.masks.parameters, **self._multiplied.masks}
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Make the model what it was."""
        if self._multiplied is not None:
            self._multiplied.undo()
        self._unwrapped.undo()

    def finish(self, noted: Iterable[Attributes] = ()) -> None:
        """The model is small now: take out what multiplies by nothing but 1, and of what was noted of it before."""
        assert self._multiplied is not None
        self._multiplied.clean(noted)


def load(model: nn.Module, masks: Any = None, *, source: Source = "auto", map_location: Any = None) -> LoadedMasks:
    """Read masks in any of the known forms and check them against a model, which is not changed.

    ===========================  ========================================================================
    `masks`                      what it is
    ===========================  ========================================================================
    a dict                       of NNI 1.x, 2.x, 3: `{module: {parameter: mask or None, "_output_0": mask}}`;
                                 or flat: `{parameter name: mask}`; or a state dict of a model pruned with
                                 `torch.nn.utils.prune`, of which `*_mask` is read
    a path                       of a file with such a dict: of `torch.save`, of safetensors, or of
                                 `numpy.savez` (the last two are flat)
    None                         what the model itself carries: `torch.nn.utils.prune`, parametrizations of
                                 `torch.ao.pruning`
    "zeros"                      exact zeros in the parameters
    ===========================  ========================================================================

    Masks are 0/1 tensors (or numpy arrays) of any bool, integer or float type, on any device. What wrappers put into
    names (`module.`, `_orig_mod.`) does not matter. What the model itself carries counts along with other masks: an
    entry is dropped if either drops it.

    Args:
        source: "auto" tells the source by itself. "torch", "safetensors" and "numpy" name the kind of a file, and
            "dict", "model" and "zeros" the others.
        map_location: for files of `torch.save`, as in `torch.load`.

    Raises:
        MaskError: no masks could be read, or they do not fit the model; the message says what was tried.
        InputError: `model` is not an `nn.Module`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3))
        >>> load(model, {"0.bias": torch.tensor([1, 0, 1])}).parameters
        {'0.bias': tensor([ True, False,  True])}
    """
    check_model(model)
    unwrapped = Unwrapped(model)
    try:
        return _load(model, masks, source, map_location, unwrapped.masks)
    finally:
        unwrapped.undo()


def apply_masks(model: nn.Module, masks: Any = None, *, source: Source = "auto", map_location: Any = None) -> nn.Module:
    """Make a model the masked one, in place and for good: masked entries of its parameters become 0.

    Masks of activations become products in the model, and what computes masked weights at each call is taken out. What
    the small model is compared with.

    Args:
        model: it is returned, changed; on an error it is as it was.
        masks, source, map_location: as for ``load``.

    Raises:
        MaskError, InputError: see ``load``.
    """
    prepared = Prepared(model, masks, source=source, map_location=map_location)
    with torch.no_grad():
        for name, mask in prepared.masks.parameters.items():
            parameter = model.get_parameter(name)
            parameter.masked_fill_(~mask.to(parameter.device), 0)
    return model


def _load(
    model: nn.Module,
    masks: Any,
    source: Source,
    map_location: Any,
    carried: Mapping[str, torch.Tensor],
    may_be_empty: bool = False,
) -> LoadedMasks:
    if source not in SOURCES:
        raise MaskError(f"source={source!r}: it is one of {', '.join(SOURCES)}")
    names = Names(model)
    if isinstance(masks, LoadedMasks):
        parameters: Mapping[Any, Any] = masks.parameters
        activations = masks.activations
    else:
        given = _given(model, masks, source, map_location, carried)
        parameters, activations = split(names.nested(_of_state_dict(names, given)))
        parameters.update({name: entry for name, entry in activations.items() if name not in names.modules})
    if not isinstance(masks, LoadedMasks):
        may_be_empty = may_be_empty or bool(activations or carried)
        if activations:  # a name may mean another module without them
            parameters = names.nested(parameters)
        merged = normalize_nested(names, parameters, may_be_empty=may_be_empty)
    elif _fits(names, masks.parameters):
        merged = dict(masks.parameters)
    else:
        merged = normalize_masks(model, parameters, names, may_be_empty=True)
    for name, mask in normalize_masks(model, carried, names, may_be_empty=True).items() if carried else ():
        merged[name] = merged[name] & mask if name in merged else mask
    return LoadedMasks(merged, activations)


def _fits(names: Names, masks: Mapping[str, torch.Tensor]) -> bool:
    """Whether masks that were read already are those of a model as they are."""
    found: set[int] = set()
    for name, mask in masks.items():
        path, _, attribute = name.rpartition(".")
        parameter = walk.parameter(names.modules[path], attribute) if path in names.modules else None
        if parameter is None or parameter.shape != mask.shape or mask.dtype != torch.bool or id(parameter) in found:
            return False  # of a tied parameter all masks are to be made one
        found.add(id(parameter))
    return True


_TAKES = {"model": "masks=None", "zeros": "masks='zeros' or None", "dict": "a dict", "file": "the path of a file"}


def _given(
    model: nn.Module, masks: Any, source: Source, map_location: Any, carried: Mapping[str, torch.Tensor]
) -> Mapping[Any, Any]:
    """What was given, as it stands there; nothing of what the model itself carries."""
    zero = isinstance(masks, str) and masks == "zeros"
    if source != "auto":
        kind = "file" if source in files.KINDS else source
    else:
        kind = "model" if masks is None else "zeros" if zero else "dict" if isinstance(masks, Mapping) else "file"
    fits = {
        "model": masks is None,
        "zeros": zero or masks is None,
        "dict": isinstance(masks, Mapping),
        "file": isinstance(masks, str | os.PathLike),
    }
    if not fits[kind] and source == "auto":
        raise MaskError(f"masks are a dict, the path of a file, 'zeros', or None, not {type(masks).__name__}")
    if not fits[kind]:
        shown = repr(masks) if masks is None or isinstance(masks, str) else f"a {type(masks).__name__}"
        raise MaskError(f"source={source!r} goes with {_TAKES[kind]}, not with {shown}")
    if kind == "model":
        if not carried:
            raise MaskError(
                "no masks were given and the model carries none (tried: torch.nn.utils.prune, parametrizations of "
                "torch.ao.pruning). Pass a dict or a file, or masks='zeros' to take exact zeros in the weights"
            )
        return {}
    if kind == "zeros":
        found = zeros(model)
        if not found and not carried:
            raise MaskError("masks='zeros': no parameter of the model has an entry of exactly 0")
        return found
    if kind == "file":
        return files.read(masks, map_location, source if source in files.KINDS else None)
    given: Mapping[Any, Any] = masks
    return given


def _of_state_dict(names: Names, masks: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Of the state dict of a pruned model the masks; anything else as it is."""
    found = {}
    for key, value in masks.items():
        if isinstance(key, str) and key.endswith("_mask") and isinstance(value, torch.Tensor):
            name = key.removesuffix("_mask")
            if names.parameter(name) is not None:
                found[name] = value
    return found or masks
