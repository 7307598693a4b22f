"""What a module is at one moment, to be put back."""

from __future__ import annotations

import operator
from typing import Any

from torch import nn

_CONTAINERS = (list, dict, set)
# What torch keeps in every module, and the hooks among it, of which most modules have none.
INTERNAL = frozenset(vars(nn.Module()))
HOOKS = frozenset(name for name in INTERNAL if "_hooks" in name)


class Attributes:
    """The attributes and the class of one module, to be put back.

    Attributes:
        saved: all of them by name.
        contents: copies of the containers among them, but for hooks where there were none.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kind = type(module)
        self.saved = dict(module.__dict__)
        held = [(k, v) for k, v in self.saved.items() if (v if k in HOOKS else isinstance(v, _CONTAINERS))]
        self.contents: dict[str, Any] = {k: v.copy() for k, v in held}

    def as_it_was(self) -> dict[str, Any]:
        """All attributes as they were, hooks aside: containers as copies with what was in them."""
        return {**self.saved, **self.contents}

    def restore(self) -> None:
        if type(self.module) is not self.kind:
            self.module.__class__ = self.kind
        now = self.module.__dict__
        if now.keys() - self.saved.keys():
            for name in [n for n in now if n not in self.saved]:
                del now[name]
        now.update(self.saved)
        for hooks in filter(None, map(self.saved.get, HOOKS.difference(self.contents))):
            hooks.clear()
        for name, content in self.contents.items():
            value = self.saved[name]
            if isinstance(value, list):
                value[:] = content
            elif (value or content) and not identical(value, content):
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


def identical(a: Any, b: Any) -> bool:
    """Whether two dicts hold the same objects under the same keys, in the same order; equality of other containers."""
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(operator.is_, a, b)) and all(map(operator.is_, a.values(), b.values()))
    return bool(a == b)
