"""``speedup plan``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from speedup.cli.job import Job, add_job
from speedup.cli.progress import progress


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Show what would become smaller, and why the rest stays; nothing is changed or written."""
    add_job(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--explain", metavar="NAME", help="only why masked indices of this module or parameter stay")

    def run(args: argparse.Namespace) -> int:
        with progress():
            plan = Job(args).plan()
        if args.explain is not None:
            print(plan.explain(args.explain))
        else:
            print(json.dumps(plan.to_dict(), indent=2) if args.json else plan)
        return 0

    return run
