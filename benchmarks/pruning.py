"""Group-aware L1 pruning of every classification model of torchvision: what is left, and whether it is equal.

    python benchmarks/pruning.py                              # all of them
    python benchmarks/pruning.py resnet50 densenet121         # some of them
    python benchmarks/pruning.py --write docs/prune.md       # the table, as Markdown

``speedup.prune_masks(model, x, "l1", sparsity=0.5)`` drops half the channels of every group. Weights are random,
BatchNorm statistics too. The small model is compared with the masked one on the dummy input, and at another batch
size and image size, in float64 (models of more than 100 M parameters in float32). Heads that only run in training (the
auxiliary classifiers of GoogLeNet and Inception) are taken off first.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from torch import nn

import speedup
from speedup.testing import masked_copy, randomize

sys.path.insert(0, str(Path(__file__).parent))
import models
from coverage import LARGE, difference, is_equal
from pages import with_part

# What Torch-Pruning 1.6 leaves with group L1 at 50 %, of those that were measured.
DEPENDENCY_GRAPH = {
    "resnet18": 0.261,
    "resnet50": 0.271,
    "mobilenet_v2": 0.349,
    "densenet121": 0.285,
    "efficientnet_b0": 0.322,
}
# The largest last, and those that take long.
LAST = ("vit_h_14", "regnet_y_128gf", "vit_l_16", "vit_l_32", "maxvit_t", "regnet_y_32gf", "efficientnet_v2_l")


def measure(name: str) -> dict[str, Any]:
    """Prune one model; a failure is a result too."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {"name": name, "error": None}
    try:
        torch.manual_seed(0)
        model, inputs, others = models.make(name)
        _take_off(model)
        found["count"] = sum(p.numel() for p in model.parameters())
        found["float64"] = found["count"] <= LARGE
        dtype = torch.float64 if found["float64"] else torch.float32
        randomize(model, 0).to(dtype).eval()
        inputs, others = (models.cast(x, dtype) for x in (inputs, others))
        start = time.perf_counter()
        groups = speedup.channel_groups(model, inputs)
        found["groups"] = len(groups)
        found["group seconds"] = time.perf_counter() - start
        masks = speedup.prune_masks(model, inputs, "l1", sparsity=0.5)
        masked = masked_copy(model, masks)
        start = time.perf_counter()
        plan = speedup.plan(model, inputs, masks)
        small = plan.apply()
        found["seconds"] = time.perf_counter() - start
        found["difference"] = max(difference(models.call(masked, x), models.call(small, x)) for x in [inputs, *others])
        found["rounding"] = 0.0
        found["stay"] = sum(len(s.indices) for s in plan.report.stays)
        for what, (before, after) in (("parameters", plan.report.parameters), ("macs", plan.report.macs)):
            found[what] = after / max(before, 1)
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        found["traceback"] = traceback.format_exc()
    return found


def _take_off(model: nn.Module) -> None:
    """The auxiliary classifiers run in training only, so nothing can be told of them."""
    for name, child in list(model.named_children()):
        if type(child).__name__ == "InceptionAux":
            setattr(model, name, None)
    if hasattr(model, "aux_logits"):
        model.aux_logits = False


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    rows = ["| model | parameters | kept | MACs kept | dependency graph | equal | groups | s to group | s to plan |"]
    rows.append("|---|---:|---:|---:|---:|---|---:|---:|---:|")
    for r in sorted(results, key=lambda r: r["name"]):
        if r["error"]:
            rows.append(f"| {r['name']} | | | | | {r['error'].replace('|', '/')} | | | |")
            continue
        there = f"{DEPENDENCY_GRAPH[r['name']]:.3f}" if r["name"] in DEPENDENCY_GRAPH else ""
        mark = "yes" if is_equal(r, r["float64"]) else "**no**"
        kind = "" if r["float64"] else " (float32)"
        cells = [r["name"], f"{r['count'] / 1e6:.1f} M", f"{r['parameters']:.3f}", f"{r['macs']:.3f}", there]
        cells += [f"{mark}, {r['difference']:.0e}{kind}", str(r["groups"])]
        cells += [f"{r['group seconds']:.1f}", f"{r['seconds']:.1f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def summary(results: list[dict[str, Any]]) -> str:
    good = [r for r in results if not r["error"]]
    equal = sum(is_equal(r, r["float64"]) for r in good)
    kept = sorted(r["parameters"] for r in good)
    more = sorted(f"{r['name']} {r['parameters']:.3f}" for r in good if r["parameters"] > 0.36)
    text = f"{len(results)} models, {len(results) - len(good)} failed, {equal} equal; "
    text += f"median {kept[len(kept) // 2]:.3f} of the parameters kept. " if kept else ""
    return text + f"More than 0.36 is left of: {', '.join(more) or 'none'}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="builders of torchvision; all classifiers when nothing is named")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the results here, model by model; go on from what is there")
    parser.add_argument("--write", type=Path, help="write the table between the marks of this Markdown file")
    options = parser.parse_args()
    names = options.names or [n for n in models.torchvision_names() if models.order(n)[0] == "torchvision.models"]
    results: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        results = json.loads(options.json.read_text())
    done = {r["name"] for r in results}
    names = sorted((n for n in names if n not in done), key=lambda n: n in LAST)
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(measure, name) for name in names]):
            results.append(future.result())
            r = results[-1]
            text = r["error"] or f"{r['parameters']:.3f} {r['difference']:.0e} {r['seconds']:.1f} s"
            print(r["name"], text, flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1))
    text = f"torch {torch.__version__}, one thread.\n\n{summary(results)}\n\n{table(results)}"
    print(f"\n{text}")
    if options.write:
        options.write.write_text(with_part(options.write.read_text(), "pruning", text))


if __name__ == "__main__":
    main()
