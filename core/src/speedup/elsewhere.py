"""Runs of the masked model at other sizes of its input.

What a plan says has to hold at every size. Three ask for it: whether constants follow the size (``sizes``), whether
data movement moves other entries there (``moved``), whether repairs are right there (``repair.steady``). The model is
run once for each size that any of them asks for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from speedup.graph import Graph
from speedup.node import Node, Value
from speedup.registry import Registry
from speedup.report.counts import macs_of
from speedup.trace.calls import may_seek
from speedup.trace.glance import Glance, UnclearError, glance
from speedup.trace.meta import all_on_meta, to_meta
from speedup.trace.run import trace
from speedup.trace.sandbox import undisturbed, unwarned
from speedup.trace.shapes import Shapes
from speedup.trace.told import Told, few, now_told, told
from speedup.vary import Case, Inputs, Takes, at_other_sizes

log = logging.getLogger("speedup")


# Multiply-accumulates times bytes of a number, per call, from which arithmetic takes longer than calls without
# contents: so it is measured on Swin-B and a UNet of diffusers, which are above, and not on Swin-T and DaViT-T, which
# are below. (Of some just above, CrossViT and CaiT, it takes a tenth longer.)
_HEAVY = 10e6


@dataclass(frozen=True)
class Contentless:
    """Runs on the meta device, where tensors have shapes alone.

    Attributes:
        runs: one for each size that the model takes, with inputs that are there too.
        shapes: what their calls gave, for further runs there.
    """

    runs: Sequence[tuple[Case, Graph]]
    shapes: Shapes


class Elsewhere:
    """Runs of one model at other sizes, made when they are first asked for. Use inside ``sandbox``.

    Args:
        graph: the run on the dummy input.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, graph: Graph, rules: Registry) -> None:
        self.model, self.inputs, self.graph, self.rules = model, inputs, graph, rules
        self._runs: dict[tuple[str, bool], tuple[Graph | None, bool]] = {}
        self._contentless: Contentless | None = None
        self._needs_contents = False
        self._needs_recording = False
        self._stretched = True

    def at_sizes(self, takes: Takes, stretched: bool = True) -> None:
        """Go through other sizes, those that are known first; see ``vary.at_other_sizes``."""
        self._stretched = self._stretched and stretched
        at_other_sizes(self.inputs, takes, self._stretched)

    def run(self, case: Case, claimed: bool = False, forced: bool = True) -> Graph | None:
        """The run on one case; None where the model does not take it as it takes the dummy input.

        Args:
            claimed: whether the rules are asked about its calls, which is needed to infer from it.
            forced: whether Python is told what it was told on the dummy input, whatever the data say.
        """
        answers = self.graph.answers if forced and self.graph.branch is None else None
        key = case.name, forced and (bool(answers) or self._told() != (None,))
        found, is_claimed = self._runs.get(key, (None, False))
        if key not in self._runs or (claimed and found is not None and not is_claimed):
            found = self._run(case, claimed, answers, self._told() if forced else (None,))
            self._runs[key] = found, claimed
        return found

    def run_until(self, case: Case, until: Callable[[Node], bool]) -> Graph | None:
        """As ``run``, with rules, of which no more is recorded from a call on; all of it where that cannot be."""
        answers = self.graph.answers if self.graph.branch is None else None
        found = self._run(case, True, answers, self._told(), until)
        # What comes behind the last call is told nothing: it may fail, or give something else, for that reason.
        return found if found is not None or not case.samples else self.run(case, claimed=True)

    def _run(
        self,
        case: Case,
        claimed: bool,
        answers: Sequence[bool] | None,
        each: Sequence[Told | None],
        until: Callable[[Node], bool] | None = None,
    ) -> Graph | None:
        graph, masking = self.graph, self.graph.masking
        assert masking is not None  # it is the graph of a run
        for what in each:
            try:
                with told(what), undisturbed(self.model), masking.sparing(), unwarned():
                    torch.manual_seed(0)  # as in ``verification.run``
                    made = trace(
                        self.model,
                        *case.inputs,
                        self.rules,
                        answers=answers,
                        masking=masking,
                        compared=None if claimed else graph,
                        until=until,
                    )
            except Exception as error:  # whatever a model says to a size that it does not take
                log.debug("%s: %r", case.name, error)
                continue
            return made if self._is_comparable(case, made.reference) else None
        return None

    def _told(self) -> Sequence[Told | None]:
        """What runs are told, the first of them that the model takes."""
        if now_told() is not None or not self.graph.few_will_do:
            return (now_told(),)
        return few(Told(masks=self.graph.extent.masks)), None

    def _is_comparable(self, case: Case, outputs: Sequence[torch.Tensor]) -> bool:
        return case.comparable(outputs, self.graph.reference, self._sized)

    @cached_property
    def _sized(self) -> Sequence[bool]:
        """Of what the model returns, whether its sizes have nothing to do with how many places data are found at."""
        graph = self.graph
        found: set[Value] = set()
        for node in graph.nodes if graph.seeking is not None else ():
            seeks = may_seek(node.rule) and not graph.from_input.isdisjoint(node.tensors)
            if seeks or not found.isdisjoint(node.tensors):
                found.update(node.outputs)
        return [v not in found for v in graph.outputs[: len(graph.reference)]]

    def glance(self, case: Case) -> Glance | Graph | None:
        """Which lines make calls in the run on one case, or the run itself where more than a glance is needed, or where
        it is known already; None as for ``run``."""
        known, _ = self._runs.get((case.name, False), (None, False))
        if known is not None or self._needs_recording:
            return self.run(case, claimed=True)
        try:
            with unwarned():
                seen = glance(self.model, case.inputs, self.rules, self.graph)
        except UnclearError:
            self._needs_recording = True
            return self.run(case, claimed=True)
        except Exception as error:
            log.debug("%s: %r", case.name, error)
            return None
        return seen if self._is_comparable(case, seen.reference) else None

    def contentless(self) -> Contentless | None:
        """The runs at all other sizes without contents; None where the model needs these."""
        if self._contentless is None and not self._needs_contents:
            try:
                self._contentless = self._without_contents()
            except Exception as error:
                log.debug("without contents: %r", error)
                self._needs_contents = True
        return self._contentless

    @cached_property
    def is_heavy(self) -> bool:
        """Whether a run without contents takes less time than one with them."""
        if any(n.rule is not None and n.rule.stepwise for n in self.graph.nodes):
            return False
        width = max((t.dtype.itemsize for t in self.graph.reference), default=4)
        return macs_of(self.graph) * width > _HEAVY * len(self.graph.nodes)

    def sketch(self, case: Case) -> Glance | Graph | None:
        """The calls at one size, without contents where that is faster; None where the model does not take it."""
        contentless = self.contentless() if self.is_heavy else None
        if contentless is None:
            return self.glance(case)
        try:
            with all_on_meta(self.model, always=True):
                return self._without(replace(case, inputs=to_meta(case.inputs)), contentless.shapes)
        except Exception as error:
            log.debug("%s needs contents: %r", case.name, error)
            return self.glance(case)

    def _without(self, case: Case, shapes: Shapes) -> Graph | None:
        try:
            with unwarned():
                made = trace(self.model, *case.inputs, self.rules, compared=self.graph, shapes=shapes)
        except Exception as error:
            if isinstance(error, NotImplementedError) or "meta" in str(error):
                raise
            log.debug("without contents, %s: %r", case.name, error)
            return None
        return made if self._is_comparable(case, made.reference) else None

    def _without_contents(self) -> Contentless:
        found: list[tuple[Case, Graph]] = []
        shapes = Shapes()

        def takes(case: Case) -> bool:
            made = self._without(case, shapes)
            if made is not None:
                found.append((case, made))
            return made is not None

        with all_on_meta(self.model, always=True):
            at_other_sizes(to_meta(self.inputs), takes)
        return Contentless(found, shapes)
