"""What a module is at one moment, to be put back."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Collection, Iterable
from itertools import chain, filterfalse
from typing import Any

from torch import nn

from speedup.trees import PLAIN

_CONTAINERS = (list, dict, set)
CONTAINERS = frozenset((*_CONTAINERS, OrderedDict))
# What torch keeps in every module, and the hooks among it, of which most modules have none.
INTERNAL = frozenset(vars(nn.Module()))
HOOKS = frozenset(name for name in INTERNAL if "_hooks" in name)
_internal_containers = operator.itemgetter(*(n for n, v in vars(nn.Module()).items() if isinstance(v, _CONTAINERS)))


class Attributes:
    """The attributes and the class of one module, to be put back.

    Attributes:
        saved: all of them by name.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kind = type(module)
        self.saved = module.__dict__.copy()
        self._empty, self._filled = _by_contents(_containers(self.saved.values()))

    def as_it_was(self, but: Collection[str] = ()) -> dict[str, Any]:
        """All attributes as they were, but those of some names: containers as copies with what was in them."""
        filled = {id(v): content for v, content in self._filled}
        return {
            n: v
            if (kind := type(v)) in PLAIN or not (kind in CONTAINERS or isinstance(v, _CONTAINERS))
            else filled.get(id(v)) or _emptied(v)
            for n, v in self.saved.items()
            if n not in but
        }

    def leave_out(self, holder: str, name: str) -> None:
        """Do not put back what the dict of one name had under another."""
        for value, content in self._filled:
            if value is self.saved[holder] and isinstance(content, dict):
                content.pop(name, None)

    def restore(self) -> None:
        _put_back(self.module, self.kind, self.saved)
        _refill(self._empty, self._filled)


class Snapshot:
    """The attributes and the classes of many modules, to be put back together: as ``Attributes`` of each.

    Attributes:
        own: what the modules hold beside what torch keeps in every module, and beside numbers, texts and None.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._saved = [(module, type(module), module.__dict__.copy()) for module in modules]
        every = [saved for _, _, saved in self._saved]
        self.own = [
            v for saved in every for n in filterfalse(INTERNAL.__contains__, saved) if type(v := saved[n]) not in PLAIN
        ]
        try:
            internal = list(chain.from_iterable(map(_internal_containers, every)))
        except KeyError:  # a module of TorchScript has not all of them
            internal = [v for saved in every for n, v in saved.items() if n in INTERNAL]
        if not CONTAINERS.issuperset(map(type, internal)):
            internal = _containers(internal)
        self._empty, self._filled = _by_contents(internal + _containers(self.own))
        self._within = _in_a_row([value for value, _ in self._filled])

    def restore(self) -> None:
        for module, kind, saved in self._saved:
            _put_back(module, kind, saved)
        now = _in_a_row([value for value, _ in self._filled])
        if now[0] == self._within[0] and all(map(operator.is_, now[1], self._within[1])):
            _refill(self._empty, ())  # most runs change no contents
        else:
            _refill(self._empty, self._filled)


class Saved(list[Attributes]):
    """Modules as they were before they were changed, in that order, to be put back all together."""

    def note(self, module: nn.Module) -> None:
        """Note a module that is about to be changed."""
        self.append(Attributes(module))

    def undo(self, to: int = 0) -> None:
        """Make them what they were, all of them or those that were noted after the first ``to``."""
        for attributes in reversed(self[to:]):
            attributes.restore()
        del self[to:]


def _containers(values: Iterable[Any]) -> list[Any]:  # in a line, for they are many
    return [v for v in values if (kind := type(v)) in CONTAINERS or (kind not in PLAIN and isinstance(v, _CONTAINERS))]


def _by_contents(held: list[Any]) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """The containers that hold nothing, and the others with copies of what they hold.

    A model has many modules, and a module some 15 containers, of which few hold anything: hooks.
    """
    return list(filterfalse(None, held)), [(v, v.copy()) for v in filter(None, held)]


def _in_a_row(containers: list[Any]) -> tuple[list[int], list[Any]]:
    """How much each holds, and all that they hold: what is the same of containers that are unchanged. To compare the
    hundreds of a model one by one takes several times as long."""
    values = map(dict.values, [held for held in containers if isinstance(held, dict)])
    return list(map(len, containers)), [*chain.from_iterable(containers), *chain.from_iterable(values)]


def _put_back(module: nn.Module, kind: type[nn.Module], saved: dict[str, Any]) -> None:
    if type(module) is not kind:
        module.__class__ = kind
    now = module.__dict__
    now.update(saved)
    if len(now) > len(saved):
        for name in [n for n in now if n not in saved]:
            del now[name]


def _refill(empty: Iterable[Any], filled: Iterable[tuple[Any, Any]]) -> None:
    for value in filter(None, empty):
        value.clear()
    for value, content in filled:
        if isinstance(value, list):
            value[:] = content
        elif type(value) in CONTAINERS or not identical(value, content):  # to look takes longer than to do it
            value.clear()
            value.update(content)


def _emptied(value: Any) -> Any:
    if type(value) in CONTAINERS:  # in no time; those of other classes may want to be made with something
        return type(value)()
    made = value.copy()
    made.clear()
    return made


def identical(a: Any, b: Any) -> bool:
    """Whether two dicts hold the same objects under the same keys, in the same order; equality of other containers."""
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(operator.is_, a, b)) and all(map(operator.is_, a.values(), b.values()))
    return bool(a == b)
