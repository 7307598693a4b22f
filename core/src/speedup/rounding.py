"""Two lists of tensors that should be equal: what differs by more than rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

# Largest accepted difference, relative to the largest entry of the output.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}

# The same where rounding alone is seen to move the output: so many times what changing the last digit of every
# parameter does, for a small model sums and folds in another order, and tries of chaos differ; but no more than this.
_TIMES = 30.0
WIDEST = 1e-2

_STEP = 1e3  # of single calls with equal inputs, in units of the last digit


def difference(
    wanted: Sequence[torch.Tensor],
    got: Sequence[torch.Tensor],
    floor: float = 0.0,
    coarsest: torch.dtype | None = None,
    effects: Sequence[float] = (),
) -> str | None:
    """What differs between two lists of outputs beyond rounding, None when nothing does.

    Args:
        floor: the largest number that the outputs were made of: where they cancel out, its rounding is what is left.
        coarsest: the type of the coarsest numbers that the outputs were made of.
        effects: of each output, how far rounding alone moves it, where that was measured (``speedup.shaking``).
    """
    if len(wanted) != len(got):
        return f"the small model returns {len(got)} tensors, the masked one {len(wanted)}"
    for number, (a, b) in enumerate(zip(wanted, got, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"output {number} is {tuple(b.shape)} {b.dtype} instead of {tuple(a.shape)} {a.dtype}"
        if a.is_meta or b.is_meta:
            continue  # no numbers to compare
        error, scale = distance(a, b)
        rounding = 1e3 * torch.finfo(a.dtype).eps * floor if a.is_floating_point() or a.is_complex() else 0.0
        explained = tolerance(a.dtype, coarsest, effects[number] if effects else 0.0)
        if error > max(explained * scale, rounding):
            return f"output {number} differs by {error:.3g} (its largest entry is {scale:.3g})"
    return None


def tolerance(dtype: torch.dtype, coarsest: torch.dtype | None = None, effect: float = 0.0) -> float:
    """The largest difference that rounding explains, relative to the largest entry.

    Args:
        coarsest: the type of the coarsest numbers on the way to it.
        effect: what changing the last digit of every parameter makes of it, if that was measured.
    """
    if not is_rounded(dtype):
        return 0.0
    more = min(_TIMES * effect, WIDEST) if effect <= WIDEST else 0.0
    return max(more, *(_TOLERANCE[t] for t in (dtype.to_real(), coarsest) if t in _TOLERANCE))


def step_tolerance(dtype: torch.dtype, coarsest: torch.dtype | None = None) -> float:
    """The same for the output of a single call that is given the very same numbers."""
    types = [t for t in (dtype.to_real(), coarsest) if t in _TOLERANCE]
    return min(tolerance(dtype, coarsest), max((_STEP * torch.finfo(t).eps for t in types), default=0.0))


def is_explained(error: float, effect: float) -> bool:
    """Whether rounding alone moves an output as far as that, if much or little; both relative."""
    return error <= _TIMES * effect


def is_rounded(dtype: torch.dtype) -> bool:
    """Whether numbers of a type are rounded, and by how much is known."""
    return dtype.to_real() in _TOLERANCE


def coarsest_of(dtypes: Iterable[torch.dtype]) -> torch.dtype | None:
    """The floating-point type with the largest rounding; None where there is none."""
    return max((d for d in (t.to_real() for t in dtypes) if d in _TOLERANCE), key=_TOLERANCE.__getitem__, default=None)


def distance(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """The largest absolute difference of two tensors of one shape, and the largest finite entry of the first."""
    if a.numel() == 0:
        return 0.0, 0.0
    wide = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.detach().to("cpu", wide), b.detach().to("cpu", wide)
    error = float((a - b).abs().max())
    if math.isfinite(error):  # as nearly always: all entries are finite
        return error, float(a.abs().max())
    same = (a == b) | (torch.isnan(a) & torch.isnan(b))
    gap = torch.where(same, torch.zeros((), dtype=wide), a - b).abs()
    finite = torch.where(torch.isfinite(a), a, torch.zeros((), dtype=wide)).abs()
    error = float(torch.nan_to_num(gap, nan=math.inf, posinf=math.inf).max())
    return error, float(finite.max())


def gaps(wanted: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> list[float]:
    """Of each tensor, how far it is from the wanted one, relative to its largest entry; infinite for another shape."""
    if len(wanted) != len(got):
        return [float("inf")] * len(wanted)
    pairs = [distance(a, b) if a.shape == b.shape else (float("inf"), 1.0) for a, b in zip(wanted, got, strict=True)]
    return [error / scale if scale else error for error, scale in pairs]


def plain_differences(
    wanted: Mapping[str, Any], got: Mapping[str, Any], dtypes: Sequence[torch.dtype], effects: Sequence[float] = ()
) -> Iterator[tuple[str, float, float, float]]:
    """Of each number, text or array beside the tensors: where it is, its absolute and relative difference, and what
    rounding explains of the latter.

    Args:
        wanted, got: by where they are, the same names in both.
        dtypes: of the tensors that are returned with them, which say how exact the model is.
        effects: of these tensors, as for ``difference``.
    """
    given = zip(dtypes, effects or [0.0] * len(dtypes), strict=True)
    allowed = max([_TOLERANCE[torch.float64], *(tolerance(d, effect=e) for d, e in given)])
    for name, a in wanted.items():
        b = got[name]
        if a is None and b is None:
            continue
        x, y = _as_tensor(a), _as_tensor(b)
        if x is None or y is None or x.shape != y.shape:
            error, scale = (0.0 if type(a) is type(b) and np.array_equal(a, b) else float("inf")), 1.0
        else:
            error, scale = distance(x, y)
        whole = x is not None and not (x.is_floating_point() or x.is_complex())
        yield name, error, error / scale if scale else error, 0.0 if whole else allowed


def _as_tensor(leaf: Any) -> torch.Tensor | None:
    try:
        return torch.as_tensor(np.asarray(leaf)) if leaf is not None else None
    except TypeError:  # texts, objects
        return None


def largest_entry(tensor: torch.Tensor) -> float:
    """The largest finite absolute entry of a floating-point tensor, else 0."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return 0.0
    low, high = map(float, tensor.detach().aminmax()) if tensor.dtype in _TOLERANCE else (math.nan, math.nan)
    largest = max(-low, high)
    return largest if math.isfinite(largest) else distance(tensor, tensor)[1]
