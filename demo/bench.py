"""What a model costs: latency of two models measured side by side, multiply-accumulates, parameters, file size."""

import io
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_TURN = 8
_MOST_ROUNDS = 5


@dataclass(frozen=True)
class Latency:
    """Seconds for `times` forward passes: the median of `rounds` measurements of each model."""

    times: int
    mask: float
    small: float
    rounds: int

    @property
    def ratio(self) -> float:
        """How many times faster the small model is."""
        return self.mask / self.small


@dataclass(frozen=True)
class Size:
    """Parameters (buffers not counted), multiply-accumulates for one image, and bytes of the saved state_dict."""

    parameters: int
    macs: int
    file_bytes: int


@torch.inference_mode()
def latencies(
    masked: nn.Module, small: nn.Module, example: Tensor, counts: Sequence[int], budget: float
) -> list[Latency]:
    """Time both models on `example` for each number of passes in `counts`.

    After a warm-up the models run alternately, eight passes at a turn, and take turns in going first, so that whatever
    else the machine does hits both alike. Every pass is timed; the time for `n` passes is the sum of `n` successive
    passes of that model, and no pass counts in two measurements of one row. `budget`, in seconds, decides how many
    passes there are: enough for at least one measurement of the largest count, and for at most five.
    """
    models = (masked.eval(), small.eval())
    for model in models:
        _passes(model, example, 1)
    pair = sum(_passes(model, example, 1)[0] for model in models)
    largest = max(counts)
    total = max(largest, min(_MOST_ROUNDS * largest, int(budget / pair)))

    passes: tuple[list[float], list[float]] = ([], [])
    for turn, start in enumerate(range(0, total, _TURN)):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            passes[which].extend(_passes(models[which], example, min(_TURN, total - start)))
    rows = []
    for count in counts:
        mask, ours = (_sums(times, count) for times in passes)
        rows.append(Latency(count, statistics.median(mask), statistics.median(ours), len(mask)))
    return rows


def size(model: nn.Module, image: Tensor) -> Size:
    """The costs of `model` that need no clock. `image` is a batch of one."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Size(parameters, macs(model, image), file.getbuffer().nbytes)


@torch.no_grad()
def macs(model: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates of one forward pass in eval mode, as torch's own counter has them (two FLOPs each)."""
    training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(image)
    model.train(training)
    return counter.get_total_flops() // 2


def _passes(model: nn.Module, example: Tensor, count: int) -> list[float]:
    """Seconds of each of `count` forward passes in a row."""
    clock = [time.perf_counter()]
    for _ in range(count):
        model(example)
        clock.append(time.perf_counter())
    return [end - start for start, end in itertools.pairwise(clock)]


def _sums(times: Sequence[float], count: int) -> list[float]:
    """The sum of each group of `count` successive times: the first `count`, the next, and so on; whole groups only."""
    return [sum(times[start : start + count]) for start in range(0, len(times) - count + 1, count)]
