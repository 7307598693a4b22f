"""A check for users: does the small model give the answers of the masked one on inputs that nobody planned for?

The check before a commit uses the dummy input alone. This one draws random inputs like it, at several batch sizes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from speedup.errors import CheckError, InputError
from speedup.inputs import resolve_inputs
from speedup.masking import Masking
from speedup.masks import Prepared
from speedup.rounding import distance, plain_differences, tolerance
from speedup.shaking import Shaken, effects
from speedup.trace.meta import made_there, on_meta
from speedup.trace.outputs import Returned, tensors_in
from speedup.trace.sandbox import sandbox, undisturbed

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """One output on one input.

    Attributes:
        case: which input ("batch 3").
        output: number of the tensor among those that the model returns; of what it returns beside them (a Python
            number, a text, a NumPy array) where it stands, such as "['loss']".
        absolute: largest absolute difference; infinite where shapes or types differ.
        relative: the same, divided by the largest entry of the masked model's output.
        allowed: the largest relative difference that rounding explains in this dtype.
        effect: how far changing the last digit of every weight moves the output of the masked model, relative as well,
            where that had to be measured: where an output differs by more than rounding mostly explains. ``allowed`` is
            more then.
    """

    case: str
    output: int | str
    absolute: float
    relative: float
    allowed: float
    effect: float = 0.0

    @property
    def passed(self) -> bool:
        return self.relative <= self.allowed


@dataclass(frozen=True)
class Verification:
    """The result of ``verify``; true when every output is equal up to rounding.

    Attributes:
        comparisons: one per input and output.
        skipped: what was not compared: inputs that the masked model itself rejects, with its error, and outputs that
            hold no finite number.
    """

    comparisons: tuple[Comparison, ...]
    skipped: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return bool(self.comparisons) and all(c.passed for c in self.comparisons)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        lines = [f"{'equal' if self.passed else 'NOT equal'} on {len({c.case for c in self.comparisons})} inputs"]
        lines.append(f"{'input':<12}{'output':>7}{'absolute':>12}{'relative':>12}")
        for c in self.comparisons:
            mark = "" if c.passed else f"  more than {c.allowed:.0e}"
            mark += f"  ill-conditioned: last digits of weights make {c.effect:.0e}" if c.effect else ""
            lines.append(f"{c.case:<12}{c.output:>7}{c.absolute:>12.2e}{c.relative:>12.2e}{mark}")
        lines += [f"skipped: {s}" for s in self.skipped]
        return "\n".join(lines)


def verify(
    model: nn.Module,
    small: nn.Module,
    dummy_input: Any,
    masks: Any = None,
    *,
    batch_sizes: Sequence[int] = (1, 3),
    repeats: int = 2,
    seed: int = 0,
) -> Verification:
    """Compare a small model with the masked one on random inputs.

    Args:
        model: the masked model, or with ``masks`` the original one. It is run in eval mode and left as it was.
        small: the small model.
        dummy_input: as for ``speedup.plan``; its shapes, dtypes, means and deviations are those of the random inputs
            (of zeros, or another input that is the same everywhere, the deviation is 1). Whole numbers, truth values,
            and tensors with infinite entries are drawn from what is in them.
        masks: the masks, in any form that ``speedup.plan`` takes, to be applied to ``model`` while it runs.
        batch_sizes: sizes of the first axis to try beside the dummy's own, where all its tensors share one.
        repeats: random inputs at the dummy's own size.
        seed: of the random inputs.

    Raises:
        InputError, MaskError: the arguments cannot be used; ``small`` is the very object ``model``, for one.
        CheckError: nothing could be compared: the masked model rejects every input, or gives no finite number; or the
            small model raises, or returns another structure.

    Example:
        >>> report = speedup.verify(original, small, torch.randn(8, 3, 32, 32), masks)
        >>> assert report, report
    """
    for name, given in (("model", model), ("small", small)):
        if not isinstance(given, nn.Module):
            raise InputError(f"{name} is a {type(given).__name__}, not a torch.nn.Module")
    if model is small:
        raise InputError(
            "model and small are one object, which is equal to itself. The speedup works in place: make a "
            "copy.deepcopy of the model before it, and compare with that"
        )
    for name, given in (("model", model), ("small", small)):
        if on_meta(given):
            raise InputError(f"{name} is on the meta device: without contents there are no answers to compare")
    cases = random_inputs(resolve_inputs(dummy_input), batch_sizes, repeats, seed)
    with _masking(model, masks) as masking:
        wanted = run(model, cases, masking)
    got = run(small, cases)
    report = compare(wanted, got)
    if report:
        return report
    with _masking(model, masks) as masking:
        return compare(wanted, got, effects=effects_on(model, cases, wanted, masking))


@contextlib.contextmanager
def _masking(model: nn.Module, masks: Any) -> Iterator[Masking]:
    """The masking of a model that can be run with it; all of it is as it was afterwards."""
    if masks is None:
        yield Masking(model, whole=True)
        return
    prepared = Prepared(model, masks)
    try:
        yield Masking(model, prepared.masks.parameters, whole=True)
    finally:
        prepared.undo()


def effects_on(
    model: nn.Module, cases: Mapping[str, Inputs], wanted: Mapping[str, Returned | Exception], masking: Masking | None
) -> dict[str, list[float]]:
    """How far other last digits of its weights move the outputs of a masked model, by case, see ``speedup.shaking``.

    Args:
        wanted: what it answers as it is; those cases are tried.
    """
    there = {c: r.tensors for c, r in wanted.items() if isinstance(r, Returned)}

    def answers(number: int) -> list[torch.Tensor]:
        moved = run(model, {c: cases[c] for c in there}, Shaken(model, masking, number, whole=True))
        return [t for r in moved.values() if isinstance(r, Returned) for t in r.tensors]

    moved = iter(effects([t for tensors in there.values() for t in tensors], answers))
    return {case: [next(moved) for _ in tensors] for case, tensors in there.items()}


def random_inputs(inputs: Inputs, batch_sizes: Sequence[int], repeats: int, seed: int) -> dict[str, Inputs]:
    """Random inputs like the given ones, by a name for each."""
    tensors = [t for t in tensors_in(inputs) if t.ndim]
    sizes = {t.shape[0] for t in tensors}
    generator = torch.Generator().manual_seed(seed)
    cases = {f"random {i}": _like(inputs, None, generator) for i in range(repeats)}
    if len(sizes) == 1:
        for size in batch_sizes:
            if size not in sizes:
                cases[f"batch {size}"] = _like(inputs, size, generator)
    return cases


def _like(inputs: Inputs, batch: int | None, generator: torch.Generator) -> Inputs:
    floats = [t for t in tensors_in(inputs) if t.is_floating_point() and t.numel()]
    all_flat = all(_is_flat(t) for t in floats)

    def draw(tensor: torch.Tensor) -> torch.Tensor:
        shape = tensor.shape if batch is None or not tensor.ndim else (batch, *tensor.shape[1:])
        if tensor.numel() == 0:
            return tensor.new_empty(shape)
        # What is the same everywhere says nothing of a deviation; beside other inputs it may be a mask of ones.
        drawable = tensor.is_floating_point() and bool(torch.isfinite(tensor).all())
        if drawable and (all_flat or not _is_flat(tensor)):
            values = tensor.double()
            spread = 1.0 if _is_flat(tensor) else values.std()
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            return (drawn.to(tensor.device) * spread + values.mean()).to(tensor.dtype)
        # Indices, flags, masks of infinities: from those that the dummy shows to be valid.
        chosen = torch.randint(tensor.numel(), tuple(shape), generator=generator).to(tensor.device)
        return tensor.flatten()[chosen]

    drawn: Inputs = pytree.tree_map_only(torch.Tensor, draw, inputs)
    return drawn


def _is_flat(tensor: torch.Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


def run(
    model: nn.Module, cases: Mapping[str, Inputs], masking: Masking | None = None
) -> dict[str, Returned | Exception]:
    """What a model returns for each input, or what it raises.

    Args:
        masking: a whole one, of all parameters from the start to the end; none where the model is masked, or small.
    """
    results: dict[str, Returned | Exception] = {}
    with sandbox(model), masking.run() if masking is not None else contextlib.nullcontext():
        for name, inputs in cases.items():
            args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, inputs)
            try:
                with undisturbed(model), made_there(model):
                    torch.manual_seed(0)  # inside a fork of the random state
                    result = model(*args, **kwargs)
                    results[name] = Returned.of(result)
            except Exception as error:
                results[name] = error
    return results


def compare(
    wanted: Mapping[str, Returned | Exception],
    got: Mapping[str, Returned | Exception],
    coarsest: torch.dtype | None = None,
    effects: Mapping[str, Sequence[float]] | None = None,
) -> Verification:
    """Compare the results of ``run`` of the masked and of the small model.

    Args:
        coarsest: the type of the coarsest numbers that the results were made of, if that is known.
        effects: by case, how far rounding alone moves the outputs, where that was measured (``effects_on``).
    """
    comparisons: list[Comparison] = []
    finite: dict[int | str, bool] = {}
    skipped: list[str] = []
    for case, reference in wanted.items():
        result = got[case]
        if isinstance(reference, Exception):
            skipped.append(f"{case}: the masked model itself raises {reference!r}")
            continue
        if isinstance(result, Exception):
            raise CheckError(
                f"the small model raises on input {case!r}, the masked one does not: {result!r}"
            ) from result
        if len(result.tensors) != len(reference.tensors):
            counts = len(result.tensors), len(reference.tensors)
            raise CheckError(f"the small model returns {counts[0]} tensors, the masked one {counts[1]}")
        if set(result.plain) != set(reference.plain):
            raise CheckError(f"the small model returns {_names(result)}, the masked one {_names(reference)}")
        moved = (effects or {}).get(case, [0.0] * len(reference.tensors))
        for number, (a, b) in enumerate(zip(reference.tensors, result.tensors, strict=True)):
            if a.is_meta or b.is_meta:  # only shapes and types
                finite[number] = True
                gap = 0.0 if a.shape == b.shape and a.dtype == b.dtype else float("inf")
                comparisons.append(Comparison(case, number, gap, gap, 0.0))
                continue
            finite[number] = finite.get(number, False) or not a.numel() or bool(torch.isfinite(a).any())
            absolute, scale = distance(a, b) if a.shape == b.shape and a.dtype == b.dtype else (float("inf"), 1.0)
            relative = absolute / scale if scale else absolute
            effect = moved[number] if relative > tolerance(a.dtype, coarsest) else 0.0
            allowed = tolerance(a.dtype, coarsest, effect)
            comparisons.append(Comparison(case, number, absolute, relative, allowed, effect))
        dtypes = [t.dtype for t in reference.tensors]
        for name, *numbers in plain_differences(reference.plain, result.plain, dtypes, moved):
            finite[name] = True
            comparisons.append(Comparison(case, name, *numbers))
    skipped += [f"output {name}: no finite number on any input" for name, found in finite.items() if not found]
    if not any(finite.values()):
        raise CheckError("no random input gives anything to compare: " + "; ".join(skipped))
    return Verification(tuple(comparisons), tuple(skipped))


def _names(returned: Returned) -> str:
    return ", ".join(returned.plain) or "nothing"
