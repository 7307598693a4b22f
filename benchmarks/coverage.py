"""Every model builder of torchvision under two sets of masks: equal or not, how small, how long, and what stayed.

    python benchmarks/coverage.py                            # all of torchvision
    python benchmarks/coverage.py resnet50 swin_t            # some of it
    python benchmarks/coverage.py --timm resnet50 vit_tiny_patch16_224 --transformers bert
    python benchmarks/coverage.py --write docs/coverage.md   # the table, as Markdown
    python benchmarks/coverage.py --libraries --short --json libraries.json --write docs/coverage-libraries.md
    python benchmarks/coverage.py --transformers olmo --add docs/coverage-libraries.md   # rows of a table that is there

Weights are random, BatchNorm statistics too. Masks (a) are drawn layer by layer: a random third of the filters of every
convolution and linear layer. Masks (b) leave every second index of everything: filters, biases, tokens, position tables
and norms, but for BatchNorms, whose shifts stay. Models run in worker processes; those of more than 120 M
parameters, and those that only run in float32, run in float32, the others in float64.

Of networks with trained weights (``--trained``, see ``trained.py``) the weights stay, and masks (a) take the third with
the smallest weights. Seconds are of the processor, for planning and applying.

"Equal" means up to rounding: a difference of at most 1e-8 in float64 (2e-3 in float32) of the largest entry, or 1,000
times what it makes of the masked model to change every parameter by the last digit. Boxes and masks of a detector
come in the order of scores, which rounding can tip: each box is compared with the nearest one.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import multiprocessing
import platform
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import speedup
from speedup.testing import masked_copy, randomize

sys.path.insert(0, str(Path(__file__).parent))
import libraries
import models
from pages import part, with_part

SINGLE, THREADS = False, 1  # options of the whole run
LARGE = 120_000_000
PER_HEAD = ("relative", "temperature", "logit_scale")  # parameters with an entry per head, not per channel
EXPERTS = ("gate_up_proj", "down_proj")  # parameters of all experts of a layer: the rows of each are its outputs
# They make float32 tensors of their own, or bring their weights to it at each call.
FLOAT32 = ("raft", "transformers:switch_transformers", "transformers:nllb-moe")
Masks = dict[str, dict[str, torch.Tensor]]


def unaligned(model: nn.Module, seed: int = 0) -> Masks:
    """A random third of the output indices of every convolution and linear layer."""
    generator = torch.Generator().manual_seed(seed)
    masks: Masks = {}
    for name, module in model.named_modules():
        axis = _output_axis(module)
        if axis is not None:
            line = torch.rand(module.weight.shape[axis], generator=generator) > 1 / 3
            masks[name] = _entry(module, line, axis)
    return masks


def smallest(model: nn.Module, part: int = 3) -> Masks:
    """One of so many parts (a third) of the output indices of every layer: whose weights have the smallest absolute
    sums."""
    masks: Masks = {}
    for name, module in model.named_modules():
        axis = _output_axis(module)
        if axis is not None:
            weight = module.weight.detach()
            size = weight.abs().sum([a for a in range(weight.ndim) if a != axis])
            line = torch.ones(len(size), dtype=torch.bool)
            line[size.argsort()[: len(size) // part]] = False
            masks[name] = _entry(module, line, axis)
        elif isinstance(module, nn.RNNBase):
            masks.update(_hidden(name, module, part))
    return masks


def _hidden(name: str, module: nn.RNNBase, part: int) -> Masks:
    """As ``smallest``, of the hidden units of every layer, over all gates."""
    own = dict(module.named_parameters())
    masks: dict[str, torch.Tensor] = {}
    for layer in range(module.num_layers):
        both = [own[f"weight_{kind}_l{layer}"].detach().abs().sum(1) for kind in ("ih", "hh")]
        size = sum(both).reshape(-1, module.hidden_size).sum(0)
        line = torch.ones(module.hidden_size, dtype=torch.bool)
        line[size.argsort()[: module.hidden_size // part]] = False
        for parameter, tensor in own.items():
            if parameter.endswith(f"_l{layer}"):
                rows = line.repeat(tensor.shape[0] // module.hidden_size)
                masks[parameter] = rows.reshape(-1, *(1,) * (tensor.ndim - 1)).expand_as(tensor)
    return {name: masks}


def aligned(model: nn.Module) -> Masks:
    """Every second output index of every layer, and of the tables that are added to what they make."""
    masks: Masks = {}
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        output = _output_axis(module)
        if output is not None:
            # What a depthwise convolution makes of one channel goes or stays together.
            depthwise = isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.in_channels
            each = module.out_channels // module.groups if depthwise and not module.transposed else 1
            masks[name] = _entry(module, torch.arange(module.weight.shape[output]) // each % 2 == 0, output)
        elif isinstance(module, nn.RNNBase):
            line = torch.arange(module.hidden_size) % 2 == 0
            masks[name] = {
                n: line.repeat(p.shape[0] // len(line)).reshape(-1, *(1,) * (p.ndim - 1)).expand_as(p)
                for n, p in own.items()
            }
        elif isinstance(module, nn.Embedding):
            masks[name] = {"weight": (torch.arange(module.embedding_dim) % 2 == 0).expand_as(module.weight)}
        elif not isinstance(module, nn.modules.batchnorm._NormBase):
            for length, direction in _WEIGHT_NORM:  # a filter goes with its length; without one it has no direction
                if length in own and own[length].shape[0] > 1:
                    own.pop(direction, None)
            for parameter, tensor in own.items():
                axis = 1 if parameter in EXPERTS else _channel_axis(tensor)
                if tensor.ndim and tensor.shape[axis] > 1 and not any(n in parameter for n in PER_HEAD):
                    line = torch.arange(tensor.shape[axis]) % 2 == 0
                    shape = [-1 if a == axis else 1 for a in range(tensor.ndim)]
                    masks.setdefault(name, {})[parameter] = line.reshape(shape).expand_as(tensor)
    return masks


_WEIGHT_NORM = (("original0", "original1"), ("weight_g", "weight_v"))


def _channel_axis(tensor: torch.Tensor) -> int:
    """The axis of the channels of a parameter without a layer: of tokens and tables of positions, or the longest."""
    if tensor.ndim >= 3 and tensor.shape[0] == 1:
        image = tensor.ndim == 4 and tensor.shape[2] == tensor.shape[3]
        return 1 if image else tensor.ndim - 1
    return max(range(tensor.ndim), key=lambda a: tensor.shape[a]) if tensor.ndim else 0


def _output_axis(module: nn.Module) -> int | None:
    """The axis of the weight that makes the output; None where the module has no such weight of its own."""
    if "weight" not in module._parameters:
        return None
    if isinstance(module, nn.modules.conv._ConvTransposeNd) or type(module).__name__ == "Conv1D":
        return 1
    return 0 if isinstance(module, nn.modules.conv._ConvNd | nn.Linear) else None


def _entry(module: Any, line: torch.Tensor, axis: int) -> dict[str, torch.Tensor]:
    shape = [-1 if a == axis else 1 for a in range(module.weight.ndim)]
    entry = {"weight": line.reshape(shape).expand_as(module.weight)}
    if module.bias is not None and module.bias.numel() == line.numel():
        entry["bias"] = line
    return entry


def measure(name: str) -> dict[str, Any]:
    """Both masks on one model; failures are results too."""
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {"name": name}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, inputs, others = models.make(name)
        found["parameters"] = sum(p.numel() for p in model.parameters())
        wide = found["parameters"] <= LARGE and not name.startswith(FLOAT32) and not SINGLE
        found["float64"] = wide
        trained = name.startswith("trained:")
        if not trained:
            randomize(model, 0)
        model = (model.double() if wide else model.float()).eval()
        inputs, others = (models.cast(x, torch.float64 if wide else torch.float32) for x in (inputs, others))
        for key, masks in (("unaligned", (smallest if trained else unaligned)(model)), ("aligned", aligned(model))):
            if not masks:  # all weights are computed from others: nothing is masked
                first, weight = next(model.named_parameters())
                masks = {first.rpartition(".")[0]: {first.rpartition(".")[2]: torch.ones_like(weight)}}
            found[key] = _one(copy.deepcopy(model), inputs, others, masks)
            found["float64"] &= found[key].get("float64", True)
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        found["traceback"] = traceback.format_exc()
    return found


def _one(model: nn.Module, inputs: Any, others: Any, masks: Masks) -> dict[str, Any]:
    reference = masked_copy(model, masks)
    clock = time.process_time if THREADS == 1 else time.perf_counter
    start = clock()
    try:
        plan = speedup.plan(model, inputs, masks)
        small = plan.apply()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:500], "traceback": traceback.format_exc()}
    seconds = clock() - start
    worst = 0.0
    for x in [inputs, *others]:
        worst = max(worst, difference(models.call(reference, x), models.call(small, x)))
    rounding = 0.0
    if worst > 1e-10:
        before = models.call(reference, inputs)
        for parameter in reference.parameters():
            parameter.data.mul_(1 + torch.randn_like(parameter) * torch.finfo(parameter.dtype).eps)
        rounding = difference(before, models.call(reference, inputs))
    report = plan.report
    reasons: Counter[str] = Counter()
    for stay in report.stays:
        reasons[re.sub(r" \(.*", "", stay.why)] += len(stay.indices)
    return {
        "error": None,
        "float64": plan.graph.coarsest in (None, torch.float64),  # some models normalise in float32 all the same
        "difference": worst,
        "rounding": rounding,
        "parameters": report.parameters[1] / max(report.parameters[0], 1),
        "macs": report.macs[1] / max(report.macs[0], 1),
        "seconds": seconds,
        "barriers": sorted({b.split(" at ")[0] for b in report.barriers}),
        "stays": dict(reasons.most_common()),
    }


def difference(wanted: Any, got: Any) -> float:
    """The largest difference relative to the largest entry of its tensor; infinite for other shapes."""
    boxes = isinstance(wanted, list) and wanted and isinstance(wanted[0], dict) and "boxes" in wanted[0]
    a, b = ([t for t in tree_leaves(x) if isinstance(t, torch.Tensor)] for x in (wanted, got))
    if [t.shape for t in a] != [t.shape for t in b]:
        return float("inf")
    if boxes:
        for one, other in zip(wanted, got, strict=True):
            order = _nearest(one, other)
            for name in other:
                other[name] = other[name][order]
        b = [t for t in tree_leaves(got) if isinstance(t, torch.Tensor)]
    worst = 0.0
    for one, other in zip(a, b, strict=True):
        if one.numel() and one.is_floating_point():
            one, other = one.double(), other.double()
            if not torch.equal(one.isnan(), other.isnan()):
                return float("inf")
            gap = torch.where(one == other, torch.zeros_like(one), one - other).abs().nan_to_num(0.0, torch.inf)
            worst = max(worst, float(gap.max() / one.nan_to_num(0).abs().max().clamp_min(1e-30)))
        elif one.numel() and not torch.equal(one, other):
            return float("inf")
    return worst


def _nearest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> torch.Tensor:
    """For every detection the one of the other model that is most like it."""

    def rows(found: dict[str, torch.Tensor]) -> torch.Tensor:
        size = found["boxes"].abs().amax().clamp_min(1e-30) if len(found["boxes"]) else 1.0
        numbers = [found["boxes"] / size, found["scores"][:, None], found["labels"][:, None]]
        return torch.cat([n.double() for n in numbers], 1)

    a, b = rows(one), rows(other)
    return (a[:, None] - b[None]).abs().amax(2).argmin(1) if len(a) else torch.arange(0)


def is_equal(result: dict[str, Any], wide: bool) -> bool:
    """Equal up to rounding."""
    return result["error"] is None and result["difference"] <= max(1e-8 if wide else 2e-3, 1e3 * result["rounding"])


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    kinds = [f"({kind}) {column}" for kind in "ab" for column in ("equal", "kept", "MACs", "stay", "s")]
    rows = [f"| {' | '.join(['model', 'parameters', *kinds, 'barriers'])} |"]
    rows.append(f"|---|---:{'|---|---:|---:|---:|---:' * 2}|---|")
    for r in sorted(results, key=lambda r: models.order(r["name"])):
        if "error" in r:
            rows.append(f"| {r['name']} | | {r['error'].replace('|', '/')} {'| ' * 11}|")
            continue
        cells = [r["name"], f"{r['parameters'] / 1e6:.1f} M"]
        for key in ("unaligned", "aligned"):
            one = r[key]
            if one["error"] is not None:
                cells += [one["error"].split("\n")[0][:80].replace("|", "/"), "", "", "", ""]
                continue
            mark = "yes, {:.0e}" if is_equal(one, r["float64"]) else "**no, {:.0e}**"
            cells += [mark.format(one["difference"]), f"{one['parameters']:.3f}", f"{one['macs']:.3f}"]
            cells += [str(sum(one["stays"].values())), f"{one['seconds']:.1f}"]
        barriers = r["aligned"].get("barriers", [])
        cells.append(", ".join(f"`{b}`" for b in barriers))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def reasons(results: list[dict[str, Any]]) -> str:
    """Why masked output indices stay, over all models, as Markdown."""
    rows = ["| why masked output indices stay | (a) models | (a) indices | (b) models | (b) indices |"]
    rows.append("|---|---:|---:|---:|---:|")
    found = {k: [r[k]["stays"] for r in results if r.get(k, {}).get("stays")] for k in ("unaligned", "aligned")}
    totals = Counter[str]()
    for stays in (*found["unaligned"], *found["aligned"]):
        totals.update(stays)
    for why, _ in totals.most_common():
        cells = [why.replace("|", "/")]
        for stays in found.values():
            counts = [s[why] for s in stays if why in s]
            cells += [str(len(counts)), f"{sum(counts):,}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def summary(results: list[dict[str, Any]]) -> str:
    good = [r for r in results if "error" not in r]
    both = [r for r in good if all(is_equal(r[k], r["float64"]) for k in ("unaligned", "aligned"))]
    crashed = [r["name"] for r in results if "error" in r or any(r[k]["error"] for k in ("unaligned", "aligned"))]
    seconds = sorted(r["aligned"]["seconds"] for r in good if r["aligned"]["error"] is None)
    kept = sorted(r["aligned"]["parameters"] for r in good if r["aligned"]["error"] is None)
    failed = f"{len(crashed)} failed" + (f": {', '.join(crashed)}" if crashed else "")
    lines = [f"{len(results)} models, {len(both)} equal under both masks, {failed}."]
    if seconds:
        medians = kept[len(kept) // 2], seconds[len(seconds) // 2]
        lines.append(f"Masks (b): median {medians[0]:.3f} of the parameters kept, median {medians[1]:.2f} s.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="builders of torchvision; all of them when nothing is named")
    parser.add_argument("--timm", nargs="*", default=[], help="names of timm models")
    parser.add_argument("--transformers", nargs="*", default=[], help="model types of transformers, such as bert")
    parser.add_argument("--trained", nargs="*", default=[], help="networks with trained weights, see trained.py")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the results here, and skip models that it holds")
    parser.add_argument("--write", type=Path, help="write the table between the marks of this Markdown file")
    parser.add_argument("--add", type=Path, help="add the rows to the table of this Markdown file")
    parser.add_argument("--libraries", action="store_true", help="the models of other libraries, see libraries.py")
    parser.add_argument("--short", action="store_true", help="models of timm with at most two equal blocks in a row")
    parser.add_argument("--float32", action="store_true", help="all in float32, as models run in practice")
    parser.add_argument("--threads", type=int, default=1, help="per model; of several the seconds are those of a clock")
    parser.add_argument("--render", action="store_true", help="run nothing: make the table of what --json holds")
    options = parser.parse_args()
    global SINGLE, THREADS
    models.SHORT, SINGLE, THREADS = options.short, options.float32, options.threads
    names = [*options.names, *(libraries.names() if options.libraries else ())]
    names += [f"{kind}:{n}" for kind in ("timm", "transformers", "trained") for n in getattr(options, kind)]
    names = names or models.torchvision_names()
    unknown = set(options.names) - set(models.torchvision_names())
    if unknown:
        parser.error(f"torchvision has no builder named {', '.join(sorted(unknown))}")
    results: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        results = json.loads(options.json.read_text())  # those of other models stay in the file
        names = [] if options.render else [n for n in names if n not in {r["name"] for r in results}]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(options.workers, context, max_tasks_per_child=None) as pool:
        waiting = {pool.submit(measure, name): name for name in names}
        for future in as_completed(waiting):
            result = future.result()
            results.append(result)
            print(_line(result), flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1))
    versions = libraries.versions([r["name"] for r in results])
    threads = "one thread" if THREADS == 1 else f"{THREADS} threads"
    machine = f"torch {torch.__version__}{', ' * bool(versions)}{versions}; {platform.machine()}, {threads} per model."
    text = f"{machine}\n\n{summary(results)}\n\n{table(results)}\n\n{reasons(results)}"
    print(f"\n{text}")
    if options.write:
        options.write.write_text(with_part(options.write.read_text(), "coverage", text))
    if options.add:
        page = options.add.read_text()
        options.add.write_text(with_part(page, "coverage", added(page, results)))
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()


def added(page: str, results: list[dict[str, Any]]) -> str:
    """The part of a page with the rows of these results in the place of those of the same name, or beside them.

    Of a model that is measured again, the table of reasons goes on counting what stayed before.
    """
    old = part(page, "coverage").split("\n")
    rows = {line.split(" | ")[0][2:]: line for line in old if line.count(" | ") > 9 and not line.startswith("| model ")}
    new = table(results).split("\n")
    head, rows_now = new[:2], {line.split(" | ")[0][2:]: line for line in new[2:]}
    counted = [r for r in results if r["name"] not in rows]
    totals: dict[str, list[str]] = {}
    for why, *numbers in (c for c in map(_cells, [*old, *reasons(counted).split("\n")]) if len(c) == 5):
        why = why.split(" indices:")[0] + " indices" * (" indices:" in why)  # what it says has sizes in it
        before = totals.get(why, ["0"] * 4)
        totals[why] = [f"{_number(a) + _number(b):,}" for a, b in zip(before, numbers, strict=True)]
    rows |= rows_now
    lines = [rows[name] for name in sorted(rows, key=models.order)]
    cells = [_cells(line) for line in lines]
    failed = [c[0] for c in cells if c[2].startswith("**") or not c[3]]
    equal = [c for c in cells if c[2].startswith("yes") and c[7].startswith("yes")]
    kept, seconds = (sorted(float(c[k]) for c in equal) for k in (8, 11))
    names = f": {', '.join(failed)}" if failed else ""
    text = [old[0], "", f"{len(cells)} models, {len(equal)} equal under both masks, {len(failed)} failed{names}."]
    medians = kept[len(kept) // 2], seconds[len(seconds) // 2]
    text.append(f"Masks (b): median {medians[0]:.3f} of the parameters kept, median {medians[1]:.2f} s.")
    why_head = reasons([]).split("\n")
    ranked = sorted(totals, key=lambda w: -_number(totals[w][1]) - _number(totals[w][3]))
    ranked = [w for w in ranked if any(map(_number, totals[w]))]
    return "\n".join([*text, "", *head, *lines, "", *why_head, *(f"| {' | '.join([w, *totals[w]])} |" for w in ranked)])


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []


def _number(text: str) -> int:
    return int(text.replace(",", "")) if text.replace(",", "").isdigit() else 0


def _line(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"{result['name']:32} FAILED {result['error']}"
    parts = [f"{result['name']:32}"]
    for key in ("unaligned", "aligned"):
        one = result[key]
        if one["error"] is not None:
            parts.append(f"{key} FAILED {one['error'][:200]}")
        else:
            mark = "equal" if is_equal(one, result["float64"]) else "DIFFERS"
            parts.append(f"{key} {mark} {one['difference']:.0e} kept {one['parameters']:.3f} {one['seconds']:.1f} s")
    return "  ".join(parts)


if __name__ == "__main__":
    main()
