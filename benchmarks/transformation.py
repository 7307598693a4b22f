"""How long the transformation takes, beside structured pruning by Torch-Pruning on the same model.

Ours is all of ``ModelSpeedup(...).speedup_model()``: masks, trace, plan, new parts, and the check of the result against
the masked model. Theirs is ``MagnitudePruner`` at 50 %, built and stepped once, which checks nothing. Both run in one
process, in turn, on copies of one model; the medians of CPU time count, which other work on the machine disturbs less
than it does the clock. The clock is noted as well: in several threads it is what a user waits for.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import coverage
import models
import torch
import torchvision
from torch import nn
from torch.profiler import ProfilerActivity, profile

import speedup
from speedup import cutting

MODELS = (
    *("resnet18", "resnet50", "resnet152", "wide_resnet50_2", "resnext50_32x4d", "densenet121", "densenet201"),
    *("mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_3_2gf"),
    *("regnet_y_3_2gf", "vgg16_bn", "alexnet", "googlenet", "inception_v3", "squeezenet1_1", "convnext_tiny"),
    *("shufflenet_v2_x1_0", "vit_b_16", "swin_t"),
)
# Torch-Pruning runs out of 24 GiB of memory.
OURS_ONLY = ("swin_t",)
# Torch-Pruning raises an error, or memory runs out; and of the last one float32 is too coarse for random weights.
LEFT_OUT = ("swin", "maxvit_t", "shufflenet", "vit_h_14", "regnet_y_128gf", "efficientnet_v2_l")
MASKS = ("aligned", "alone", "pruned")


def classifiers() -> list[str]:
    """The classifiers of torchvision that both can be measured on."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if not name.startswith(LEFT_OUT)]


def masks_of(kind: str, model: nn.Module, inputs: tuple[Any, ...]) -> Mapping[str, Any]:
    """Masks of a model.

    Args:
        kind: of ``MASKS``. Every second index of everything but BatchNorms; of each layer by itself the half of the
            filters with the smaller L1 norms; half of the channels as ``speedup.prune_masks`` drops them, rows and
            columns of each weight, written out entry by entry.
    """
    if kind == "pruned":
        return speedup.prune_masks(model, inputs, "l1", 0.5)
    return coverage.smallest(model, 2) if kind == "alone" else coverage.aligned(model)


def measure(name: str, repeats: int = 3, kind: str = "aligned") -> dict[str, Any]:
    """Seconds and peak memory of both on one model of torchvision; None where Torch-Pruning fails, and no more than the
    reason where we refuse."""
    warnings.simplefilter("ignore")
    model, inputs = models.make_random(name)
    masks = masks_of(kind, model, inputs)
    start = time.process_time()
    models.call(model, inputs)
    forward = time.process_time() - start
    models.warm_up()
    # First of all, while no memory of earlier runs is at hand that would hide what is needed.
    try:
        peak = _peak(lambda: speedup.ModelSpeedup(copy.deepcopy(model), inputs, masks).speedup_model(), model)
    except speedup.SpeedupError as error:
        return {"name": name, "masks": kind, "refused": _in_short(error)}
    subject = copy.deepcopy(model)
    tensors = _tensor_peak(lambda: speedup.ModelSpeedup(subject, inputs, masks).speedup_model())
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    failure = "out of memory" if name in OURS_ONLY else None
    for _ in range(repeats):
        seconds, small = _timed(lambda m: speedup.ModelSpeedup(m, inputs, masks).speedup_model(), model)
        ours.append(seconds)
        if failure is None:
            try:
                theirs.append(_timed(lambda m: _torch_pruning(m, inputs[0]), model)[0])
            except Exception as error:
                failure = _in_short(error)
                theirs.clear()
    kept = sum(p.numel() for p in small.parameters())
    size = sum(t.numel() * t.element_size() for t in small.state_dict().values())
    del small
    return {
        "name": name,
        "masks": kind,
        "parameters": sum(p.numel() for p in model.parameters()),
        "kept": kept / sum(p.numel() for p in model.parameters()),
        "forward": forward,
        "ours": _median(ours, 0),
        "theirs": _median(theirs, 0),
        "ours_by_clock": _median(ours, 1),
        "theirs_by_clock": _median(theirs, 1),
        "failure": failure,
        "small_bytes": size,
        "extra_peak_bytes": peak,
        "extra_tensor_bytes": tensors,
        "forward_tensor_bytes": _tensor_peak(lambda: models.call(model, inputs)),
    }


