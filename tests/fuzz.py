"""A long run of random graphs; ``scripts/fuzz`` starts it.

Every case must be planned without an error, be no larger, and give the outputs of the masked model at every size that
the network accepts. For each case that fails, a script that shows it is written.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.graphs import Case, check_case, random_case


@dataclass
class Outcome:
    """What came of one case; `failure` is "" or what went wrong, of the kind "mismatch" or "crash"."""

    seed: int
    kind: str = ""
    failure: str = ""
    error: float = 0.0
    kept: float = 1.0
    sizes: int = 1
    steps: tuple[str, ...] = ()
    seconds: float = 0.0


def run_case(seed: int, scripts: Path) -> Outcome:
    started = time.perf_counter()
    case: Case | None = None
    try:
        case = random_case(seed)
        result = check_case(case)
        outcome = Outcome(seed, error=result.error, kept=result.kept, sizes=1 + len(case.others), steps=case.steps)
    except AssertionError as error:
        outcome = Outcome(seed, "mismatch", _first_line(error))
    except Exception as error:
        outcome = Outcome(seed, "crash", f"{type(error).__name__}: {_first_line(error)}")
    if outcome.failure and case is not None:
        scripts.mkdir(parents=True, exist_ok=True)
        (scripts / f"case_{seed}.py").write_text(case.script())
    outcome.seconds = time.perf_counter() - started
    return outcome


def _first_line(error: Exception) -> str:
    return str(error).partition("\nclass Net")[0].partition("\n")[0]


def outcomes(seeds: range, processes: int, scripts: Path) -> Iterator[Outcome]:
    if processes == 1:
        yield from (run_case(seed, scripts) for seed in seeds)
        return
    with multiprocessing.get_context("spawn").Pool(processes, _quiet) as pool:
        yield from pool.imap_unordered(_Runner(scripts), seeds, chunksize=8)


@dataclass
class _Runner:
    scripts: Path

    def __call__(self, seed: int) -> Outcome:
        return run_case(seed, self.scripts)


def _quiet() -> None:
    torch.set_num_threads(1)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description="Check random networks under random masks.")
    parser.add_argument("cases", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case (0)")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1), help="how many at once (2)")
    parser.add_argument("--scripts", type=Path, default=Path("out/fuzz"), help="where scripts of failures go")
    given = parser.parse_args(arguments)
    _quiet()
    failures: list[Outcome] = []
    worst = kept = seconds = 0.0
    sizes = done = 0
    steps: Counter[str] = Counter()
    started = time.perf_counter()
    seeds = range(given.seed, given.seed + given.cases)
    for outcome in outcomes(seeds, given.processes, given.scripts):
        done += 1
        seconds += outcome.seconds
        if outcome.failure:
            failures.append(outcome)
            print(f"case {outcome.seed}: {outcome.kind}: {outcome.failure}", flush=True)
        else:
            worst, kept, sizes = max(worst, outcome.error), kept + outcome.kept, sizes + outcome.sizes
            steps.update(set(outcome.steps))
        if done % max(1, given.cases // 20) == 0:
            passed = time.perf_counter() - started
            print(f"{done}/{given.cases} cases, {len(failures)} failed, {passed:.0f} s", flush=True)
    fine = done - len(failures)
    rarest = ", ".join(f"{name} {n}" for name, n in sorted(steps.items(), key=lambda s: s[1])[:5])
    print(f"\ncases                    {done} (numbers {seeds.start} to {seeds.stop - 1})")
    print(f"mismatches               {sum(f.kind == 'mismatch' for f in failures)}")
    print(f"crashes                  {sum(f.kind == 'crash' for f in failures)}")
    print(f"comparisons              {sizes} (of sizes of the input)")
    print(f"worst relative error     {worst:.2g}")
    print(f"mean parameters kept     {kept / fine if fine else 1.0:.1%}")
    print(f"rarest kinds of steps    {rarest}")
    print(f"time                     {time.perf_counter() - started:.0f} s, {seconds / max(1, done):.3f} s per case")
    for failure in sorted(failures, key=lambda f: f.seed):
        print(f"failed: {failure.seed} ({failure.kind}: {failure.failure}); {given.scripts}/case_{failure.seed}.py")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
