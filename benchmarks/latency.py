"""Latency of the small model beside the masked model and the ideal, and of what makes it faster than its sizes.

The ideal has the small model's widths and none of what made it exact: layers of the plain classes, with biases only
where the original has them. All run in turn, in orders in which each follows each of the others equally often. Whoever
runs behind another model finds the caches full of it: where passes are short, one goes before each that is measured, as
in a model that is in use. What is compared is divided round by round, and the medians count, so that whatever else the
machine does hits both alike. In one thread the seconds are of the processor: what
other programs take of it does not count, though their use of the caches does.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
import warnings
from collections.abc import Sequence
from typing import Any

import coverage
import models
import torch
from torch import nn

import speedup
from speedup.testing import masked_copy

MODELS = ("resnet50", "mobilenet_v2", "vit_b_16")
SIZE = 224  # of the images
_SHORT = 1.0  # seconds of a pass, of which what it finds in the caches is a part that can be seen


def masks_of(model: nn.Module) -> coverage.Masks:
    """Every second index of everything but norms, whose shifts stay and have to be folded or carried."""
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    return {name: mask for name, mask in coverage.aligned(model).items() if name not in norms}


def ideal_of(small: nn.Module, original: nn.Module) -> nn.Module:
    """A copy of the small model without the biases that layers gained, and with plain norms for compensated ones."""
    ideal = copy.deepcopy(small)
    for path, module in original.named_modules():
        here: Any = ideal.get_submodule(path)
        if type(here) is not type(module) and isinstance(module, nn.LayerNorm):
            here.__class__ = type(module)
            here.normalized_shape = tuple(here.weight.shape)
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is None and here.bias is not None:
            here.bias = None
    return ideal


def measure(
    name: str, batch: int, compiled: bool, dtype: torch.dtype, seconds: float = 24.0, rounds: int = 60
) -> dict[str, Any]:
    """Median seconds per pass of all of them, and the medians of what pairs of passes make of each other."""
    warnings.simplefilter("ignore")
    model, inputs = models.make_random(name)
    masks = masks_of(model)
    images = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    plan = speedup.plan(copy.deepcopy(model), inputs, masks)
    tried: dict[str, nn.Module] = {"masked": masked_copy(model, masks), "small": plan.apply(copy.deepcopy(model))}
    tried["ideal"] = ideal_of(tried["small"], model)
    tried["fused"] = plan.apply(copy.deepcopy(model), fuse=True)
    if images:
        tried["last"] = plan.apply(copy.deepcopy(model), fuse=True, channels_last=True)
        tried["ideal last"] = copy.deepcopy(tried["ideal"]).to(memory_format=torch.channels_last)
    ready = {n: m.to(dtype) for n, m in tried.items()}
    x = torch.randn(batch, 3, SIZE, SIZE, dtype=dtype)
    if compiled:
        ready = {n: torch.compile(m) for n, m in ready.items() if "last" not in n}
    found: dict[str, list[float]] = {n: [] for n in ready}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    with torch.inference_mode():
        for run in ready.values():
            run(x)
        start = time.perf_counter()
        for run in ready.values():
            run(x)
        is_short = time.perf_counter() - start < _SHORT * len(ready)
        start, turns = time.perf_counter(), itertools.cycle(orders(list(ready)))
        while len(found["small"]) < 6 or (time.perf_counter() - start < seconds and len(found["small"]) < rounds):
            for n in next(turns):
                if is_short:
                    ready[n](x)
                before = clock()
                ready[n](x)
                found[n].append(clock() - before)
    how = f"{'compiled' if compiled else 'eager'}, batch {batch}, {str(dtype).removeprefix('torch.')}"
    pairs = {f"{n} / ideal": ratio(found[n], found["ideal"]) for n in ("small", "fused", "last") if n in found}
    pairs["masked / small"] = ratio(found["masked"], found["small"])
    if "last" in found:
        pairs["last / ideal last"] = ratio(found["last"], found["ideal last"])
    seconds_of = {n: statistics.median(times) for n, times in found.items()}
    return {"name": name, "how": how, "rounds": len(found["small"]), **seconds_of, **pairs}


def orders(names: Sequence[str]) -> list[list[str]]:
    """Orders of an even number of names in which each follows each of the others once: a Williams design.

    Example:
        >>> orders("abcd")
        [['a', 'b', 'd', 'c'], ['b', 'c', 'a', 'd'], ['c', 'd', 'b', 'a'], ['d', 'a', 'c', 'b']]
    """
    count = len(names)
    first = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(count)]
    return [[names[(start + step) % count] for step in first] for start in range(count)]


def ratio(first: list[float], second: list[float]) -> float:
    """The median of what each pass of the one takes, in passes of the other in the same round."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    rows = [
        "| model | how | masked, ms | small, ms | ideal, ms | fused, ms | masked / small | small / ideal | "
        "fused / ideal | fused, channels last / ideal | the same / ideal in channels last |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        ms = [f"{1e3 * r[k]:.2f}" if k in r else "" for k in ("masked", "small", "ideal", "fused")]
        keys = ("small / ideal", "fused / ideal", "last / ideal", "last / ideal last")
        pairs = [f"{r['masked / small']:.2f}", *(f"{r[k]:.3f}" if k in r else "" for k in keys)]
        rows.append(f"| {r['name']} | {r['how']} | {' | '.join([*ms, *pairs])} |")
    return "\n".join(rows)
