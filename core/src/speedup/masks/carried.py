"""Masks that a model carries: those of `torch.nn.utils.prune` and of the parametrizations of `torch.ao.pruning`.

Both compute a weight at each call from an original and a mask. Here the original becomes an ordinary parameter again,
the same object, so that optimizers go on holding it, and the mask is read. The pruned model and the ordinary one with
its masks applied give the same answers. Changes are made in place, and can be taken back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from speedup import walk
from speedup.attributes import Saved
from speedup.errors import MaskError
from speedup.masks import hints


class Unwrapped:
    """A model whose masked weights are ordinary parameters for now; `undo` takes it back, bit for bit.

    Attributes:
        masks: what the model carried, by qualified parameter name.

    Raises:
        MaskError: a parameter has several owners, which mask it differently.
    """

    def __init__(self, model: nn.Module) -> None:
        self.masks: dict[str, torch.Tensor] = {}
        self._saved = Saved()
        try:
            for path, module in walk.named_modules(model) if _may_be_masked(model) else ():
                prefix = f"{path}." if path else ""
                pruned, masked = list(_pruned(module)), list(_parametrized(path, module))
                if pruned or masked:
                    self._saved.note(module)
                for hook, method in reversed(pruned):
                    self.masks[prefix + method._tensor_name] = _unprune(module, hook, method._tensor_name)
                if masked:
                    for name, mask in _unparametrize(module, masked).items():
                        self.masks[prefix + name] = mask
            if self.masks:
                _check_tied(model, self.masks)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Make the model what it was."""
        self._saved.undo()

    def __bool__(self) -> bool:
        return bool(self._saved)


def _may_be_masked(model: nn.Module) -> bool:
    return any([m._forward_pre_hooks or "parametrizations" in m._modules for m in walk.modules(model)])


def _check_tied(model: nn.Module, masks: dict[str, torch.Tensor]) -> None:
    """Refuse what one parameter cannot hold: each owner of a tied one computes its weight with a mask of its own."""
    owners: dict[int, list[str]] = {}
    for path, module in walk.named_modules(model):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(f"{path}.{name}" if path else name)
    for names in owners.values():
        first = next((n for n in names if n in masks), None)
        if first is None:
            continue
        for other in names:
            if not hints.is_same(masks.get(other, torch.ones_like(masks[first])), masks[first]):
                how = "has another mask" if other in masks else "has no mask"
                raise MaskError(
                    f"{first!r} and {other!r} are one parameter, and {other!r} {how}: in the pruned model they are two "
                    "weights. Prune both with the same mask, or give one a parameter of its own first, for example "
                    "layer.weight = nn.Parameter(layer.weight.detach().clone())"
                )


def _pruned(module: nn.Module) -> Iterator[tuple[int, Any]]:
    """The hooks of `torch.nn.utils.prune` on a module."""
    for number, hook in module._forward_pre_hooks.items():
        if isinstance(hook, BasePruningMethod):
            yield number, hook


def _unprune(module: nn.Module, hook: int, name: str) -> torch.Tensor:
    del module._forward_pre_hooks[hook]
    parameter = module._parameters.pop(f"{name}_orig")
    mask = module._buffers.pop(f"{name}_mask")
    assert mask is not None
    module.__dict__.pop(name, None)
    module._non_persistent_buffers_set.discard(f"{name}_mask")
    _register(module, name, parameter)
    return mask.detach().clone()


def _register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    """Put a parameter in front of the others, behind which it was registered anew; biases stand last."""
    ordered = sorted({name: parameter, **module._parameters}.items(), key=lambda item: "bias" in item[0])
    module._parameters.clear()
    module._parameters.update(ordered)


def _parametrized(path: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The tensors of a module that are parametrized by one mask each."""
    if not parametrize.is_parametrized(module):
        return
    lists: Any = module.parametrizations
    kinds = {name: [p for p in chain] for name, chain in lists.items()}
    if not any(_is_mask(p) for chain in kinds.values() for p in chain):
        return
    for name, chain in kinds.items():
        if len(chain) != 1 or not _is_mask(chain[0]):
            others = ", ".join(type(p).__name__ for p in chain if not _is_mask(p)) or "several masks"
            raise MaskError(
                f"{path}.{name} is parametrized by a mask together with others ({others}): apply those first with "
                f"torch.nn.utils.parametrize.remove_parametrizations"
            )
        yield name, chain[0]


def _is_mask(parametrization: nn.Module) -> bool:
    """Whether a parametrization does nothing but multiply with a mask that it holds."""
    kind = type(parametrization)
    return kind.__name__ in ("FakeSparsity", "FakeStructuredSparsity") and kind.__module__.startswith(
        "torch.ao.pruning"
    )


def _unparametrize(module: nn.Module, masked: list[tuple[str, Any]]) -> dict[str, torch.Tensor]:
    masks: dict[str, torch.Tensor] = {}
    lists: Any = module.parametrizations
    rows: dict[int, torch.Tensor] = {}
    for name, parametrization in masked:
        original = lists[name].original
        mask = parametrization.mask.detach()
        rows[id(parametrization)] = mask
        shape = [-1] + [1] * (original.ndim - 1) if mask.ndim < original.ndim else list(mask.shape)
        masks[name] = mask.reshape(shape).expand(original.shape).clone()
        _register(module, name, original)
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for number, hook in list(module._forward_hooks.items()):
        # A structured sparsifier takes the bias out of the layer, and a hook adds it, masked or not.
        adds: Any = hook
        if type(hook).__name__ == "BiasHook" and id(getattr(hook, "param", None)) in rows:
            del module._forward_hooks[number]
            bias = module._parameters.pop("_bias", None)
            if bias is not None:
                module._parameters["bias"] = bias
                if adds.prune_bias:
                    masks["bias"] = rows[id(adds.param)].clone()
    return masks
