"""Masks of activations, as NNI 3 has them: `{module: {"_input_0": mask, "_output_0": mask}}`.

They mean the model whose activations are multiplied by them: of the module's `i`-th positional argument (or a keyword
argument, by its name) and of the `i`-th of what it returns. Here the module gets the mask as a buffer and a hook
that multiplies, so that the engine sees a product like any other. Where all that stays of an activation is kept by its
mask, buffer and hook go; else they stay, for the product is part of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from speedup.attributes import Attributes, Saved
from speedup.errors import MaskError

SIDES = ("_input_", "_output_")


class MultiplyInput:
    """A forward pre-hook that multiplies one argument of a module with a buffer of it."""

    def __init__(self, buffer: str, which: int | str) -> None:
        self.buffer = buffer
        self.which = which

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(self.which, str):
            return args, {**kwargs, self.which: _product(module, self.buffer, kwargs.get(self.which))}
        value = args[self.which] if self.which < len(args) else None
        return (*args[: self.which], _product(module, self.buffer, value), *args[self.which + 1 :]), kwargs


class MultiplyOutput:
    """A forward hook that multiplies one of the tensors that a module returns with a buffer of it."""

    def __init__(self, buffer: str, which: int) -> None:
        self.buffer = buffer
        self.which = which

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return _product(module, self.buffer, output if self.which == 0 else None)
        if not isinstance(output, tuple | list) or self.which >= len(output):
            return _product(module, self.buffer, None)
        made = [_product(module, self.buffer, o) if i == self.which else o for i, o in enumerate(output)]
        kind: Any = type(output)
        return kind(*made) if hasattr(output, "_fields") else kind(made)


def _product(module: nn.Module, buffer: str, value: Any) -> torch.Tensor:
    """An activation times the mask in a buffer.

    Raises:
        MaskError: there is no such tensor, or the mask does not broadcast to it.
    """
    mask: Any = module._buffers[buffer]
    name, kind = buffer.removesuffix("_mask"), type(module).__name__
    if not isinstance(value, torch.Tensor):
        raise MaskError(f"{name!r} of a {kind} is masked, and a call of it has no such tensor")
    sizes = value.shape[max(0, value.ndim - mask.ndim) :]
    if mask.ndim > value.ndim or any(m not in (1, s) for m, s in zip(mask.shape, sizes, strict=True)):
        raise MaskError(
            f"{name!r} of a {kind} is of size {tuple(value.shape)}, and its mask, of size {tuple(mask.shape)}, does "
            "not broadcast to it"
        )
    made: torch.Tensor = value * mask
    return made


class Multiplied:
    """A model that multiplies activations with masks for now; `undo` takes it back.

    Attributes:
        masks: the buffers, by qualified name.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        self.masks: dict[str, torch.Tensor] = {}
        self._model = model
        self._saved = Saved()
        try:
            for path, entries in masks.items():
                module = model.get_submodule(path)
                device = next((t.device for t in (*module.parameters(), *model.parameters())), torch.device("cpu"))
                self._saved.note(module)
                for name, mask in entries.items():
                    buffer = f"{name}_mask"
                    module.register_buffer(buffer, mask.to(device, copy=True))
                    side, which = name[: name.index("_", 1) + 1], name[name.index("_", 1) + 1 :]
                    if side == "_input_":
                        at = int(which) if which.isdigit() else which
                        module.register_forward_pre_hook(MultiplyInput(buffer, at), with_kwargs=True)
                    else:
                        module.register_forward_hook(MultiplyOutput(buffer, int(which)))
                    self.masks[f"{path}.{buffer}" if path else buffer] = mask
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Make the model what it was."""
        self._saved.undo()

    def clean(self, noted: Iterable[Attributes] = ()) -> None:
        """Take out what multiplies by nothing but 1, and of what was noted of the model before."""
        for name in self.masks:
            path, _, buffer = name.rpartition(".")
            module = self._model.get_submodule(path)
            if bool(module._buffers[buffer].all()):  # type: ignore[union-attr]
                del module._buffers[buffer]
                for before in noted:
                    if before.module is module:
                        before.leave_out("_buffers", buffer)
                for hooks in (module._forward_hooks, module._forward_pre_hooks):
                    mine = [n for n, h in hooks.items() if getattr(h, "buffer", None) == buffer]
                    for number in mine:
                        del hooks[number]
                        module._forward_pre_hooks_with_kwargs.pop(number, None)


def split(masks: Mapping[Any, Any]) -> tuple[dict[Any, Any], dict[str, dict[str, torch.Tensor]]]:
    """The masks of parameters, and those of activations as compact bool tensors.

    Raises:
        MaskError: a mask of an activation that is no 0/1 tensor.
    """
    parameters: dict[Any, Any] = {}
    activations: dict[str, dict[str, torch.Tensor]] = {}
    for name, entry in masks.items():
        if not isinstance(entry, Mapping):
            parameters[name] = entry
            continue
        rest = {}
        for key, mask in entry.items():
            if not (isinstance(key, str) and key.startswith(SIDES)):
                rest[key] = mask
            elif mask is not None:
                activations.setdefault(name, {})[key] = _compact(name, key, mask)
        if rest or not entry:
            parameters[name] = rest
    return parameters, activations


def _compact(module: str, key: str, mask: Any) -> torch.Tensor:
    from speedup.masks.check import Refused, as_keep, compact

    side = next(s for s in SIDES if key.startswith(s))
    which = key[len(side) :]
    if not which.isdigit() and (side == "_output_" or not which.isidentifier()):
        raise MaskError(f"module {module!r}: {key!r} names no input or output; they are _input_0, _output_0 and so on")
    try:
        keep = as_keep(mask)
    except Refused as refused:
        raise MaskError(f"module {module!r}, {key!r}: {refused.say(*refused.arguments)}") from None
    return compact(keep).clone()
