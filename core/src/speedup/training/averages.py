"""Averaged copies of a model (EMA, SWA): modules, dicts and lists of tensors that get the sizes of the small model."""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import nn

from speedup import walk
from speedup.build import Parts
from speedup.commit import Transaction
from speedup.errors import InputError
from speedup.shell import relinked, shell_of
from speedup.store.record import FIELD, INTERNAL, same
from speedup.training.transition import Transition

Undo = Callable[[], None]

_FORMS = (
    "a copy of the model, a module that holds one as .module, a dict {name: tensor}, or a list of tensors in the order "
    "of model.parameters()"
)


def follow_average(average: Any, transition: Transition, transaction: Transaction) -> tuple[Undo, Undo]:
    """Find out what changes.

    The copy is cut at the places of the weights, and what folding added to a weight is added to its average.

    Args:
        average: a copy of the model, a module that holds one as ``.module`` (``torch.optim.swa_utils.AveragedModel``),
            a dict ``{name: tensor}``, or a list of tensors in the order of ``model.parameters()``.
        transaction: the change of the model, which was put in.

    Returns:
        two functions: one that makes the change, one that takes it back.

    Raises:
        InputError: it is none of these, or a copy of another model.
    """
    if isinstance(average, nn.Module):
        return _module(average, transition, transaction)
    if isinstance(average, MutableMapping):
        return _dict(average, transition)
    if isinstance(average, list) and average and all(isinstance(t, torch.Tensor) for t in average):
        return _list(average, transition)
    raise InputError(f"ema is {_FORMS}, not a {type(average).__name__}")


def _module(average: nn.Module, transition: Transition, transaction: Transaction) -> tuple[Undo, Undo]:
    inner = average
    while dict(walk.named_tensors(inner)).keys() != transition.old.keys():
        below = inner._modules.get("module")
        if below is None:
            raise InputError("the averaged module is no copy of the model: its parameters have other names")
        inner = below
    if inner is transition.model:
        raise InputError("the averaged module is the model itself, not a copy")
    mirrored = Transaction(inner, _mirror(inner, transition, transaction))
    return mirrored.apply, mirrored.undo


def _mirror(copied: nn.Module, transition: Transition, transaction: Transaction) -> Parts:
    """For a copy of the model the parts that were put into the model, with its own numbers."""
    parts = Parts()
    placed = {id(old): made for old, made in transaction.placed}
    changed = {id(saved.module): saved for saved in reversed(transaction.saved)}
    paths = {id(m): path for path, m in transition.model.named_modules()}
    made: dict[int, torch.Tensor] = {}
    own = dict(walk.named_tensors(copied))
    for number, then in changed.items():
        now = then.module
        if number not in paths:
            continue
        path = paths[number]
        shell = shell_of(copied.get_submodule(path))
        _become(shell, now, then.as_it_was())
        _fill(shell, now, path, own, transition, made)
        parts.modules[path] = shell
    for module in placed.values():
        path = paths[id(module)]
        shell = shell_of(module)
        _fill(shell, module, path, own, transition, made)
        parts.modules[path] = shell
    return parts


def _become(shell: nn.Module, now: nn.Module, before: dict[str, Any]) -> None:
    """Give a shell the class and the plain attributes that a module of the model has got."""
    shell.__class__ = type(now)
    for name in {**before, **vars(now)}:
        if name in INTERNAL and name != FIELD:
            continue
        if name not in vars(now):
            shell.__dict__.pop(name, None)
        elif name not in before or not same(before[name], vars(now)[name]):
            shell.__dict__[name] = copy.copy(vars(now)[name])
    shell._non_persistent_buffers_set.update(now._non_persistent_buffers_set)


def _fill(
    shell: nn.Module,
    now: nn.Module,
    path: str,
    own: dict[str, torch.Tensor],
    transition: Transition,
    made: dict[int, torch.Tensor],
) -> None:
    linked: dict[int, torch.Tensor] = {}
    holders: list[tuple[Any, Any]] = [(shell._parameters, now._parameters), (shell._buffers, now._buffers)]
    for held, new in holders:
        for name in {**held, **new}:
            tensor = new.get(name)
            if tensor is None:
                held[name] = None
                continue
            full = f"{path}.{name}" if path else name
            if id(tensor) not in made:
                made[id(tensor)] = _average(full, tensor, own.get(full), transition)
            held[name] = linked[id(tensor)] = made[id(tensor)]
    for name, value in list(vars(shell).items()):
        shell.__dict__[name] = relinked(value, linked)


def _average(name: str, new: torch.Tensor, average: torch.Tensor | None, transition: Transition) -> Any:
    if average is None:
        average, tensor = new, new.detach().clone()
    else:
        tensor = transition.average(name, average)
    return nn.Parameter(tensor, average.requires_grad) if isinstance(new, nn.Parameter) else tensor


def _dict(average: MutableMapping[Any, Any], transition: Transition) -> tuple[Undo, Undo]:
    names = {key: _known(key, transition) for key in average}
    if not any(names.values()):
        raise InputError("the averaged dict has none of the names of the model's parameters")
    lost = [key for key, name in names.items() if name and name not in transition.new]
    made = {key: transition.average(n, average[key]) for key, n in names.items() if n in transition.new}
    prefix = "module." if all(n != k for k, n in names.items() if n) else ""
    for name, tensor in transition.new.items():
        if name not in transition.old:
            made[prefix + name] = tensor.detach().clone()
    before = dict(average)

    def commit() -> None:
        for key in lost:
            del average[key]
        average.update(made)

    def undo() -> None:
        average.clear()
        average.update(before)

    return commit, undo


def _known(key: Any, transition: Transition) -> str:
    """The name of the model's tensor that a key stands for, "" for none."""
    return next((n for n in (key, str(key).removeprefix("module.")) if n in transition.old), "")


def _list(average: list[torch.Tensor], transition: Transition) -> tuple[Undo, Undo]:
    first: dict[int, str] = {}  # a tied parameter stands where its first name does
    for name, tensor in transition.old.items():
        if isinstance(tensor, nn.Parameter):
            first.setdefault(id(tensor), name)
    order = list(first.values())
    trained = [n for n in order if transition.old[n].requires_grad]
    names = next((o for o in (order, trained) if len(o) == len(average)), None)
    if names is None:
        raise InputError(f"the averaged list has {len(average)} tensors, and the model {len(order)} parameters")
    by_name = dict(zip(names, average, strict=True))
    now = {n: p for n, p in transition.model.named_parameters() if names is order or p.requires_grad}
    made = [transition.average(n, by_name[n]) if n in by_name else p.detach().clone() for n, p in now.items()]
    before = list(average)

    def commit() -> None:
        average[:] = made

    def undo() -> None:
        average[:] = before

    return commit, undo
