"""How the time of the transformation grows with depth, width, number of masks and size of the input.

Each series changes one number and keeps the rest; the exponent is the slope of log time over log size through the
upper half of the series, where what every call costs anyway matters less.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import models
import torch
from torch import nn

import speedup

Case = tuple[nn.Module, torch.Tensor, dict[str, dict[str, torch.Tensor]]]


def _half(model: nn.Module, most: int | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """Masks that drop every second output of the layers but the last; of the first ``most`` of them."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][:-1][:most]
    masks = {}
    for name, layer in layers:
        line = torch.arange(layer.weight.shape[0]) % 2 == 0
        masks[name] = {"weight": line.reshape([-1] + [1] * (layer.weight.ndim - 1)).expand_as(layer.weight)}
    return masks


def _convolutions(depth: int, width: int, image: int, masked: int | None = None) -> Case:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
    for _ in range(depth - 1):
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()
    return model, torch.randn(1, 3, image, image), _half(model, masked)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.two(torch.relu(self.norm(self.one(x))))


def _residuals(depth: int) -> Case:
    blocks = [_Residual(16) for _ in range(max(1, depth // 2))]
    model = nn.Sequential(nn.Conv2d(3, 16, 1), *blocks, nn.Conv2d(16, 4, 1)).eval()
    return model, torch.randn(1, 3, 4, 4), _half(model)


def _mlp(width: int) -> Case:
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 8))
    return model.eval(), torch.randn(1, 64), _half(model)


def _encoder(length: int) -> Case:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.Sequential(nn.Linear(16, 32), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()
    masks = {
        f"1.layers.{i}.linear1": {"weight": (torch.arange(64) % 2 == 0).reshape(-1, 1).expand(64, 32)} for i in range(2)
    }
    return model, torch.randn(1, length, 16), masks


SERIES: dict[str, tuple[tuple[int, ...], Callable[[int], Case]]] = {
    "depth, plain": ((10, 30, 100, 300, 1000), lambda n: _convolutions(n, 8, 4)),
    "depth, residual": ((10, 30, 100, 300, 1000), _residuals),
    "width": ((64, 256, 1024, 4096, 8192), _mlp),
    "masks": ((1, 3, 10, 30, 100), lambda n: _convolutions(100, 8, 4, n)),
    "image side": ((16, 32, 64, 128, 256), lambda n: _convolutions(4, 16, n)),
    "sequence length": ((16, 64, 256, 1024), _encoder),
}


def measure(name: str, repeats: int = 3) -> dict[str, Any]:
    """Seconds of CPU time at each size, of the transformation and of one forward of the model."""
    sizes, make = SERIES[name]
    seconds, forwards = [], []
    models.warm_up()
    for size in sizes:
        times, runs = [], []
        for _ in range(repeats):
            torch.manual_seed(0)
            model, inputs, masks = make(size)
            start = time.process_time()
            with torch.no_grad():
                model(inputs)
            runs.append(time.process_time() - start)
            start = time.process_time()
            speedup.ModelSpeedup(model, inputs, masks).speedup_model()
            times.append(time.process_time() - start)
        seconds.append(statistics.median(times))
        forwards.append(statistics.median(runs))
    return {"name": name, "sizes": sizes, "seconds": seconds, "forwards": forwards, "exponent": slope(sizes, seconds)}


def slope(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """The exponent of the power law through the upper half of a series."""
    upper = len(sizes) // 2
    points = [(math.log(n), math.log(s)) for n, s in zip(sizes, seconds, strict=True)][upper:]
    x0, y0 = (statistics.fmean(p[i] for p in points) for i in (0, 1))
    return sum((x - x0) * (y - y0) for x, y in points) / sum((x - x0) ** 2 for x, _ in points)


def table(results: list[dict[str, Any]]) -> str:
    rows = ["| series | seconds at each size | exponent |", "|---|---|---:|"]
    for r in results:
        cells = ", ".join(f"{n}: {s:.3g}" for n, s in zip(r["sizes"], r["seconds"], strict=True))
        rows.append(f"| {r['name']} | {cells} | {r['exponent']:.2f} |")
    return "\n".join(rows)
