"""What must hold of a case."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import nn

import speedup
from tests.graphs.case import Case, count, masked_copy, run


@dataclass
class Result:
    """The small model, its plan, the largest relative difference, parameters before and after."""

    small: nn.Module
    plan: speedup.Plan
    error: float
    parameters: tuple[int, int]

    @property
    def kept(self) -> float:
        return self.parameters[1] / self.parameters[0]


def difference(wanted: list[torch.Tensor], got: list[torch.Tensor]) -> float:
    """The largest difference of two lists of outputs, relative to the largest entry; inf where shapes differ."""
    if [(t.shape, t.dtype) for t in wanted] != [(t.shape, t.dtype) for t in got]:
        return math.inf
    worst = 0.0
    for a, b in zip(wanted, got, strict=True):
        if a.numel():
            if bool(torch.isnan(b).any()) or bool(torch.isinf(b).any()):
                return math.inf
            worst = max(worst, float((a - b).abs().max()) / (float(a.abs().max()) + 1e-3))
    return worst


def _samples(outputs: list[torch.Tensor], given: tuple[torch.Tensor, ...]) -> list[float]:
    """How many samples every output has for one of the input."""
    return [t.shape[0] / given[0].shape[0] if t.ndim else 0.0 for t in outputs]


def check_case(case: Case, tolerance: float = 1e-9) -> Result:
    """Speed the network up and compare it with the masked one on every input.

    Raises:
        AssertionError: they differ, or the small one is larger; the message holds the source.
        speedup.SpeedupError: speedup refused.
    """
    model = case.model()
    reference = masked_copy(model, case.masks)
    before = count(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*masked whole", category=UserWarning)
        plan = speedup.plan(model, case.inputs, case.masks)
    small = plan.apply()
    assert small is model
    worst = 0.0
    as_planned = _samples(run(reference, case.inputs), case.inputs)
    for given in (case.inputs, *case.others):
        wanted = run(reference, given)
        if plan.report.repaired and _samples(wanted, given) != as_planned:
            continue  # a literal size took a larger image for more samples: docs/errors-and-limits.md
        error = difference(wanted, run(small, given))
        shapes = ", ".join(str(tuple(t.shape)) for t in given)
        assert error <= tolerance, f"differs by {error:.2g} at {shapes}\n{case.source}"
        worst = max(worst, error)
    assert count(small) <= before, f"{before} parameters became {count(small)}\n{case.source}"
    macs = plan.report.macs
    assert macs[1] <= macs[0], f"MACs grew from {macs[0]} to {macs[1]}\n{case.source}"
    return Result(small, plan, worst, (before, count(small)))
