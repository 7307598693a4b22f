"""The modules and tensors of a model as lists: torch has generators in generators, which take several times as long,
and a transformation walks through the model a few dozen times."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import nn

Found = TypeVar("Found")

_GETATTR = nn.Module.__getattr__
MISSING = object()  # of an attribute that is not there


class _Known:
    """Which modules a model has, by what has found them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.found: dict[Callable[[nn.Module], Any], Any] = {}


_KNOWN: ContextVar[_Known | None] = ContextVar("the model of which modules are remembered", default=None)


@contextlib.contextmanager
def remembered(model: nn.Module) -> Iterator[None]:
    """While this is open, which modules the model has is found once, and again after each ``forget``."""
    before = _KNOWN.set(_Known(model))
    try:
        yield
    finally:
        _KNOWN.reset(before)


@contextlib.contextmanager
def afresh() -> Iterator[None]:
    """While this is open, nothing is remembered: to see what a run has left, before it is put back."""
    before = _KNOWN.set(None)
    try:
        yield
    finally:
        _KNOWN.reset(before)


def forget() -> None:
    """Say that modules may have been put in or taken out."""
    known = _KNOWN.get()
    if known is not None:
        known.found.clear()


def _once(find: Callable[[nn.Module], Found], model: nn.Module) -> Found:
    """What is found of a model, the same again as long as it is remembered."""
    known = _KNOWN.get()
    if known is None or known.model is not model:
        return find(model)
    if find not in known.found:
        known.found[find] = find(model)
    found: Found = known.found[find]
    return found


def all_paths(model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
    """Every path and the module there, as ``model.named_modules(remove_duplicate=False)``: a module that has several
    paths comes with each of them."""
    return _once(_all_paths, model)


def _all_paths(model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
    found: list[tuple[str, nn.Module]] = [("", model)]

    def visit(prefix: str, module: nn.Module) -> None:
        for name, child in module._modules.items():
            if child is not None:
                path = prefix + name
                found.append((path, child))
                if child._modules:
                    visit(path + ".", child)

    visit("", model)
    return found


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module once, with its first path, as ``model.named_modules()``."""
    first: dict[nn.Module, str] = {}
    for path, module in all_paths(model):
        first.setdefault(module, path)
    return [(path, module) for module, path in first.items()]


def modules(model: nn.Module) -> Sequence[nn.Module]:
    """Every module once, as ``model.modules()``."""
    return _once(_modules, model)


def _modules(model: nn.Module) -> Sequence[nn.Module]:
    found: dict[nn.Module, None] = {model: None}

    def visit(module: nn.Module) -> None:
        for child in module._modules.values():
            if child is not None and child not in found:
                found[child] = None
                if child._modules:
                    visit(child)

    visit(model)
    return list(found)


def named_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """All parameters, then all buffers, under each of their names."""
    paths = [(path + "." if path else "", module) for path, module in all_paths(model)]
    found: list[tuple[str, torch.Tensor]] = []
    for holder in ("_parameters", "_buffers"):
        for prefix, module in paths:
            held = getattr(module, holder)
            if held:
                found += [(prefix + name, tensor) for name, tensor in held.items() if tensor is not None]
    return found


def parameters(model: nn.Module) -> list[nn.Parameter]:
    """Every parameter once, as ``model.parameters()``."""
    within = modules(model) if model._modules else (model,)
    return list({id(p): p for m in within for p in m._parameters.values() if p is not None}.values())


def parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """The parameter of a module itself under a name. (What a module of TorchScript holds them in is no dict.)"""
    held = module._parameters
    return held[name] if name in held else None  # noqa: SIM401


def attribute(module: nn.Module, name: str, default: Any = None) -> Any:
    """As ``getattr(module, name, default)``, for which torch writes a message where there is none."""
    kind: Any = type(module)
    usual = kind.__getattr__ is _GETATTR and kind.__getattribute__ is object.__getattribute__
    if not usual or name in module.__dict__ or hasattr(kind, name):
        return getattr(module, name, default)
    for held in (module._parameters, module._buffers, module._modules):
        if name in held:
            return held[name]
    return default


def scripted(modules: Mapping[str, nn.Module]) -> dict[int, str]:
    """The parameters that modules of TorchScript read, by identity, each with the path of such a module. What is
    compiled can neither be swapped nor be given another parameter."""
    within = [(path, m) for path, m in modules.items() if isinstance(m, torch.jit.ScriptModule)]
    return {id(p): path for path, module in within for p in module._parameters.values() if p is not None}


def tensors(model: nn.Module) -> list[torch.Tensor]:
    """Every parameter and buffer once."""
    return list({id(t): t for t in places(model)}.values())


def places(model: nn.Module) -> list[torch.Tensor]:
    """The parameters and buffers of every module: tied ones as often as they are held."""
    holders = [held for module in modules(model) for held in (module._parameters, module._buffers) if held]
    return [tensor for held in holders for tensor in held.values() if tensor is not None]


def version_of(tensor: torch.Tensor) -> int | None:
    """Changes when a tensor is written to; None for those of ``torch.inference_mode``, which do not count.

    A parameter made there says so no more once other contents were put into it, and counts as little as before.
    """
    try:
        return tensor._version
    except RuntimeError:
        return None


def versions_of(tensors: Sequence[torch.Tensor]) -> list[int | None]:
    """The ``version_of`` each."""
    try:
        return [t._version for t in tensors]
    except RuntimeError:
        return [version_of(t) for t in tensors]
