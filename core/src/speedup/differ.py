"""What is known of a value in one run, and does not hold of the same value in another run: at another size, perhaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from math import prod

import numpy as np

from speedup.arrays import Bools, Floats, everything
from speedup.facts import Affine
from speedup.known import Facts
from speedup.node import Value

_TINY = 1e-10  # of the largest number: what is less is rounding


def differ(facts: Facts, value: Value, known: Facts, other: Value) -> Bools:
    """Where of one value something is known that is not known, or is something else, of another one.

    Example:
        >>> differ(facts, value, facts_at_another_size, the_same_value_there)
    """
    if value.ndim != other.ndim:
        return everything(value.ndim)
    constants, *others = (
        _other_numbers(value, own, its)
        for own, its in zip(_numbers(facts, value), _numbers(known, other), strict=False)
    )
    affine = facts.affine.get(value)
    if affine is None or not affine.terms:
        return _any(constants, *others)
    if len(affine.terms) != (len(known.affine[other].terms) if other in known.affine else 0):
        others.append(affine.mask)
    combined = _any(*others)
    return (
        _any(constants, combined) if combined.any() and not _are_such(affine, facts, value, known, other) else constants
    )


def _any(*masks: Bools) -> Bools:
    return reduce(np.logical_or, masks)


def _other_numbers(value: Value, own: tuple[Bools, Floats], its: tuple[Bools, Floats]) -> Bools:
    """Where numbers that are said of one value are others of another one, or not said."""
    (mask, first), (also, second) = own, its
    differ = np.zeros((1,) * value.ndim, dtype=bool)
    axes = _positional(value.shape, own, its)
    if axes:
        differ = _parting(axes, own, its)
        mask, first = _even(axes, mask, first)
    same = also & np.isclose(first, second, rtol=1e-9, atol=0.0, equal_nan=True)
    # What is known at all positions must be so at all that there are in the other run.
    parting, other = (
        d.any(tuple(a for a, s in enumerate(value.shape) if d.shape[a] not in (1, s)), keepdims=True)
        for d in (differ, ~same)
    )
    return np.asarray(parting | (mask & other), dtype=bool)


def _are_such(affine: Affine, facts: Facts, value: Value, known: Facts, other: Value) -> bool:
    """Whether entries of another run are combinations as in this one, of whichever unknowns.

    So it is with a constant channel that is padded here: the unknown says which places are no padding. Where nothing
    is padded they are all 1, and the channel is a constant.
    """
    everywhere = all(a.shape[affine.axis] == a.size for a in (affine.mask, *affine.numbers))
    return everywhere and not affine.one_hot and combine_alike(facts, value, known, other, affine.axis)


def combine_alike(facts: Facts, value: Value, known: Facts, other: Value, axis: int) -> bool:
    """Whether the indices of an axis of which all is known are so in another run too, and are there combinations of
    one another, and of a constant, wherever they are here.

    Example:
        >>> combine_alike(facts, value, facts_at_another_size, the_same_value_there, 1)
    """
    if value.shape[axis] != other.shape[axis]:
        return False
    (here, own), (there, its) = _combinations(facts, value, axis), _combinations(known, other, axis)
    if (here & ~there).any():
        return False
    own, its = (np.unique(n[np.append(here, True)], axis=1) for n in (own, its))
    rest = its - own @ np.linalg.lstsq(own, its, rcond=_TINY)[0]
    return bool(np.abs(rest).max() <= _TINY * np.abs(its).max())


def _combinations(facts: Facts, value: Value, axis: int) -> tuple[Bools, Floats]:
    """The indices of an axis of which all is known; and what is added up for them at all positions: first what is
    there without any unknown, then what there is of each. The last row says which is which."""
    none = Affine(axis, np.zeros_like(facts.mask(value)), (), facts.value(value))
    affine = facts.affine.get(value, none)
    affine = (affine if affine.axis == axis else none).with_constants(facts.mask(value), facts.value(value))
    size = value.shape[axis]

    def rows(array: Bools | Floats) -> Bools | Floats:
        array = np.moveaxis(array, axis, 0)
        return np.broadcast_to(array.reshape(len(array), -1), (size, array.size // len(array)))

    numbers = np.hstack([rows(n) for n in affine.numbers])
    count = numbers.shape[1] // len(affine.numbers)
    which = (np.arange(numbers.shape[1]) < count).astype(float)
    return np.asarray(rows(affine.mask).all(axis=1)), np.vstack([numbers, which])


def _numbers(facts: Facts, value: Value) -> Iterator[tuple[Bools, Floats]]:
    yield facts.mask(value), facts.value(value)
    affine = facts.affine.get(value)
    if affine is not None:
        yield from ((affine.mask, n) for n in (affine.offset, *affine.terms))


def _positional(
    shape: Sequence[int], own: Sequence[Bools | Floats], others: Sequence[Bools | Floats]
) -> tuple[int, ...]:
    """The axes along which arrays cannot be compared: known position by position, at other positions."""
    varies = [max(sizes) > 1 for sizes in zip(*(a.shape for a in own), strict=True)]
    there = [set(sizes) for sizes in zip(*(a.shape for a in others), strict=True)]
    return tuple([a for a, size in enumerate(shape) if varies[a] and not there[a] <= {1, size}])


def _even(axes: tuple[int, ...], mask: Bools, numbers: Floats) -> tuple[Bools, Floats]:
    """What is known and the same all along these axes, which have size 1 then."""
    mask, numbers = np.broadcast_arrays(mask, numbers)
    first = numbers[tuple([slice(0, 1) if a in axes else slice(None) for a in range(numbers.ndim)])]
    return np.logical_and.reduce(mask & np.equal(numbers, first), axis=axes, keepdims=True), first


def _parting(axes: tuple[int, ...], own: Sequence[Bools | Floats], others: Sequence[Bools | Floats]) -> Bools:
    """Entries that vary along these axes, where some are combinations of others at all places here, and not there.

    Of fewer places than entries all are such combinations, which nobody takes for one.
    """
    rest = [a for a in range(own[0].ndim) if a not in axes]
    sizes = np.broadcast_shapes(*([a.shape[r] for r in rest] for a in (*own, *others)))

    def lines(mask: Bools, numbers: Floats) -> tuple[Bools, Floats]:
        both = [a.transpose([*rest, *axes]) for a in np.broadcast_arrays(mask, numbers)]
        known, array = (np.broadcast_to(a, [*sizes, *a.shape[len(rest) :]]).reshape(prod(sizes), -1) for a in both)
        return np.logical_and.reduce(known, axis=1), array

    (known, here), (also, there) = lines(*own), lines(*others)
    both = known & also
    first = here[:, :1]
    here, there = here - first, there - first
    varying = known & (here != 0).any(axis=1)
    rank, together = (_rank(rows[both]) for rows in (here, np.hstack([here, there])))
    parts = together > rank and rank < min(both.sum(), here.shape[1] - 1)
    found = varying & (~also | parts)
    return np.expand_dims(found.reshape(sizes), axes)


def _rank(rows: Floats) -> int:
    return int(np.linalg.matrix_rank(rows, tol=_TINY * np.abs(rows).max())) if rows.any() else 0
