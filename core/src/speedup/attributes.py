"""What a module is at one moment, to be put back."""

from __future__ import annotations

import operator
from collections import OrderedDict
from typing import Any

from torch import nn

from speedup.trees import PLAIN

_CONTAINERS = (list, dict, set)
_EXACTLY = frozenset((*_CONTAINERS, OrderedDict))
# What torch keeps in every module, and the hooks among it, of which most modules have none.
INTERNAL = frozenset(vars(nn.Module()))
HOOKS = frozenset(name for name in INTERNAL if "_hooks" in name)


class Attributes:
    """The attributes and the class of one module, to be put back.

    Attributes:
        saved: all of them by name.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kind = type(module)
        self.saved = module.__dict__.copy()
        # A model has many modules, and a module some 15 containers, of which few hold anything: hooks.
        held = [
            v
            for v in self.saved.values()
            if (kind := type(v)) in _EXACTLY or (kind not in PLAIN and isinstance(v, _CONTAINERS))
        ]
        self._empty = [v for v in held if not v]
        self._filled = [(v, v.copy()) for v in held if v]

    def as_it_was(self) -> dict[str, Any]:
        """All attributes as they were: containers as copies with what was in them."""
        contents = {id(v): _emptied(v) for v in self._empty} | {id(v): content for v, content in self._filled}
        return {name: contents.get(id(value), value) for name, value in self.saved.items()}

    def leave_out(self, holder: str, name: str) -> None:
        """Do not put back what the dict of one name had under another."""
        for value, content in self._filled:
            if value is self.saved[holder] and isinstance(content, dict):
                content.pop(name, None)

    def restore(self) -> None:
        if type(self.module) is not self.kind:
            self.module.__class__ = self.kind
        now = self.module.__dict__
        now.update(self.saved)
        if len(now) > len(self.saved):
            for name in [n for n in now if n not in self.saved]:
                del now[name]
        for value in self._empty:
            if value:
                value.clear()
        for value, content in self._filled:
            if isinstance(value, list):
                value[:] = content
            elif not identical(value, content):
                value.clear()
                value.update(content)


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


def _emptied(value: Any) -> Any:
    if type(value) in _EXACTLY:  # in no time; those of other classes may want to be made with something
        return type(value)()
    made = value.copy()
    made.clear()
    return made


def identical(a: Any, b: Any) -> bool:
    """Whether two dicts hold the same objects under the same keys, in the same order; equality of other containers."""
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(operator.is_, a, b)) and all(map(operator.is_, a.values(), b.values()))
    return bool(a == b)
