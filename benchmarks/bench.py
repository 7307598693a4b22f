"""The benchmark suite: time and memory of the transformation, latency of what comes out of it, scaling.

./scripts/bench                                             # all of it
./scripts/bench transformation --models resnet50 swin_t
./scripts/bench transformation --models all --masks pruned --threads 2
./scripts/bench latency --compile --batches 1 64 --dtypes float32 bfloat16
./scripts/bench --write docs/benchmarks.md --json bench.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import latency
import scaling
import transformation
from pages import with_part

PARTS = ("transformation", "latency", "scaling")


def machine(threads: int) -> str:
    """The machine and the versions that a table was measured with."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    used = f"{threads} thread{'s' * (threads > 1)} on {os.cpu_count()} cores of {cpu}"
    return f"{versions}, {used}, load {load:.1f} at the start."


def alone(threads: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run a measurement in a process of its own, so that none inherits the memory of another."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (threads,)) as pool:
        return pool.submit(work, *arguments).result()  # an error if the process is killed, where a Pool waits for ever


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="what to measure (default: all)")
    parser.add_argument("--models", nargs="+", help="builders of torchvision; 'all': its classifiers")
    parser.add_argument("--masks", default="aligned", choices=transformation.MASKS, help="for the transformation")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true", help="latency of the compiled models too")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--write", type=Path, help="write the tables between the marks of this Markdown file")
    options = parser.parse_args()
    parts = options.parts or PARTS
    figures: dict[str, Any] = {"machine": machine(options.threads)}
    texts: dict[str, str] = {}
    if "transformation" in parts:
        rows = figures["transformation"] = []
        every = transformation.classifiers() if options.models == ["all"] else options.models
        for name in every or transformation.MODELS:
            rows.append(alone(options.threads, transformation.measure, name, options.repeats, options.masks))
            lines = transformation.table(rows[-1:]).splitlines()[2:] or [transformation.summary(rows[-1:])]
            print(*lines, sep="\n", flush=True)
        texts["transformation"] = f"{transformation.summary(rows)}\n\n{transformation.table(rows)}"
    if "latency" in parts:
        rows = figures["latency"] = []
        for name in options.models or latency.MODELS:
            for dtype in options.dtypes:
                for batch in options.batches:
                    for compiled in (False, True) if options.compile else (False,):
                        how = name, batch, compiled, getattr(torch, dtype)
                        rows.append(alone(options.threads, latency.measure, *how))
                        print(latency.table(rows[-1:]).splitlines()[-1], flush=True)
        texts["latency"] = latency.table(rows)
    if "scaling" in parts:
        rows = figures["scaling"] = []
        for name in scaling.SERIES:
            rows.append(alone(options.threads, scaling.measure, name, options.repeats))
            print(scaling.table(rows[-1:]).splitlines()[-1], flush=True)
        texts["scaling"] = scaling.table(rows)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    if options.write:
        text = options.write.read_text()
        for part, tables in texts.items():
            text = with_part(text, part, f"{figures['machine']}\n\n{tables}")
        options.write.write_text(text)


if __name__ == "__main__":
    main()
