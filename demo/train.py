"""Brief but real training, with an optional L1 penalty on the BatchNorm scales.

Few steps leave the running statistics of BatchNorm far behind the weights, so every training ends by measuring the
statistics once more (`calibrate`); without that a short training looks much worse than it is. A masked network needs
the same: behind removed channels its activations have other statistics.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CALIBRATION_IMAGES = 192
_BATCH = 64


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Counts are in images, an image counting as often as it is shown.

    With `l1` above 0 the scales of the BatchNorm2d layers learn at `scale_rate` under the L1 penalty of Network
    Slimming. They start uniform in (0, 1), as torch itself did when that paper appeared. The penalty is applied as a
    proximal step, so that a scale can become exactly 0, where it then stays; it acts in the first quarter of the
    training, in which it moves each scale towards 0 by `l1` in all, and leaves the rest to training what remains.
    """

    images: int
    batch: int = 16
    rate: float = 1e-3
    l1: float = 0.0
    scale_rate: float = 1e-2


def train(network: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, seed: int) -> None:
    """Train `network` in place; leaves it in eval mode."""
    scales: list[nn.Parameter] = []
    if recipe.l1:
        scales = [module.weight for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        generator = torch.Generator().manual_seed(seed)
        for scale in scales:
            nn.init.uniform_(scale, generator=generator)
    penalised = {id(scale) for scale in scales}
    optimizer = torch.optim.Adam(
        [
            {"params": [p for p in network.parameters() if id(p) not in penalised], "lr": recipe.rate},
            {"params": scales, "lr": recipe.scale_rate},
        ],
        betas=(0.9, 0.99),
        fused=True,
    )
    batches = _batches(len(images), recipe.images, recipe.batch, seed)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [recipe.rate, recipe.scale_rate], total_steps=len(batches), pct_start=0.2, cycle_momentum=False
    )
    shrinking = max(1, len(batches) // 4)
    network.train()
    for step, rows in enumerate(batches):
        alive = [scale != 0 for scale in scales]
        _step(network, optimizer, images[rows], labels[rows])
        _shrink(scales, alive, recipe.l1 / shrinking if step < shrinking else 0.0)
        schedule.step()
    calibrate(network, images)


@torch.no_grad()
def calibrate(network: nn.Module, images: Tensor) -> None:
    """Measure the running statistics of every BatchNorm anew, as plain averages; leaves the network in eval mode."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    for batch in images[:_CALIBRATION_IMAGES].split(_BATCH):
        network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """The class scores of all images, `(n, classes)`, in eval mode; the network's mode is left as it was."""
    training = network.training
    network.eval()
    scores = torch.cat([network(batch) for batch in images.split(_BATCH)])
    network.train(training)
    return scores


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """The share of images whose highest score is that of their label."""
    return float((scores.argmax(1) == labels).double().mean())


def _batches(available: int, images: int, batch: int, seed: int) -> list[Tensor]:
    """Row numbers of each batch: shuffled epochs, one after the other, cut into whole batches."""
    generator = torch.Generator().manual_seed(seed)
    epochs = [torch.randperm(available, generator=generator) for _ in range(-(-images // available))]
    rows = torch.cat(epochs)[:images] if epochs else torch.empty(0, dtype=torch.int64)
    return [part for part in rows.split(batch) if len(part) == batch]


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(network(images), labels).backward()
    optimizer.step()


@torch.no_grad()
def _shrink(scales: list[nn.Parameter], alive: list[Tensor], amount: float) -> None:
    """The proximal step of an L1 penalty: move every scale towards 0 by `amount`, and no further; 0 stays 0."""
    for scale, was_alive in zip(scales, alive, strict=True):
        scale.copy_(F.softshrink(scale, amount) * was_alive)
