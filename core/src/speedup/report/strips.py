"""Strips: what becomes of every index along an axis of a tensor, one letter for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from speedup.arrays import Bools, all_of, along, nothing
from speedup.keep import KeepSets
from speedup.kinds import Kind
from speedup.node import Value

if TYPE_CHECKING:
    from speedup.report.data import Report

KEPT, HELD, CARRIER = "k", "h", "c"
MASKED, FOLLOWS, UNUSED, ZERO, FOLDED = "m", "r", "u", "z", "f"
"""What stays: kept; held, though it could go; a carrier. What goes: masked; with its layer; since nobody reads it;
a constant 0; something else that is known, and folded into the readers."""


class Strips:
    """The strips of one plan.

    Attributes:
        patterns: every string of letters once.
        whys: every sentence about an index that is held once.
    """

    def __init__(self, report: Report, keeps: KeepSets) -> None:
        self.patterns: list[str] = []
        self.whys: list[str] = []
        self._keeps = keeps
        self._known: dict[str, int] = {}
        self._said: dict[str, int] = {}
        self._held: dict[tuple[str, int], list[tuple[list[int], str, bool]]] = {}
        for kept in report.stays:
            text = f"{kept.why} ({kept.call})" if kept.call else kept.why
            self._held.setdefault((kept.name, kept.axis), []).append((kept.indices, text, kept.kind is Kind.CARRIER))

    def of(self, value: Value) -> list[list[Any]]:
        """Per axis along which something is to be said: the axis, the number of its pattern, then why indices are held.

        The last is a list of pairs: the number of a sentence, and indices.
        """
        found = []
        for axis, size in enumerate(value.shape):
            letters, held = self._weight(value, axis) if value.is_source else self._activation(value, axis)
            if size > 1 and set(letters) != {KEPT}:
                found.append([axis, self._pattern("".join(letters)), [[self._why(w), i] for w, i in held.items()]])
        return found

    def _weight(self, value: Value, axis: int) -> tuple[list[str], dict[str, list[int]]]:
        size = value.shape[axis]
        kept = _line(self._keeps.sets[value], axis, size) if value.is_read else np.ones(size, dtype=bool)
        given = self._keeps.facts.masked.get(value)
        masked = _whole(given, axis, size) if given is not None else np.zeros(size, dtype=bool)
        letters = [KEPT if k else MASKED if m else FOLLOWS for k, m in zip(kept, masked, strict=True)]
        held: dict[str, list[int]] = {}
        for indices, why, carries in self._held.get((value.names[0], axis), []):
            for i in indices:
                letters[i] = CARRIER if carries else HELD
            held.setdefault(why, []).extend(indices)
        return letters, held

    def _activation(self, value: Value, axis: int) -> tuple[list[str], dict[str, list[int]]]:
        size, keeps = value.shape[axis], self._keeps
        facts = keeps.facts
        kept = _line(keeps.sets[value], axis, size)
        if value.tensor is not None or not (keeps.sets[value].shape[axis] > 1 or _varies(keeps, value, axis)):
            return [KEPT] * size, {}
        unused, known = (_whole(m, axis, size) for m in (facts.unused(value), facts.known(value)))
        zero = _whole(facts.zero(value), axis, size)
        gone = np.where(unused, UNUSED, np.where(zero, ZERO, FOLDED))
        letters = [str(x) for x in np.where(kept, np.where(unused | known, HELD, KEPT), gone)]
        held: dict[str, list[int]] = {}
        seen = np.zeros(size, dtype=bool)
        for event in keeps.events_of(value):
            added = _line(event.added, axis, size) & ~seen
            seen |= added
            why = event.why + (f" ({event.node.label})" if event.node is not None else "")
            for i in (int(i) for i in np.flatnonzero(added)):
                if letters[i] == HELD:
                    letters[i] = CARRIER if event.kind is Kind.CARRIER else HELD
                    held.setdefault(why, []).append(i)
        return letters, held

    def _pattern(self, letters: str) -> int:
        if letters not in self._known:
            self._known[letters] = len(self.patterns)
            self.patterns.append(letters)
        return self._known[letters]

    def _why(self, text: str) -> int:
        if text not in self._said:
            self._said[text] = len(self.whys)
            self.whys.append(text)
        return self._said[text]


def _line(mask: Bools, axis: int, size: int) -> Bools:
    """Which indices of an axis have any entry."""
    return np.broadcast_to(along(mask, axis), (size,))


def _whole(mask: Bools, axis: int, size: int) -> Bools:
    """Of which indices of an axis all entries are meant."""
    line = all_of(mask, tuple(a for a in range(mask.ndim) if a != axis)).reshape(-1)
    return np.broadcast_to(line, (size,))


def _varies(keeps: KeepSets, value: Value, axis: int) -> bool:
    """Whether what is known of a value differs along an axis."""
    facts = keeps.facts
    return any(m.shape[axis] > 1 for m in (facts.unused(value), facts.known(value) | nothing(value.ndim)))
