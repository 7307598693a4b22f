"""A plan for another model than the one it was made for: the same modules, with numbers of their own.

The numbers are asked for module by module, so that of a model that is spread over processes no more than one module
is ever whole in one place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from speedup.build import Parts, settle_expanded
from speedup.commit import Transaction
from speedup.distributed import refuse_fsdp, spread_like, whole
from speedup.errors import InputError
from speedup.node import Value
from speedup.shell import relinked, shell_of
from speedup.store.record import note
from speedup.stream import Stream

if TYPE_CHECKING:
    from speedup.planned import Plan

_LIMIT = 5


def apply_spread(plan: Plan, model: nn.Module) -> nn.Module:
    """Put a plan into a model whose parameters are spread over processes, in place.

    Raises:
        InputError: it is another model, or one that cannot be changed in place; nothing was changed.
    """
    refuse_fsdp(model)
    _check_same(plan, model)
    assert plan._parts is not None
    stream = _stream(plan, model)
    parts = Parts(repairs=plan._parts.repairs)
    renewed: dict[int, torch.Tensor] = {}
    for path in plan._paths:
        parts.modules[path] = _spread(model.get_submodule(path), stream.module(path), renewed)
    settle_expanded(plan.graph, plan.keeps, model, parts)
    transaction = Transaction(model, parts)
    try:
        transaction.apply()
        note(transaction, plan.report, "drop" if plan.keeps.drop else "exact")
    except BaseException:
        transaction.undo()
        raise
    return model


def fill(plan: Plan, small: nn.Module, big: nn.Module) -> None:
    """Give a model that has a plan in it the numbers of one that has not.

    Raises:
        InputError: one of them is another model; nothing was changed.
    """
    _check_same(plan, big)
    there = _tensors(small)
    _compare("the small model", {n: tuple(t.shape) for n, t in there.items()}, plan._shapes)
    empty = [n for n, t in there.items() if t.is_meta]
    if empty:
        raise InputError(f"{empty[0]} of the small model is on the meta device: give it memory first (to_empty)")
    stream, old = _stream(plan, big), _tensors(big)
    done: set[int] = set()
    for path in dict.fromkeys(n.rpartition(".")[0] for n in there):
        module = stream.module(path) if path in plan._paths else None
        for name, target in there.items():
            if name.rpartition(".")[0] != path or id(target) in done:
                continue
            done.add(id(target))
            attribute = name.rpartition(".")[2]
            own = {} if module is None else {**module._parameters, **module._buffers}
            new: torch.Tensor | None = own.get(attribute)
            if new is None or new is old.get(name):
                new = whole(old[name])
            with torch.no_grad():
                target.copy_(spread_like(new.detach().to(target.device, target.dtype), target))


def _stream(plan: Plan, model: nn.Module) -> Stream:
    tensors = _tensors(model)

    def contents(value: Value) -> torch.Tensor:
        found = whole(tensors[value.names[0]])
        if not value.is_blank and not _same(value, found):
            raise InputError(
                f"{value.names[0]} has other numbers than in the model that the plan was made for, whose constants "
                "need not hold here: plan on the meta device, which asks for none"
            )
        return found

    return Stream(plan.graph, plan.keeps, model, contents)


def _same(value: Value, found: torch.Tensor) -> bool:
    assert value.tensor is not None
    return bool(torch.equal(value.tensor.detach().to(found.device, found.dtype), found))


def _spread(old: nn.Module, new: nn.Module | None, renewed: dict[int, torch.Tensor]) -> nn.Module:
    """The new module with its tensors spread as those of the old one are; tied tensors stay one."""
    if new is None:
        return shell_of(old)
    relinks: dict[int, torch.Tensor] = {}
    like = next((t for t in old.parameters(recurse=False)), None)
    for held, before in ((new._parameters, old._parameters), (new._buffers, old._buffers)):
        for name, tensor in held.items():
            was = before.get(name)
            if tensor is None or tensor is was:
                continue
            if was is None:
                made = spread_like(tensor, like, everywhere=True)
            elif id(was) in renewed:
                made = renewed[id(was)]
            else:
                made = renewed[id(was)] = spread_like(tensor, was)
            held[name] = relinks[id(tensor)] = made  # type: ignore[assignment]
    for name, item in list(new.__dict__.items()):
        new.__dict__[name] = relinked(item, relinks)
    return new


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _check_same(plan: Plan, model: nn.Module) -> None:
    if plan._masks.activations:
        raise InputError("masks of activations are put into the planned model alone: apply the plan there")
    wanted = {name: v.shape for v in plan.graph.sources for name in v.names}
    _compare("the model", {n: tuple(t.shape) for n, t in _tensors(model).items()}, wanted)


def _compare(which: str, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    wrong = [f"{n} is missing" for n in wanted if n not in found]
    wrong += [f"{n} is not in the plan" for n in found if n not in wanted]
    wrong += [f"{n} is {found[n]}, and {s} in the plan" for n, s in wanted.items() if found.get(n, s) != s]
    if wrong:
        more = f" and {len(wrong) - _LIMIT} more" if len(wrong) > _LIMIT else ""
        raise InputError(f"{which} is not the one of the plan (nothing was changed): {'; '.join(wrong[:_LIMIT])}{more}")
