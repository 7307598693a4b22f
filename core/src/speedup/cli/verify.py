"""``speedup verify``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict

import speedup
from speedup.cli.job import Job, add_job, add_small
from speedup.cli.progress import progress, step


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Compare the small model with the masked one on random inputs; exit with 1 if they differ."""
    add_job(parser)
    add_small(parser)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 3], metavar="N", help="to try (default: 1 3)")
    parser.add_argument("--repeats", type=int, default=2, help="random inputs of the size of --input (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON")

    def run(args: argparse.Namespace) -> int:
        with progress():
            job = Job(args)
            small = job.small()
            step("comparing")
            result = speedup.verify(
                job.model,
                small,
                job.dummy_input,
                job.masks,
                batch_sizes=args.batch_sizes,
                repeats=args.repeats,
                seed=args.seed,
            )
        if args.json:
            print(json.dumps({"equal": result.passed, **asdict(result)}, indent=2))
        else:
            print(result)
        return int(not result)

    return run
