"""Runs of the small model with what one round of planning has made, each compared with the plan."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import nn

from speedup.build import Parts
from speedup.check import AnswersError, Run, as_planned, check
from speedup.commit import Transaction
from speedup.conditioning import excused
from speedup.decisions import Decisions
from speedup.errors import CheckError
from speedup.graph import Graph
from speedup.keep import KeepSets
from speedup.mismatch import Mismatch
from speedup.registry import Registry
from speedup.repair.ahead import Ahead
from speedup.repair.parts import Repairs
from speedup.steps import Steps
from speedup.trace import trace
from speedup.trace.replay import replay
from speedup.verification import Inputs

log = logging.getLogger("speedup")


class Tries:
    """Puts everything in, runs and compares, and takes everything out; once for each call.

    Where rounding tips decisions, a run is made again with all results of the masked model at hand, to tell what is
    tipped from what is wrong. They are found once, and later runs have them from the start.

    Attributes:
        run: the last run of the small model that came to its end.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, graph: Graph, keeps: KeepSets, rules: Registry, parts: Parts
    ) -> None:
        self.graph, self.keeps = graph, keeps
        self._model, self._inputs, self._rules, self._parts = model, inputs, rules, parts
        self.run: Run | None = None
        self._wanted: list[list[torch.Tensor]] | None = None

    def __call__(self, repairs: Repairs) -> Mismatch | None:
        """Where the small model with these repairs differs from the plan, None when nowhere.

        Raises:
            CheckError: the outputs differ.
        """
        parts = replace(self._parts, repairs=repairs)
        error: CheckError | None = None
        if self._wanted is None:
            try:
                found = self._attempt(parts)
                if found is None or not found.tipped:
                    return found
            except CheckError as differs:
                error = differs
        decisions = Decisions(self.graph, self.keeps, self._results())
        try:
            found = self._attempt(parts, decisions)
        except CheckError as still:
            return self._explained(parts, decisions, still, error or still)
        for node in decisions.taken:
            log.debug("rounding tips %s (%s)", node.label, node.where)
        return found

    def ahead(self, repairs: Repairs) -> list[Mismatch]:
        """Calls that hold stale sizes in the small model with these repairs, as far as one run tells."""
        transaction = Transaction(self._model, replace(self._parts, repairs=repairs))
        transaction.apply()
        deferred, mended = self._parts.deferred, Ahead(self.graph, self.keeps)
        try:
            deferred.empty()
            made = self._model, self._inputs, self._rules, self.graph, self.keeps.shape, transaction.substitutes
            replay(*made, deferred, mended)
        finally:
            transaction.undo()
        return mended.found

    def _attempt(self, parts: Parts, decisions: Decisions | None = None) -> Mismatch | None:
        transaction = Transaction(self._model, parts)
        transaction.apply()
        runs: list[Run] = []
        made = self._model, self._inputs, self.graph, self.keeps, self._rules, transaction.substitutes
        deferred = parts.deferred
        try:
            if decisions is not None:  # they have all activations at hand
                deferred.fill_all()
                return check(*made, decisions, runs)
            deferred.empty()
            if (found := as_planned(*made, deferred)) is not None:
                runs = [found]
                return None
            deferred.empty()
            try:
                return check(*made, None, runs, deferred)
            except CheckError as error:
                if not deferred or (isinstance(error, AnswersError) and not _may_hide_nan(error.again)):
                    raise
            deferred.fill_all()  # something may have read what waited
            return check(*made, None, runs)
        finally:
            transaction.undo()
            self.run = runs[0] if runs else self.run

    def _results(self) -> list[list[torch.Tensor]]:
        """What every call of the masked model gives."""
        if self._wanted is None:
            results: list[list[torch.Tensor]] = []
            trace(
                self._model,
                *self._inputs,
                self._rules,
                log=results,
                answers=self.graph.answers,
                masking=self.graph.masking,
                compared=self.graph,
            )
            self._wanted = results
        return self._wanted

    def _explained(self, parts: Parts, decisions: Decisions, still: CheckError, first: CheckError) -> Mismatch | None:
        """What becomes of outputs that differ though no decision is tipped: rounding may grow that far.

        Raises:
            CheckError: it does not.
        """
        where = decisions.first_difference()
        wrong = f"the small model does not give the same answers, nothing was changed: {first}. "
        wrong += decisions.first_without_number()
        if not isinstance(still, AnswersError):
            raise CheckError(wrong + where) from still
        decisions.got = None  # copies of all activations
        steps = Steps(self.graph, self.keeps, self._results())
        try:
            right = self._attempt(parts, steps) is None
        except CheckError:
            right = False
        if not right or steps.problem:
            raise CheckError(wrong + (steps.problem or where)) from still
        return excused(self._model, self._inputs, self.graph, self.keeps, self._rules, still, decisions.largest, wrong)


def _may_hide_nan(graph: Graph) -> bool:
    """Whether a run gives NaN, or what may be made of it: indices of the largest entries, say."""
    return any(not t.is_floating_point() or bool(t.isnan().any()) for t in graph.reference)
