"""``speedup run``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import speedup
from speedup.cli.job import Job, add_fast, add_job
from speedup.cli.progress import progress, step
from speedup.errors import InputError
from speedup.store.tensors import safetensors_torch


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Make a model small and save it.

    The model is run on the input, and checked; with --verify also on other inputs and batch sizes. DIR then has
    model.safetensors and speedup.json, for speedup.load.
    """
    add_job(parser)
    parser.add_argument("--out", metavar="DIR", required=True, help="where to save the small model")
    add_fast(parser)
    parser.add_argument("--verify", action="store_true", help="compare with the masked model on random inputs as well")

    def run(args: argparse.Namespace) -> int:
        # Before the long work: can the result be written at all?
        safetensors_torch("speedup run")
        if Path(args.out).exists() and not Path(args.out).is_dir():
            raise InputError(f"--out {args.out}: there is a file of that name")
        with progress():
            job = Job(args)
            plan = job.plan()
            if args.verify:
                step("verifying")
            small = plan.apply(verify=args.verify, **job.fast)
            step(f"writing {args.out}")
            speedup.save(small, args.out)
        print(plan)
        print(f"\nsaved: {args.out}")
        return 0

    return run
