"""What a run is told instead of what its data say: which answers Python gets, and what calls find that look for places.

Code may call a layer only where there is something for it (the experts of a mixture): it asks for a truth value, or
goes through the places of what is not 0 (``Rule.seeks``). A run that is told that all is there calls every layer;
others are told that only some of it is, and show what is left out then (see ``speedup.detours``).

How much is computed may hang on how many places there are: the head of a detector runs once for every box that was
found. What such runs are made for, a few show as well as all (``few``).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

_TOLD: ContextVar[Told | None] = ContextVar("what runs are told", default=None)


@dataclass(frozen=True)
class Every:
    """Of things that are counted from 0, every ``step``-th one from ``start`` on."""

    step: int
    start: int

    def __contains__(self, number: int) -> bool:
        return number % self.step == self.start


class Asked(NamedTuple):
    """A question of Python for a truth value, or a call that looks for places.

    Attributes:
        kind: ``question`` or ``call``.
        number: how many of this kind there were before in the forward of the module.
        scope: the module.
    """

    kind: str
    number: int
    scope: str


ALL, NONE = Every(1, 0), Every(1, 1)
SOME = 4  # places that are found, where it is told that there are a few


@dataclass(frozen=True)
class Told:
    """What one run is told. Questions and calls are counted in the forward of each module.

    Attributes:
        answer: to the questions of Python, and the other one to those that are not among ``questions``; None for what
            the data say.
        calls: which of the calls that look for places find any.
        places: which places they find: of all if ``everything``, else of those that the data say.
        modules: those in which questions and calls are left out; None for all.
        masks: whether it is told too what masks choose, see ``Rule.seek``.
        least: how many places a call finds at least, the first ones, whatever the data say.
        most: how many it finds at most, the first ones; 0 for all.
    """

    answer: bool | None = None
    everything: bool = False
    questions: Every = ALL
    calls: Every = ALL
    places: Every = ALL
    modules: frozenset[str] | None = None
    masks: bool = False
    least: int = 0
    most: int = 0

    def leaves_out(self, asked: Asked) -> bool:
        """Whether a question is answered with the other answer, or a call finds nothing."""
        told = self.questions if asked.kind == "question" else self.calls
        return asked.number not in told and (self.modules is None or asked.scope in self.modules)

    def answered(self, asked: Asked, real: bool) -> bool:
        """The answer to a question."""
        return (real if self.answer is None else self.answer) != self.leaves_out(asked)

    def found(self, asked: Asked, sought: torch.Tensor) -> torch.Tensor:
        """What a call is given to look through."""
        if self.leaves_out(asked):
            return torch.zeros_like(sought)
        if not self.everything:
            if self.most:
                number = (sought != 0).flatten().cumsum(0).reshape(sought.shape)
                sought = torch.where(number > self.most, torch.zeros_like(sought), sought)
            if not self.least or sought.count_nonzero() >= self.least:
                return sought
            first = torch.arange(sought.numel(), device=sought.device).reshape(sought.shape) < self.least
            return torch.where(first, torch.ones_like(sought), sought)
        places = torch.arange(sought.numel(), device=sought.device) % self.places.step == self.places.start
        return places.reshape(sought.shape).to(sought.dtype)


def few(what: Told) -> Told:
    """The same, but every call that finds places finds few; where it is told that all is there, there is no less."""
    return what if what.everything else replace(what, least=SOME, most=SOME)


@contextlib.contextmanager
def told(what: Told | None) -> Iterator[None]:
    """Inside of it every run that is traced is told this, or goes by its data."""
    before = _TOLD.set(what)
    try:
        yield
    finally:
        _TOLD.reset(before)


def now_told() -> Told | None:
    """What runs are told here; None where they go by their data."""
    return _TOLD.get()


class Telling:
    """What one run is told; its questions and calls that look for places are counted in the forward of each module.

    Attributes:
        told: what it is told; None where it goes by its data.
        said: what was left out, where that makes a difference.

    Args:
        scope: the modules that the run is in, the innermost last.
    """

    def __init__(self, scope: Sequence[str]) -> None:
        self.told = now_told()
        self.said: dict[Asked, bool] = {}
        self._scope = scope
        self._counts: Counter[tuple[str, str]] = Counter()

    def asks(self, kind: str) -> Asked:
        """One more of this kind in the forward of this module."""
        scope = self._scope[-1]
        self._counts[kind, scope] += 1
        return Asked(kind, self._counts[kind, scope] - 1, scope)

    def answer(self, real: bool) -> bool:
        """The answer to one more question."""
        if self.told is None:
            return real
        asked = self.asks("question")
        self.said[asked] = self.told.leaves_out(asked)
        return self.told.answered(asked, real)

    def most(self, kind: str) -> int:
        """The most of this kind in one module."""
        return max((n for (what, _), n in self._counts.items() if what == kind), default=0)

    def modules(self, kind: str) -> tuple[str, ...]:
        """The modules with some of this kind."""
        return tuple(scope for what, scope in self._counts if what == kind)
