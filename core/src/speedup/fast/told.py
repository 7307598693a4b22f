"""What fusing did, for reports."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fused:
    """A module that went: into which others, none where it changed nothing."""

    module: str
    into: tuple[str, ...] = ()


@dataclass(frozen=True)
class NotFused:
    """A module (or the call of a function) that scales and shifts and stays, and why."""

    module: str
    why: str


@dataclass(eq=False)
class Fusing:
    """What became of the layers that scale and shift, and of those that give the same for every input.

    Attributes:
        plain: modules that are plainer ones now, and those behind them that do the rest.
        fixed: modules that compute nothing any more: what they give is known, or nobody reads it.
    """

    fused: list[Fused] = field(default_factory=list)
    plain: list[Fused] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)
    stays: list[NotFused] = field(default_factory=list)
