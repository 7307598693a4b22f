"""A check for users: does the small model give the answers of the masked one on inputs that nobody planned for?

The check before a commit uses the dummy input alone. This one draws random inputs like it, at several batch sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from speedup.errors import CheckError
from speedup.inputs import resolve_inputs
from speedup.masks import load_masks, normalize_masks
from speedup.rounding import distance, tolerance
from speedup.trace.outputs import tensors_in
from speedup.trace.sandbox import sandbox, undisturbed

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """One output tensor on one input.

    Attributes:
        case: which input ("batch 3").
        output: number of the tensor among those that the model returns.
        absolute: largest absolute difference; infinite where shapes or types differ.
        relative: the same, divided by the largest entry of the masked model's output.
        allowed: the largest relative difference that rounding explains in this dtype.
    """

    case: str
    output: int
    absolute: float
    relative: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.relative <= self.allowed


@dataclass(frozen=True)
class Verification:
    """The result of ``verify``; true when every output is equal up to rounding.

    Attributes:
        comparisons: one per input and output.
        skipped: inputs that the masked model itself rejects, with its error.
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
        dummy_input: as for ``speedup.plan``; its shapes, dtypes, means and deviations are those of the random inputs.
        masks: the masks, in any form that ``speedup.plan`` takes, to be applied to ``model`` while it runs.
        batch_sizes: sizes of the first axis to try beside the dummy's own, where all its tensors share one.
        repeats: random inputs at the dummy's own size.
        seed: of the random inputs.

    Raises:
        InputError, MaskError: the arguments cannot be used.
        CheckError: the masked model rejects every input.

    Example:
        >>> report = speedup.verify(original, small, torch.randn(8, 3, 32, 32), masks)
        >>> assert report, report
    """
    keep = None if masks is None else normalize_masks(model, load_masks(masks))
    cases = random_inputs(resolve_inputs(dummy_input), batch_sizes, repeats, seed)
    return compare(run(model, cases, keep), run(small, cases))


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
    def draw(tensor: torch.Tensor) -> torch.Tensor:
        shape = tensor.shape if batch is None or not tensor.ndim else (batch, *tensor.shape[1:])
        if tensor.numel() == 0:
            return tensor.new_empty(shape)
        if tensor.is_floating_point():
            values = tensor.double()
            spread = values.std() if tensor.numel() > 1 else values.abs().mean()
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            return (drawn.to(tensor.device) * spread + values.mean()).to(tensor.dtype)
        # Indices and flags: from those that the dummy shows to be valid.
        chosen = torch.randint(tensor.numel(), tuple(shape), generator=generator).to(tensor.device)
        return tensor.flatten()[chosen]

    drawn: Inputs = pytree.tree_map_only(torch.Tensor, draw, inputs)
    return drawn


def run(
    model: nn.Module, cases: Mapping[str, Inputs], masks: Mapping[str, torch.Tensor] | None = None
) -> dict[str, list[torch.Tensor] | Exception]:
    """The tensors that a model returns for each input, or what it raises."""
    results: dict[str, list[torch.Tensor] | Exception] = {}
    with sandbox(model, masks):
        for name, inputs in cases.items():
            args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, inputs)
            try:
                with undisturbed(model):
                    torch.manual_seed(0)  # inside a fork of the random state
                    results[name] = [t.detach().clone() for t in tensors_in(model(*args, **kwargs))]
            except Exception as error:
                results[name] = error
    return results


def compare(
    wanted: Mapping[str, list[torch.Tensor] | Exception],
    got: Mapping[str, list[torch.Tensor] | Exception],
    coarsest: torch.dtype | None = None,
) -> Verification:
    """Compare the results of ``run`` of the masked and of the small model.

    Args:
        coarsest: the type of the coarsest numbers that the results were made of, if that is known.
    """
    comparisons: list[Comparison] = []
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
        if len(result) != len(reference):
            raise CheckError(f"the small model returns {len(result)} tensors, the masked one {len(reference)}")
        for number, (a, b) in enumerate(zip(reference, result, strict=True)):
            absolute, scale = distance(a, b) if a.shape == b.shape and a.dtype == b.dtype else (float("inf"), 1.0)
            relative = absolute / scale if scale else absolute
            comparisons.append(Comparison(case, number, absolute, relative, tolerance(a.dtype, coarsest)))
    if not comparisons:
        raise CheckError("the masked model rejects every random input, so nothing was compared: " + "; ".join(skipped))
    return Verification(tuple(comparisons), tuple(skipped))
