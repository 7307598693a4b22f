"""Latency of the small model beside the masked model and the ideal: what the same widths cost without exactness.

The ideal has the small model's shapes and none of what made it exact: layers of the plain classes, with biases only
where the original has them. The three run in turn, every other time the other
way round; medians count.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from typing import Any

import coverage
import models
import torch
from torch import nn

import speedup
from speedup.testing import masked_copy

MODELS = ("resnet50", "mobilenet_v2", "vit_b_16")


def ideal_of(small: nn.Module, original: nn.Module) -> nn.Module:
    """A copy of the small model without the biases that layers gained, and with plain norms for compensated ones."""
    ideal = copy.deepcopy(small)
    for path, module in original.named_modules():
        here = ideal.get_submodule(path)
        plain = type(here) is not type(module) and isinstance(module, nn.LayerNorm)
        if plain:
            here.__class__ = type(module)
            here.normalized_shape = tuple(here.weight.shape)
        if (
            isinstance(module, nn.Linear | nn.Conv2d)
            and module.bias is None
            and getattr(here, "bias", None) is not None
        ):
            here.bias = None
    return ideal


def measure(name: str, batch: int, compiled: bool, dtype: torch.dtype, seconds: float = 6.0) -> dict[str, Any]:
    """Median seconds per pass of masked, small and ideal model."""
    warnings.simplefilter("ignore")
    model, inputs = models.make_random(name)
    masks = coverage.aligned(model)
    masked = masked_copy(model, masks)
    small = speedup.ModelSpeedup(copy.deepcopy(model), inputs, masks).speedup_model()
    three = [m.to(dtype) for m in (masked, small, ideal_of(small, model))]
    if compiled:
        three = [torch.compile(m) for m in three]
    x = torch.randn(batch, *inputs[0].shape[1:], dtype=dtype)
    found: list[list[float]] = [[], [], []]
    with torch.inference_mode():
        for m in three:
            m(x)
        start = time.perf_counter()
        while len(found[0]) < 5 or (time.perf_counter() - start < seconds and len(found[0]) < 200):
            # There and back, as whoever runs behind a larger model finds the caches full of it.
            for which in (0, 1, 2) if len(found[0]) % 2 == 0 else (2, 1, 0):
                before = time.perf_counter()
                three[which](x)
                found[which].append(time.perf_counter() - before)
    masked_s, small_s, ideal_s = map(statistics.median, found)
    how = f"{'compiled' if compiled else 'eager'}, batch {batch}, {str(dtype).removeprefix('torch.')}"
    return {"name": name, "how": how, "masked": masked_s, "small": small_s, "ideal": ideal_s, "rounds": len(found[0])}


def table(results: list[dict[str, Any]]) -> str:
    rows = [
        "| model | how | masked, ms | small, ms | ideal, ms | masked / small | small / ideal |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        ms = (f"{1e3 * r[k]:.2f}" for k in ("masked", "small", "ideal"))
        ratios = f"{r['masked'] / r['small']:.2f} | {r['small'] / r['ideal']:.3f}"
        rows.append(f"| {r['name']} | {r['how']} | {' | '.join(ms)} | {ratios} |")
    return "\n".join(rows)
