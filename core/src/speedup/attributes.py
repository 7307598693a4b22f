"""What a module is at one moment, to be put back."""

from __future__ import annotations

from typing import Any

from torch import nn


class Attributes:
    """The attributes and the class of one module, to be put back."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kind = type(module)
        self.saved = dict(module.__dict__)
        self.contents: dict[str, Any] = {k: v.copy() for k, v in self.saved.items() if isinstance(v, list | dict | set)}

    def restore(self) -> None:
        if type(self.module) is not self.kind:
            self.module.__class__ = self.kind
        now = self.module.__dict__
        for name in [n for n in now if n not in self.saved]:
            del now[name]
        for name, value in self.saved.items():
            now[name] = value
            if name not in self.contents:
                continue
            content = self.contents[name]
            if isinstance(value, list):
                value[:] = content
            elif not _identical(value, content):
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


def _identical(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return list(a) == list(b) and all(a[k] is b[k] for k in b)
    return bool(a == b)
