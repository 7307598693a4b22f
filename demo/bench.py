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

_SHORT_RUN = 4
_MOST_LONG_RUNS = 5
_MOST_SHORT_RUNS = 10


@dataclass(frozen=True)
class Latency:
    """Seconds for `times` forward passes in a row: the median of `rounds` measurements of each model."""

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

    After a warm-up the two models run alternately, and which of them goes first changes every time: long runs of
    `max(counts)` passes, and runs of a few passes between them. The clock is read after every pass, so that a run
    also holds measurements of each smaller count: the groups of that many passes in a row, none of them used twice.
    `budget`, in seconds, decides how many runs there are; every count is measured at least once.
    """
    models = (masked.eval(), small.eval())
    for model in models:
        _run(model, example, 1)
    pair = sum(_run(model, example, 1)[-1] for model in models)
    longest = max(counts)
    short = min(_SHORT_RUN, longest)
    long_runs = max(1, min(_MOST_LONG_RUNS, int(budget / (pair * longest))))
    left = budget - long_runs * longest * pair
    short_runs = max(1, min(_MOST_SHORT_RUNS, int(left / (pair * short))))

    runs: list[tuple[list[float], list[float]]] = []
    for turn, length in enumerate(_mix([longest] * long_runs, [short] * short_runs)):
        clocks: list[list[float]] = [[], []]
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            clocks[which] = _run(models[which], example, length)
        runs.append((clocks[0], clocks[1]))
    rows = []
    for count in counts:
        mask = [seconds for clock, _ in runs for seconds in _groups(clock, count)]
        ours = [seconds for _, clock in runs for seconds in _groups(clock, count)]
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


def _run(model: nn.Module, example: Tensor, passes: int) -> list[float]:
    """Seconds since the start, after each of so many passes in a row."""
    clock = []
    start = time.perf_counter()
    for _ in range(passes):
        model(example)
        clock.append(time.perf_counter() - start)
    return clock


def _groups(clock: Sequence[float], count: int) -> list[float]:
    """Seconds of each group of `count` passes in a row: passes 1 to count, count + 1 to 2 count, and so on."""
    marks = [0.0, *clock][::count]
    return [end - start for start, end in itertools.pairwise(marks)]


def _mix(long: list[int], short: list[int]) -> list[int]:
    """The short runs spread evenly before and between the long ones."""
    share = -(-len(short) // len(long))
    mixed: list[int] = []
    for index, length in enumerate(long):
        mixed += [*short[index * share : (index + 1) * share], length]
    return mixed