def _timed(work: Callable[[nn.Module], Any], model: nn.Module) -> tuple[tuple[float, float], Any]:
    """Seconds of the processor and by the clock, and what comes out."""
    subject = copy.deepcopy(model)
    gc.collect()
    start, clock = time.process_time(), time.perf_counter()
    result = work(subject)
    return (time.process_time() - start, time.perf_counter() - clock), result


def _median(times: Sequence[tuple[float, float]], which: int) -> float | None:
    return statistics.median(each[which] for each in times) if times else None


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:100]


def _torch_pruning(model: nn.Module, example: torch.Tensor) -> None:
    import torch_pruning as tp

    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    importance = tp.importance.MagnitudeImportance(p=1)
    pruner = tp.pruner.MagnitudePruner(
        model, example_inputs=example, importance=importance, pruning_ratio=0.5, ignored_layers=heads
    )
    pruner.step()


def _peak(work: Callable[[], Any], model: nn.Module) -> int | None:
    """By how much the resident set grows at most, less the copy of the model that is worked on; only on Linux."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        work()
        own = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        return max(0, _status("VmHWM") - before - own)
    return None


def _tensor_peak(work: Callable[[], Any]) -> int:
    """By how many bytes the tensors that are alive grow at most."""
    gc.collect()
    with _cut_by_torch(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes), default=0)


@contextlib.contextmanager
def _cut_by_torch() -> Iterator[None]:
    """speedup cuts tensors into memory of numpy, which the profiler does not see: let it be torch's meanwhile."""

    def room(shape: tuple[int, ...], dtype: Any) -> Any:
        return torch.empty(shape, dtype=getattr(torch, dtype.name)).numpy()

    of_numpy, cutting.room = cutting.room, room
    try:
        yield
    finally:
        cutting.room = of_numpy


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def table(results: list[dict[str, Any]]) -> str:
    heads = ("model", "parameters", "kept", "one forward, s", "speedup, s", "Torch-Pruning, s", "ratio")
    heads += ("tensors", "of a forward", "resident")
    rows = [f"| {' | '.join(heads)} |", f"|---{'|---:' * (len(heads) - 1)}|"]
    for r in _done(results):
        ours = f"{r['ours']:.2f}"
        theirs = f"{r['theirs']:.2f}" if r["theirs"] else "fails"
        ratio = f"{r['ours'] / r['theirs']:.2f}" if r["theirs"] else ""
        held = (r[f"{kind}_bytes"] for kind in ("extra_tensor", "forward_tensor", "extra_peak"))
        memory = ("" if b is None else f"{b / r['small_bytes']:.2f}" for b in held)
        cells = (r["name"], f"{r['parameters'] / 1e6:.1f} M", f"{r['kept']:.3f}", f"{r['forward']:.3f}")
        rows.append(f"| {' | '.join((*cells, ours, theirs, ratio, *memory))} |")
    return "\n".join(rows)


def _done(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in results if "refused" not in r]


def summary(results: list[dict[str, Any]]) -> str:
    refused = "".join(f" Refused: {r['name']} ({r['refused']})." for r in results if "refused" in r)
    results = _done(results)
    if not results:
        return refused.strip()
    ratios = sorted(r["ours"] / r["theirs"] for r in results if r["theirs"])
    seconds = sorted(r["ours"] for r in results)
    text = f"Median {statistics.median(seconds):.2f} s of CPU time per model."
    if ratios:
        clocks = sorted(r["ours_by_clock"] / r["theirs_by_clock"] for r in results if r["theirs"])
        text += f" Ratio to Torch-Pruning: median {statistics.median(ratios):.2f}, worst {ratios[-1]:.2f};"
        text += f" by the clock {statistics.median(clocks):.2f} and {clocks[-1]:.2f}."
    tensors = sorted(r["extra_tensor_bytes"] / r["small_bytes"] for r in results)
    text += f" Extra memory in sizes of the small model: tensors median {statistics.median(tensors):.2f},"
    text += f" worst {tensors[-1]:.2f}"
    resident = [r["extra_peak_bytes"] / r["small_bytes"] for r in results if r["extra_peak_bytes"] is not None]
    return text + (f"; resident median {statistics.median(resident):.2f}." if resident else ".") + refused
