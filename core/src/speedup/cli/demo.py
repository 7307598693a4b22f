"""``speedup demo``."""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable

import speedup
from speedup.cli.bench import measure
from speedup.cli.job import Job, add_job
from speedup.cli.progress import progress, step
from speedup.cli.target import INPUT_HELP, MODEL_HELP
from speedup.testing.contents import randomize

MODEL, INPUT = "torchvision.models:resnet18", "1x3x64x64"


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Show the whole way on one model: choose channels, cut, compare, time; nothing is written.

    Weights are those that the callable gives; statistics of norms and biases are random, so that constants have to be
    folded. Exits with 1 if the small model differs from the masked one.
    """
    parser.add_argument("model", nargs="?", default=MODEL, metavar="MODULE:CALLABLE", help=f"{MODEL_HELP} ({MODEL})")
    parser.add_argument("--input", metavar="SPEC", action="append", help=f"{INPUT_HELP} (default: {INPUT})")
    parser.add_argument("--criterion", default="l1", metavar="NAME", help="what says which channels go (default: l1)")
    parser.add_argument("--sparsity", type=float, default=0.5, help="the part that goes (default: 0.5)")

    def run(args: argparse.Namespace) -> int:
        options = argparse.ArgumentParser()
        add_job(options)
        given = ["--criterion", args.criterion, "--sparsity", str(args.sparsity)]
        given += [f"--input={spec}" for spec in args.input or [INPUT]]
        with progress():
            job = Job(options.parse_args([args.model, *given]))
            randomize(job.model)
            step("planning")
            plan = job.plan(copy.deepcopy(job.model))
            small = plan.apply()
            step("comparing")
            result = speedup.verify(job.model, small, job.dummy_input, job.masks)
            step("timing")
            times = measure({"masked": job.masked(), "small": small}, job.inputs, 20, 3)
        masked, ours = (1e3 * statistics.median(times[name]) for name in ("masked", "small"))
        print(plan.report.text(depth=1))
        print(f"\n{result}\n\nmasked {masked:.1f} ms, small {ours:.1f} ms a pass: {masked / ours:.2f} times as fast")
        return int(not result)

    return run
