"""What is no longer as it was: noted in every module that a plan changes, for ``save`` to find.

The note is plain data in one attribute of the module, so it goes wherever the module goes: into copies, pickles and
larger models. It says what was *before*; what is now the module itself says. So it also stands for several rounds of
pruning: what was there before the first of them stays noted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import filterfalse
from typing import Any

import torch
from torch import nn

from speedup import attributes
from speedup.attributes import Attributes
from speedup.commit import Transaction
from speedup.overlay import plain_class
from speedup.report import Report
from speedup.shell import relinked
from speedup.store.plain import NotPlainError, to_json
from speedup.trees import PLAIN

FIELD = "_speedup_record"
_HOLDERS = ("_parameters", "_buffers")
INTERNAL = attributes.INTERNAL | {FIELD}
_UNREAD = INTERNAL - {*_HOLDERS, "_modules"}


def note(transaction: Transaction, report: Report, constants: str) -> None:
    """Note what a plan that was put in has changed, and in the model what the plan did as a whole."""
    firsts: dict[int, Attributes] = {}
    for saved in transaction.saved:
        firsts.setdefault(id(saved.module), saved)
    changed = [(first.as_it_was(_UNREAD), first.module) for first in firsts.values()]
    placed = {id(made) for _, made in transaction.placed}
    renewed = _renewed(changed)
    for then, module in changed:
        _merge(module, _difference(then, module, placed, renewed))
    for old, made in transaction.placed:
        then = Attributes(old).as_it_was()
        known = record_of(old)
        if known is not None:  # of what the same plan, or one before it, made of it
            made.__dict__[FIELD] = known
        _merge(made, _difference(then, made, placed, renewed), kind=plain_class(old))
    transaction.saved.note(transaction.model)
    done = {"parameters": list(report.parameters), "macs": list(report.macs), "constants": constants}
    record = record_of(transaction.model) or empty(name_of(plain_class(transaction.model)))
    transaction.model.__dict__[FIELD] = {**record, "rounds": [*record["rounds"], done]}


def record_of(module: nn.Module) -> dict[str, Any] | None:
    """The note in one module: its original ``class``, ``tensors`` (shapes before; None for one that was gained),
    ``attributes`` (values before as JSON; an empty dict for one that was not there), what is ``unsaved`` and why, and
    for a whole model its ``rounds``."""
    found: dict[str, Any] | None = module.__dict__.get(FIELD)
    return found


def name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def empty(original: str) -> dict[str, Any]:
    """The note in a module of which nothing has changed yet."""
    return {"class": original, "tensors": {}, "attributes": {}, "unsaved": {}, "rounds": []}


def names_in(values: Mapping[str, Any]) -> dict[int, str]:
    """The names of a module's own tensors, by identity, from its attributes."""
    return {id(t): n for holder in _HOLDERS for n, t in values[holder].items() if t is not None}


def shape_of(tensor: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None or nn.parameter.is_lazy(tensor) else tuple(tensor.shape)


def _merge(module: nn.Module, found: dict[str, dict[str, Any]], kind: type | None = None) -> None:
    if not any(found.values()) and kind is None and type(module) is plain_class(module):
        return
    record = record_of(module) or empty(name_of(kind or plain_class(module)))
    # A new dict: copies of the module hold the old one.
    module.__dict__[FIELD] = {**record, **{key: {**changed, **record[key]} for key, changed in found.items()}}


def _renewed(changed: Iterable[tuple[dict[str, Any], nn.Module]]) -> dict[int, torch.Tensor]:
    """What has taken the place of tensors, by their identity, in modules of which the attributes before are given."""
    return {
        id(old): new
        for then, module in changed
        for holder in _HOLDERS
        for name, old in then[holder].items()
        if old is not None and (new := module.__dict__[holder].get(name)) is not None and new is not old
    }


def _difference(
    old: dict[str, Any], module: nn.Module, placed: set[int], renewed: Mapping[int, torch.Tensor]
) -> dict[str, dict[str, Any]]:
    """What of a module is no longer as its attributes were."""
    found: dict[str, dict[str, Any]] = {"tensors": {}, "attributes": {}, "unsaved": {}}
    now = module.__dict__
    for holder in _HOLDERS:
        was, there = old[holder], now[holder]
        for name in {**was, **there} if was or there else ():
            first, last = was.get(name), there.get(name)
            if first is not last and (shape := shape_of(first)) != shape_of(last):
                found["tensors"][name] = None if shape is None else list(shape)
    before, after = old["_modules"], now["_modules"]
    if before or after:
        children = {n: c for n, c in after.items() if id(c) not in placed}
        if any(before.get(n) is not c for n, c in children.items()) or len(before) > len(after):
            found["unsaved"]["children"] = "a rule replaced modules inside the module"
    for name in filterfalse(INTERNAL.__contains__, {**old, **now}):
        if name in old and name in now:
            first, last = old[name], now[name]
            if first is last or (type(first) not in PLAIN and same(first, last)):
                continue
            if type(first) not in PLAIN and _same_in(relinked(first, renewed), last):
                continue  # it holds the tensors that it held, which loading puts there again
        try:
            was, there = _as_json(old, name), _as_json(now, name)
        except NotPlainError as error:
            found["unsaved"][name] = str(error)
        else:
            if was != there:
                found["attributes"][name] = was
    return found


def _as_json(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The note of one attribute: empty where there is none."""
    if name not in values:
        return {}
    value = values[name]
    return {"before": to_json(value, {} if type(value) in PLAIN else names_in(values))}


def _same_in(a: Any, b: Any) -> bool:
    """Whether lists, tuples and dicts in one another hold the same."""
    if a is b or type(a) is not type(b) or type(a) not in (list, tuple, dict) or len(a) != len(b):
        return a is b
    if type(a) is dict:
        return list(a) == list(b) and all(_same_in(a[k], b[k]) for k in b)
    return all(map(_same_in, a, b))


def same(a: Any, b: Any) -> bool:
    """Whether a value is the same one, or a container of the same ones."""
    if type(a) is not type(b) or not isinstance(a, list | tuple | set | dict):
        return a is b
    if isinstance(a, dict):
        return list(a) == list(b) and all(a[k] is b[k] for k in b)
    return len(a) == len(b) and (a == b if isinstance(a, set) else all(x is y for x, y in zip(a, b, strict=True)))
