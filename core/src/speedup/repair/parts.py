"""What was repaired, by module: a part of the plan like the smaller tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from speedup.errors import SpeedupError
from speedup.repair.rewrite import Edit, rewritten


@dataclass(frozen=True)
class Repair:
    """The repairs of one module.

    Attributes:
        attributes: new values.
        before: the old values.
        edits: of the methods, with the op and the place of each call.
    """

    attributes: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)
    edits: tuple[tuple[Edit, str, str], ...] = ()

    def and_then(self, other: Repair) -> Repair:
        attributes, before = {**self.attributes, **other.attributes}, {**other.before, **self.before}
        return Repair(attributes, before, (*self.edits, *other.edits))

    def apply(self, module: nn.Module) -> None:
        """Change the module. Its class changes when there are edits.

        Raises:
            SpeedupError: the source of a method is not at hand.
        """
        cls = rewritten(type(module), tuple(e for e, _, _ in self.edits)) if self.edits else type(module)
        module.__dict__.update(self.attributes)
        if cls is not type(module):
            try:
                module.__class__ = cls
            except TypeError as error:
                raise SpeedupError(f"a {cls.__name__} cannot be rewritten: {error}") from error

    def describe(self) -> list[tuple[str, str]]:
        """What is repaired, and where."""
        lines = [(f"{name}: {self.before.get(name)} -> {value}", "") for name, value in self.attributes.items()]
        return lines + [(f"{op}: {edit}", where) for edit, op, where in self.edits]


Repairs = dict[str, Repair]


def joined(first: Repairs, second: Repairs) -> Repairs:
    out = dict(first)
    for path, repair in second.items():
        out[path] = out[path].and_then(repair) if path in out else repair
    return out
