"""Runs that call more layers than the run on the dummy input: those that only training calls, or other data.

A plan is made for the wider run, and tried on the run on the dummy input too.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from speedup.build import Parts
from speedup.commit import Transaction
from speedup.graph import Graph
from speedup.node import Value
from speedup.registry import Registry
from speedup.rounding import difference
from speedup.trace.outputs import Returned
from speedup.trace.quietly import run_quietly
from speedup.verification import Inputs

log = logging.getLogger("speedup")


class Wider:
    """One such run.

    Attributes:
        first: the run on the dummy input.
        graph: the wider one.
        label: what it is, in messages.
    """

    label = ""

    def __init__(self, first: Graph, graph: Graph) -> None:
        self.first, self.graph = first, graph

    def entered(self) -> contextlib.AbstractContextManager[Any]:
        """Inside of it every run of the model is one like this."""
        raise NotImplementedError

    def effects(self) -> Sequence[float]:
        """How far last digits move the outputs of the run on the dummy input, see ``Graph``."""
        return self.graph.effects

    def narrow(self, effects: Sequence[float]) -> None:
        """From now on the answers of the graph are those of the run on the dummy input."""
        self.graph.reference, self.graph.plain, self.graph.effects = self.first.reference, self.first.plain, effects

    def holds(self, model: nn.Module, inputs: Inputs, rules: Registry, parts: Parts, drop: bool) -> bool:
        """Whether the small model is right on the dummy input too; if so, the graph is narrowed.

        Args:
            drop: whether its answers may be others.
        """
        transaction = Transaction(model, parts)
        transaction.apply()
        deferred = parts.deferred
        try:
            deferred.empty()
            holds = self._is_right(run_quietly(model, inputs, rules, deferred), drop)
            if not holds and deferred:  # something may have read what waited
                deferred.fill_all()
                holds = self._is_right(run_quietly(model, inputs, rules, deferred), drop)
        finally:
            transaction.undo()
        if holds:
            self.narrow(self.effects())
        return holds

    def _is_right(self, again: Returned | Exception, drop: bool) -> bool:
        """Whether these are the answers of the run on the dummy input, or any where they may be others."""
        if isinstance(again, Exception):
            log.debug("with %s, the run on the dummy input fails: %r", self.label, again)
            return False
        first = self.first
        return drop or difference(first.reference, again.tensors, 0.0, first.coarsest, self.effects()) is None


def given_values(graph: Graph, other: Graph) -> dict[Value, Value]:
    """Which value of another run each one is that a run begins with: inputs, and tensors that the model holds."""
    own, others = _held_by(graph), _held_by(other)
    same = dict(zip(graph.inputs, other.inputs, strict=True))
    return same | {v: others[key] for key, v in own.items() if key in others}


def _held_by(graph: Graph) -> dict[tuple[tuple[str, ...], int], Value]:
    """The tensors that the model holds, by their names, and their number among those of one attribute (a list)."""
    counts: Counter[tuple[str, ...]] = Counter()
    found = {}
    for value in graph.values:
        if value.tensor is not None:
            found[value.names, counts[value.names]] = value
            counts[value.names] += 1
    return found
