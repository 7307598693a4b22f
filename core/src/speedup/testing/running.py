"""Running one recorded call again, on numbers that agree with given facts."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from speedup.arrays import Bools
from speedup.facts import Affine
from speedup.known import Facts
from speedup.node import Node, Ref, Value, rows_of_one
from speedup.trace.making import new_or_changed
from speedup.trace.outputs import tensors_in

_ROWS = 16  # how many lines of an affine fact are solved for their unknowns


def numbers(value: Value, sample: torch.Tensor, facts: Facts, rng: np.random.Generator) -> torch.Tensor:
    """Random contents of a value for which the facts hold; the weights of means stay what they are."""
    if rows_of_one(value) is not None:
        return sample
    if not sample.is_floating_point():
        known = facts.constants.get(value)
        return sample if known is None else _put(sample, known.mask, known.value)
    noise = torch.from_numpy(rng.normal(size=sample.shape)).to(sample.dtype)
    tensor = sample + noise if rng.random() < 0.5 else noise
    shared = facts.affine.get(value)
    if shared is not None:
        unknown = [1 if a == shared.axis else s for a, s in enumerate(value.shape)]
        count = len(shared.terms)
        which = rng.integers(count + 1, size=unknown) if shared.one_hot else None
        unknowns = [rng.normal(size=unknown) if which is None else which == r for r in range(count)]
        entries = sum((term * u for term, u in zip(shared.terms, unknowns, strict=True)), shared.offset)
        tensor = _put(tensor, shared.mask, entries)
    known = facts.constants.get(value)
    return tensor if known is None else _put(tensor, known.mask, known.value)


def perturbed(tensor: torch.Tensor, mask: Bools, rng: np.random.Generator) -> torch.Tensor:
    """Other numbers where the mask is set; what has no negative entry (a variance) gets none."""
    noise = rng.normal(size=tuple(tensor.shape))
    return _put(tensor, mask, np.abs(noise) + 0.1 if bool((tensor >= 0).all()) else noise)


def _put(tensor: torch.Tensor, mask: Bools, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> torch.Tensor:
    at = torch.from_numpy(np.broadcast_to(mask, tuple(tensor.shape)).copy())
    return torch.where(at, torch.from_numpy(np.broadcast_to(values, tuple(tensor.shape)).copy()), tensor).to(
        tensor.dtype
    )


def run(
    node: Node, given: Mapping[Value, torch.Tensor], at: Mapping[int, torch.Tensor] = {}
) -> list[torch.Tensor] | None:
    """The outputs of the call; None where it cannot be run on these tensors or its outputs cannot be told.

    Args:
        given: contents by value.
        at: contents by number of the tensor argument, which come first.
    """
    tensors = [at[n] if n in at else given[v] for n, v in enumerate(node.tensors)]
    tensors = [t.detach().clone(memory_format=torch.contiguous_format) for t in tensors]
    versions = [t._version for t in tensors]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=()), _filled():
            torch.default_generator.manual_seed(0)
            result = node.run(tensors)
    except (RuntimeError, IndexError, ValueError):
        return None
    changed = [t for t, version in zip(tensors, versions, strict=True) if t._version != version]
    outputs = new_or_changed(list(tensors_in(result)), tensors, changed)
    if [tuple(t.shape) for t in outputs] != [v.shape for v in node.outputs]:
        return None
    return outputs


@contextlib.contextmanager
def _filled() -> Iterator[None]:
    """Memory that nobody has written holds NaN, not whatever is there."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def number_of(node: Node, operand: int) -> int | None:
    """Which tensor argument an operand is; None where that cannot be told."""
    name, value = node.operand_names[operand], node.operands[operand]
    argument = node.arguments.get(name)
    if isinstance(argument, Ref):
        return argument.number
    if name in node.attributes:
        return node.attributes[name]
    places = [n for n, v in enumerate(node.tensors) if v is value]
    same = [k for k, v in enumerate(node.operands) if v is value]
    return places[same.index(operand)] if len(places) == len(same) else None


def differs(a: torch.Tensor, b: torch.Tensor, where: Bools) -> tuple[int, ...] | None:
    """The first entry, among those of the mask, at which two tensors differ by more than rounding."""
    tolerance = 1e6 * torch.finfo(a.dtype).eps if a.dtype.is_floating_point or a.is_complex() else 0.0
    tolerance = min(tolerance, 1e-2) if a.dtype != torch.float64 else 1e-9
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
        where = where[..., None]
    x, y = a.detach().to(torch.float64).numpy(), b.detach().to(torch.float64).numpy()
    finite = np.abs(x[np.isfinite(x)])
    scale = max(1.0, float(finite.max(initial=0.0)))
    with np.errstate(invalid="ignore"):
        same = (x == y) | (np.isnan(x) & np.isnan(y)) | (np.abs(x - y) <= tolerance * scale)
    return first(~same & where)


def isfinite(tensor: torch.Tensor) -> Bools:
    """The entries that are finite numbers."""
    return np.asarray(torch.isfinite(tensor).numpy())


def first(mask: Bools) -> tuple[int, ...] | None:
    """The first entry of a mask that is set."""
    at = np.argwhere(mask)
    return tuple(int(i) for i in at[0]) if len(at) else None


def many_at_once(output: torch.Tensor, fact: Affine) -> tuple[int, ...] | None:
    """An entry that is what it is said to be for no unknown that is 1 while the others are 0, and not without any."""
    array = output.detach().to(torch.float64).numpy()
    scale = 1e-9 * max(1.0, float(np.abs(array[np.isfinite(array)]).max(initial=0.0)))
    wrong = np.broadcast_to(fact.mask, array.shape) & np.isfinite(array)
    for term in (0.0, *fact.terms):
        wrong = wrong & ~(np.abs(array - (fact.offset + term)) <= scale)
    return first(wrong)


def unexplained(
    output: torch.Tensor,
    mask: Bools,
    terms: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.float64]]],
    offset: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    axis: int,
) -> tuple[int, ...] | None:
    """An entry that is no combination of unknowns which the masked entries along the axis share."""
    shape = tuple(output.shape)
    lines, wide = (
        np.moveaxis(np.broadcast_to(a, shape), axis, -1).reshape(-1, shape[axis])
        for a in (output.detach().to(torch.float64).numpy(), mask)
    )
    shifts = np.moveaxis(np.broadcast_to(offset, shape), axis, -1).reshape(-1, shape[axis])
    factors = [np.moveaxis(np.broadcast_to(t, shape), axis, -1).reshape(-1, shape[axis]) for t in terms]
    for row in range(0, len(lines), max(1, len(lines) // _ROWS)):
        known = np.flatnonzero(wide[row])
        wanted = lines[row, known] - shifts[row, known]
        if not known.size or not np.isfinite(wanted).all():
            continue
        matrix = np.stack([f[row, known] for f in factors], axis=-1) if factors else np.zeros((known.size, 0))
        solved = matrix @ np.linalg.lstsq(matrix, wanted, rcond=None)[0] if factors else 0.0
        wrong = np.abs(solved - wanted) > 1e-7 * max(1.0, float(np.abs(lines[row, known]).max()))
        if wrong.any():
            before = shape[:axis] + shape[axis + 1 :]
            at = [int(i) for i in np.unravel_index(row, before)] if before else []
            at.insert(axis, int(known[np.argmax(wrong)]))
            return tuple(at)
    return None
