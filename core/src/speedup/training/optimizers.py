"""Optimizers: parameters exchanged in their groups, and their state cut with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from speedup.errors import InputError
from speedup.training.transition import Transition


def follow_optimizer(optimizer: Optimizer, transition: Transition) -> Callable[[], None]:
    """Find out what changes; nothing is changed before the function that is returned is called, which cannot fail.

    A momentum or moment of a parameter's shape is cut as the parameter, a factor that broadcasts to it as well; what
    counts steps stays. A bias that a layer gained joins the group of its layer, if the
    optimizer has that.

    Raises:
        InputError: the optimizer is not that of the model, or keeps a state that cannot be cut.
    """
    renewed = {id(old): (name, new) for name, old, new in transition.renewed()}
    known = {id(t) for t in transition.old.values()}
    groups = optimizer.param_groups
    if not any(id(p) in known for group in groups for p in group["params"]):
        raise InputError("the optimizer holds no parameter of the model: pass the one that was made for it")
    left = {id(t) for t in transition.new.values()}
    lost = known - {*renewed, *left}  # what a module of another class has no place for
    params = [
        [renewed[id(p)][1] if id(p) in renewed else p for p in group["params"] if id(p) not in lost] for group in groups
    ]
    names: list[list[str] | None] = [
        [n for n, p in zip(g["param_names"], g["params"], strict=True) if id(p) not in lost]
        if "param_names" in g
        else None
        for g in groups
    ]
    for name, gained in _gained(transition):
        group = _group_near(name, transition, groups)
        if group is None:
            continue
        params[group].append(gained)
        more = names[group]
        if more is not None:
            more.append(name)
    dropped = [p for group in groups for p in group["params"] if id(p) in lost]
    states = [
        (p, renewed[id(p)][1], _cut_state(optimizer, p, transition, *renewed[id(p)]))
        for group in groups
        for p in group["params"]
        if id(p) in renewed
    ]

    def commit() -> None:
        for group, new, named in zip(groups, params, names, strict=True):
            group["params"][:] = new
            if named is not None:
                group["param_names"][:] = named
        for parameter in dropped:
            optimizer.state.pop(parameter, None)
        for old, new_parameter, state in states:
            if old in optimizer.state:
                del optimizer.state[old]
                optimizer.state[new_parameter] = state

    return commit


def _cut_state(
    optimizer: Optimizer, parameter: torch.Tensor, transition: Transition, name: str, new: torch.Tensor
) -> dict[str, Any]:
    found = {}
    for key, value in optimizer.state.get(parameter, {}).items():
        small = value
        if isinstance(value, torch.Tensor):
            if value.shape == parameter.shape:
                small = transition.cut(name, value)
            elif value.numel() != 1:
                small = transition.cut_factor(name, value) if _broadcasts(value, parameter) else None
        elif any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value)):
            small = None
        if small is None and value is not None:
            what = f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
            raise InputError(
                f"the state {key!r} of {type(optimizer).__name__} for {name} ({what}, the parameter is "
                f"{tuple(parameter.shape)}) cannot be cut with it, and nothing was changed: "
                "apply the plan without the optimizer and make a new one"
            )
        found[key] = small
    return found


def _broadcasts(tensor: torch.Tensor, parameter: torch.Tensor) -> bool:
    sizes = zip(tensor.shape, parameter.shape, strict=False)
    return tensor.ndim == parameter.ndim and all(t in (1, p) for t, p in sizes)


def _gained(transition: Transition) -> list[tuple[str, torch.Tensor]]:
    new = transition.model.named_parameters()
    return [(n, p) for n, p in new if n not in transition.old and p.requires_grad]


def _group_near(name: str, transition: Transition, groups: list[dict[str, Any]]) -> int | None:
    """The group that trained the first parameter of the same module, or of the nearest around it that had any; None
    where another optimizer did, or none."""
    trained = {n: p for n, p in transition.old.items() if isinstance(p, nn.Parameter) and p.requires_grad}
    path, near = name, None
    while path and near is None:
        path = path.rpartition(".")[0]
        near = next((p for n, p in trained.items() if not path or n.startswith(f"{path}.")), None)
    return next((i for i, group in enumerate(groups) if any(p is near for p in group["params"])), None)
