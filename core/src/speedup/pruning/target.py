"""Sparsity that meets a target: of parameters, of multiply-accumulates, or of measured time."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import nn

from speedup.errors import InputError
from speedup.graph import Graph
from speedup.grow import keep_sets
from speedup.infer import infer
from speedup.inputs import resolve_inputs
from speedup.planning import plan
from speedup.registry import Registry
from speedup.report.counts import sizes_of
from speedup.trace import sandbox

TARGETS = ("parameters", "macs", "latency")
_STEPS = {"parameters": 10, "macs": 10, "latency": 6}


def meet(
    target: Mapping[str, float], masks_at: Callable[[float], dict[str, torch.Tensor]], measure: Callable[..., float]
) -> dict[str, torch.Tensor]:
    """The masks of least sparsity with which what is left is at most the target; bisection.

    Raises:
        InputError: the target is no known one, or cannot be met.
    """
    if len(target) != 1 or next(iter(target)) not in TARGETS:
        raise InputError(f"target={dict(target)!r}: one of {', '.join(TARGETS)} with the part that is to be left")
    ((what, left),) = target.items()
    if not 0 < left < 1:
        raise InputError(f"target={dict(target)!r}: the part that is to be left lies between 0 and 1")
    low, high = 0.0, 1.0
    best = masks_at(high)
    reached = measure(what, best)
    if reached > left:
        raise InputError(
            f"target={dict(target)!r} cannot be met: with all that can go gone, {reached:.1%} of the {what} is left"
        )
    for _ in range(_STEPS[what]):
        middle = (low + high) / 2
        masks = masks_at(middle)
        if masks and measure(what, masks) <= left:
            high, best = middle, masks
        else:
            low = middle
    return best


class Measure:
    """What is left of a model under masks, as a part of the whole."""

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        graph: Graph,
        registry: Registry,
        carried: Mapping[str, torch.Tensor],
    ) -> None:
        self._model = model
        self._carried = carried
        self._dummy_input = dummy_input
        self._graph = graph
        self._registry = registry
        self._seconds: float | None = None

    def __call__(self, what: str, masks: Mapping[str, torch.Tensor]) -> float:
        masks = {**self._carried, **{n: m & self._carried.get(n, m) for n, m in masks.items()}}
        if not masks:
            return 1.0
        if what == "latency":
            return self._latency(masks)
        with sandbox(self._model, masks):
            keeps = keep_sets(self._graph, infer(self._graph, masks))
        before, after = sizes_of(self._graph, keeps)[what]
        return after / before if before else 1.0

    def _latency(self, masks: Mapping[str, torch.Tensor]) -> float:
        if self._seconds is None:
            self._seconds = seconds(self._model, self._dummy_input)
        small = plan(copy.deepcopy(self._model), self._dummy_input, masks, registry=self._registry).apply()
        return seconds(small, self._dummy_input) / self._seconds


def seconds(model: nn.Module, dummy_input: Any, runs: int = 9) -> float:
    """Median time of one run of a model, in eval mode."""
    args, kwargs = resolve_inputs(dummy_input)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    times = []
    with sandbox(model):
        for _ in range(runs + 2):
            start = time.perf_counter()
            model(*args, **kwargs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    return median(times[2:])
