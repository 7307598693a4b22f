"""Modules that run in parts which rules know.

Some modules do in one fused call, or in code that is full of sizes, what could be said in plain calls. For these a
rule gives a forward that computes the same in such calls. Whenever the model is traced, the module is of a subclass
with that forward; afterwards only a module that became smaller stays of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from speedup import walk
from speedup.errors import RuleError, SpeedupError
from speedup.node import Node
from speedup.overlay import Overlay, overlaid, plain, plain_class
from speedup.rule import Rule

if TYPE_CHECKING:
    from speedup.registry import Registry


class Expanded(Overlay):
    """The base of the forwards that ``Expansion.forwards`` names. Only ``forward`` and what it calls stands in them."""


@dataclass(frozen=True)
class Call:
    """A call inside an expanded module, with the shapes that its operands and outputs have in the small model."""

    node: Node
    shapes: tuple[tuple[int, ...] | None, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing became smaller."""
        return all(v is None or v.shape == s for v, s in zip(self.node.values, self.shapes, strict=True))


class Expansion(Rule):
    """A rule for modules that are seen from inside.

    Attributes:
        forwards: module types, and subclasses of ``Expanded`` with a forward that computes the same in calls that other
            rules know. It takes its sizes from attributes of the module.
    """

    forwards: Mapping[type[nn.Module], type[Expanded]] = {}

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.modules = tuple(self.forwards)
        self.makes = tuple(dict.fromkeys(self.forwards.values()))

    def forward_for(self, kind: type[nn.Module]) -> type[Expanded]:
        """The forward for ``kind``, a module type that is claimed."""
        return next(self.forwards[base] for base in kind.__mro__ if base in self.forwards)

    def settle(self, module: nn.Module, path: str, calls: Sequence[Call]) -> bool:
        """Set the sizes of the small module, which has its new tensors already (override).

        Args:
            path: of the module.
            calls: what runs inside the module, its children included.

        Returns:
            whether the module needs the expanded forward; if not, it stays of its own class.
        """
        return True


def expand(model: nn.Module, registry: Registry) -> dict[str, Expansion]:
    """Give every module that an ``Expansion`` claims the class with its forward.

    Returns:
        the rules by path.
    """
    found: dict[str, Expansion] = {}
    kinds = set(map(type, walk.modules(model)))
    if not any(isinstance(registry.for_base(plain(kind)), Expansion) for kind in kinds):
        return found
    for path, module in walk.named_modules(model):
        rule = registry.for_base(plain_class(module)) if "forward" not in vars(module) else None
        if isinstance(rule, Expansion):
            found[path] = rule
            if not isinstance(module, Expanded):
                module.__class__ = _expanded(rule, module)
    return found


def _expanded(rule: Expansion, module: nn.Module) -> Any:
    """The class of a module with the forward of a rule: over its own, or under what a subclass does before and after
    ``super().forward(...)``."""
    kind = plain_class(module)
    base = next(b for b in kind.__mro__ if b in rule.forwards)
    own = getattr(kind, "forward", None) is getattr(base, "forward", None)
    return overlaid(rule.forward_for(kind), type(module), None if own else base)


def settle(rule: Expansion, path: str, module: nn.Module, calls: Sequence[Call]) -> None:
    """Make the new contents of a module one of the expanded class, if it needs that.

    Raises:
        RuleError: the rule raised.
    """
    try:
        needed = rule.settle(module, path, calls)
    except SpeedupError:
        raise
    except Exception as error:
        raise RuleError(f"{rule.label} raised in settle at {path or 'the model'}: {error!r}") from error
    if needed:
        module.__class__ = _expanded(rule, module)
