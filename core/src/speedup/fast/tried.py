"""Steps that are put in and tried: those with which the model answers otherwise are taken back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from speedup.commit import Transaction
from speedup.elsewhere import Elsewhere
from speedup.fast.told import Fused
from speedup.graph import Graph
from speedup.registry import Registry
from speedup.resized import other_ways
from speedup.rounding import difference
from speedup.trace import sandbox
from speedup.trace.sandbox import unwarned
from speedup.verification import Inputs, run


@dataclass(frozen=True, eq=False)
class Step:
    """New modules by path, and what is done with them: what the modules of ``done`` did is done by others."""

    done: Sequence[Fused]
    modules: Mapping[str, nn.Module]
    kind: Literal["fused", "plain", "fixed"] = "fused"


@dataclass(frozen=True, eq=False)
class Case:
    """What the model has to answer to inputs: the dummy input, and those of other sizes at which code goes another way.

    Attributes:
        effects: as in ``fused``.
    """

    inputs: Inputs
    wanted: Sequence[torch.Tensor]
    effects: Sequence[float] = ()


@unwarned()
def elsewhere_of(model: nn.Module, inputs: Inputs, graph: Graph, rules: Registry) -> list[Case]:
    """What the model answers where code goes another way. What it answers with an error there may be anything else."""
    with sandbox(model):
        ways = other_ways(Elsewhere(model, inputs, graph, rules))
    answers = run(model, {str(number): way.inputs for number, way in enumerate(ways)}).values()
    both = zip(ways, answers, strict=True)
    return [Case(way.inputs, answer.tensors) for way, answer in both if not isinstance(answer, Exception)]


@dataclass(eq=False)
class Trial:
    """Putting steps in, and taking back those with which the model answers otherwise."""

    model: nn.Module
    cases: Sequence[Case]
    transaction: Transaction
    coarsest: torch.dtype | None
    refused: dict[str, str]

    def taken(self, steps: Sequence[Step]) -> list[Step]:
        """Those of the steps that are in the model now."""
        before = self.transaction.mark()
        self.transaction.put({path: made for step in steps for path, made in step.modules.items()})
        why = self._differs()
        if why is None:
            return list(steps)
        self.transaction.undo(before)
        if len(steps) == 1:
            self.refused.update({each.module: f"the model needs it: {why}" for each in steps[0].done})
            return []
        half = len(steps) // 2
        return self.taken(steps[:half]) + self.taken(steps[half:])

    @unwarned()
    def _differs(self) -> str | None:
        for case in self.cases:
            try:
                answers = answers_of(self.model, case.inputs)
            except Exception as error:  # whatever the code of the model raises
                return f"without it, it raises {error!r}"
            why = difference(case.wanted, answers, coarsest=self.coarsest, effects=case.effects)
            if why is not None:
                return why if case is self.cases[0] else f"at another size of the input, {why}"
        return None


def answers_of(model: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    result = run(model, {"": inputs})[""]
    if isinstance(result, Exception):
        raise result
    return result.tensors
