"""``speedup plan``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable

from speedup.cli.job import Job, add_job
from speedup.cli.progress import progress


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Show what would become smaller, and why the rest stays; nothing is changed or written."""
    add_job(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", metavar="FILE", help="write the report as a page that needs no network")
    parser.add_argument("--explain", metavar="NAME", help="only why masked indices of this module or parameter stay")

    def run(args: argparse.Namespace) -> int:
        with progress():
            plan = Job(args).plan()
        if args.html is not None:
            plan.report(args.html)
        if args.explain is not None:
            print(plan.explain(args.explain))
        elif args.json:
            print(json.dumps(plan.to_dict(), indent=2))
        else:
            print(plan.report.text(color=_colored()))
        return 0

    return run


def _colored() -> bool:
    """Whether the output is a terminal that shows colour, and the user has not said no (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
