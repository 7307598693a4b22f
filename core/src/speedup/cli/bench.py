"""``speedup bench``."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from speedup.cli.job import Job, add_job, add_small
from speedup.cli.progress import progress, step
from speedup.verification import Inputs


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Time the small model against the masked one.

    Both run in turn on the input, in eval mode, so that whatever else the machine does hits both alike. The median and
    the quartiles of the passes are shown.
    """
    add_job(parser)
    add_small(parser)
    parser.add_argument("--repeats", type=int, default=30, help="passes of each model (default: 30)")
    parser.add_argument("--warmup", type=int, default=3, help="passes of each before the clock runs (default: 3)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: as torch chooses)")
    parser.add_argument("--json", action="store_true", help="print JSON")

    def run(args: argparse.Namespace) -> int:
        if args.repeats < 1 or args.warmup < 0 or (args.threads or 1) < 1:
            parser.error("--repeats and --threads are at least 1, --warmup at least 0")
        with progress():
            job = Job(args)
            models = {"masked": job.masked(), "small": job.small()}
            step(f"timing {args.repeats} passes of each")
            threads = torch.get_num_threads()
            torch.set_num_threads(args.threads or threads)
            try:
                times = measure(models, job.inputs, args.repeats, args.warmup)
                used = torch.get_num_threads()
            finally:
                torch.set_num_threads(threads)
        rows = {name: _row(models[name], times[name]) for name in models}
        ratio = rows["masked"]["median"] / rows["small"]["median"]
        if args.json:
            told = {"device": str(job.device), "threads": used, "repeats": args.repeats, "ratio": ratio, **rows}
            print(json.dumps(told, indent=2))
            return 0
        print(f"{'model':<8}{'parameters':>14}{'median':>12}{'quartiles':>24}")
        for name, row in rows.items():
            quartiles = f"{1e3 * row['lower']:.3f} to {1e3 * row['upper']:.3f}"
            print(f"{name:<8}{row['parameters']:>14,}{1e3 * row['median']:>9.3f} ms{quartiles:>21} ms")
        print(f"\n{ratio:.2f} times as fast ({args.repeats} passes of each in turn, {job.device}, {used} threads)")
        return 0

    return run


@torch.inference_mode()
def measure(models: dict[str, nn.Module], inputs: Inputs, repeats: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of every pass; the models run in turn, and take turns in going first."""
    times: dict[str, list[float]] = {name: [] for name in models}
    args, kwargs = inputs
    for number in range(-warmup, repeats):
        order = list(models) if number % 2 else list(models)[::-1]
        for name in order:
            start = time.perf_counter()
            models[name](*args, **kwargs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def _row(model: nn.Module, times: list[float]) -> dict[str, float]:
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "median": statistics.median(times),
        "lower": quartiles[0],
        "upper": quartiles[2],
    }
