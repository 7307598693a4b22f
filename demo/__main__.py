"""`python -m demo`: run the examples and print their tables."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from demo import report
from demo.examples import EXAMPLES, Result, Runner, Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 1 if a small model predicts anything else than its masked model, else 0."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - started:5.0f} s] {text}", file=sys.stderr, flush=True)

    setup = f"torch {torch.__version__}, CPU, {torch.get_num_threads()} threads, float32, seed {options.seed}."
    print(f"{setup}\n")
    runner = Runner(Settings(seed=options.seed, bench_seconds=options.bench_seconds), say)
    results: list[Result] = []
    for example in EXAMPLES:
        if options.only and example.name not in options.only:
            continue
        result, small = runner.run(example)
        results.append(result)
        print("\n\n".join(table.text() for table in report.example_tables(result)) + "\n", flush=True)
        if options.out:
            torch.save(small.state_dict(), options.out / f"{example.name}_small.pt")
            report.save(results, setup, options.out)
    print(report.summary_table(results).text())
    print(f"\nThe whole run took {time.perf_counter() - started:.0f} seconds.")
    wrong = [result.name for result in results if result.different_predictions]
    if wrong:
        print(f"The small model predicts something else than the masked one: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    names = [example.name for example in EXAMPLES]
    parser.add_argument("--only", action="append", choices=names, help="run this example (may be given repeatedly)")
    parser.add_argument("--out", type=Path, help="save the small models, and the tables as JSON and Markdown, there")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: %(default)s)")
    parser.add_argument("--threads", type=_positive, help="threads of torch (default: torch decides)")
    parser.add_argument(
        "--bench-seconds",
        type=float,
        default=Settings.bench_seconds,
        help="time for the latency table of each example; more gives more rounds (default: %(default)s)",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 4 * (os.cpu_count() or 1):
        raise argparse.ArgumentTypeError(f"{number} threads cannot be meant on this machine")
    return number


if __name__ == "__main__":
    sys.exit(main())
