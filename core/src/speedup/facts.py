"""The facts that are known of a tensor.

*constant* (flows forward): entries whose value does not depend on the model's input, with that value.
*unused* (flows backward): entries that no output of the model depends on.
*affine* (flows forward, wider than constant): entries that are known combinations of unknowns which they share.

Fact arrays (``speedup.arrays``) *broadcast* to the tensor's shape: they have size 1 on every axis along which the fact
does not vary, so a fact about the channels of a feature map is (1, C, 1, 1) and stays cheap whatever the image size.

In the words of dataflow analysis: constant propagation and liveness, each with the lattice of sets of entries ordered
by inclusion; a rule may only ever add entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from speedup.arrays import (
    ZERO,
    Bools,
    Floats,
    alike_shaped,
    compact_axes,
    count,
    equal,
    every,
    everything,
    nothing,
    read_only,
    some,
)
from speedup.cached import cached_property


@dataclass(frozen=True, eq=False)
class Constant:
    """Entries with a known value.

    Attributes:
        mask: bool, broadcasts to the tensor's shape; True where the entry is constant.
        value: float64, same rule; what is not masked has no meaning.
    """

    mask: Bools
    value: Floats

    @property
    def numbers(self) -> tuple[Floats, ...]:
        """What is said beside the mask."""
        return (self.value,)

    @cached_property
    def zero(self) -> Bools:
        """Entries that are constant 0."""
        zero: Bools = np.logical_and(self.mask, self.value == 0)
        return read_only(zero) if zero.any() else nothing(zero.ndim)


@dataclass(frozen=True, eq=False)
class Unused:
    """Entries that this reader does not need.

    Attributes:
        mask: bool, broadcasts to the tensor's shape; True where the entry is not read.
    """

    mask: Bools

    @property
    def numbers(self) -> tuple[Floats, ...]:
        """What is said beside the mask: nothing."""
        return ()


@dataclass(frozen=True, eq=False)
class Affine:
    """Entries that are combinations of a few unknowns, the same ones for all indices of one axis.

    entry = sum over r of terms[r] * u[r] + offset, where the unknowns u[r] depend on the model's input and on the
    position, but not on the index along ``axis``. Behind a layer norm a constant channel is such an entry: it is no
    constant, since mean and deviation are not known, but they are the same for all channels.

    Attributes:
        axis: the axis whose indices share the unknowns.
        mask: bool, broadcasts to the tensor's shape; True where the entry is known in this way. An entry whose terms
            are all 0 is a constant.
        terms: float64 per unknown, same rule.
        offset: float64, same rule.
        derived: whether the engine says it of indices that come in alike: with other facts other ones may be alike.
        one_hot: whether, of the unknowns that an entry has terms of, at most one is 1 and the others are 0. So it is
            with the constants under zero padding, where an unknown says how much of a window lies outside. Whatever is
            done to such an entry alone makes another one of it.
        is_finite: whether the engine has seen that all numbers are finite.
    """

    axis: int
    mask: Bools
    terms: tuple[Floats, ...]
    offset: Floats
    derived: bool = False
    one_hot: bool = False
    is_finite: bool = False

    @property
    def numbers(self) -> tuple[Floats, ...]:
        """What is said beside the mask."""
        return (self.offset, *self.terms)

    @cached_property
    def stacked(self) -> Floats:
        """The numbers in one array, (1 + unknowns, ...), the offset first: there may be dozens of terms."""
        return np.stack(alike_shaped(*self.numbers)).astype(np.float64, copy=False)

    @property
    def constant(self) -> Bools:
        """Entries that are constants."""
        if not len(self.terms):
            return self.mask
        result: Bools = self.mask & ~np.logical_or.reduce(self.stacked[1:] != 0)
        return result

    def with_constants(self, mask: Bools, value: Floats) -> Affine:
        """The same, and the entries of ``mask`` known to be constants of these values.

        Example:
            >>> known.with_constants(zero, np.zeros((1,) * zero.ndim))
        """
        offset = np.where(mask, value, self.stacked[0])
        numbers = np.empty((len(self.stacked), *offset.shape))
        numbers[0], numbers[1:] = offset, np.where(mask, ZERO, self.stacked[1:])
        finite = self.is_finite and bool(np.isfinite(offset).all())
        return of_stacked(self.axis, np.asarray(self.mask | mask), numbers, self.derived, self.one_hot, finite)

    def beside(self, mask: Bools, value: Floats) -> Affine:
        """As ``with_constants``, of entries that are not known as combinations: so the terms are 0 there already."""
        offset, mask = np.where(mask, value, self.offset), np.asarray(self.mask | mask)
        if offset.shape != self.stacked.shape[1:]:
            return Affine(self.axis, mask, self.terms, offset, self.derived, self.one_hot)
        numbers = self.stacked.copy()
        numbers[0] = offset
        return of_stacked(self.axis, mask, numbers, self.derived, self.one_hot)


Fact = Constant | Unused | Affine


def of_stacked(
    axis: int, mask: Bools, numbers: Floats, derived: bool = False, one_hot: bool = False, is_finite: bool = False
) -> Affine:
    """An Affine of numbers in one array, see ``Affine.stacked``."""
    fact = Affine(axis, mask, tuple(numbers[1:]), numbers[0], derived, one_hot, is_finite)
    fact.__dict__["stacked"] = numbers  # where a cached property keeps it
    return fact


def constant(mask: Bools, value: Floats) -> Constant | None:
    """A Constant in compact form, or None where nothing is constant; entries that are not finite do not count."""
    mask = mask & np.isfinite(value)
    known = count(mask)
    if not known:
        return None
    whole = known == mask.size
    # The rule's own array stays its own.
    small, values = mask, value.copy() if whole and mask.shape == value.shape else np.where(mask, value, ZERO)
    if whole or mask.size != max(mask.shape):  # else the only axis is one along which the mask varies
        small, values = compact_axes(small, values)
    small, values = small.astype(bool, copy=False), values.astype(np.float64, copy=False)
    for array in (small, values):  # nobody else has them: no view is needed, see ``read_only``
        if type(array) is np.ndarray:
            array.setflags(write=False)
    return Constant(small, values)


def unused(mask: Bools) -> Unused | None:
    """An Unused in compact form, or None where all is read."""
    known = count(mask)
    if not known:
        return None
    if known == mask.size:
        return Unused(everything(mask.ndim))
    if mask.size != max(mask.shape):  # else the only axis is one along which the mask varies
        mask = compact_axes(mask)[0]
    return Unused(mask)


def affine(axis: int, mask: Bools, terms: Iterable[Floats], offset: Floats, one_hot: bool = False) -> Affine | None:
    """An Affine in compact form, or None where nothing is known; entries that are not finite do not count."""
    numbers = np.stack(alike_shaped(offset, *terms)).astype(np.float64, copy=False)
    return compact_affine(axis, mask, numbers, one_hot)


def compact_affine(axis: int, mask: Bools, numbers: Floats, one_hot: bool) -> Affine | None:
    """As ``affine``, of numbers in one array, see ``Affine.stacked``."""
    mask = mask & np.logical_and.reduce(np.isfinite(numbers))
    if not some(mask):
        return None
    numbers = np.where(mask, numbers, ZERO)
    if not _is_compact(mask, numbers):
        wide, numbers = compact_axes(mask[None], numbers, axes=range(1, numbers.ndim))
        # What is left of a larger array would hold all of that.
        mask, numbers = np.ascontiguousarray(wide[0]), np.ascontiguousarray(numbers)
    used = np.logical_or.reduce(numbers, axis=tuple(range(1, numbers.ndim)))
    used[0] = True
    if not every(used):
        numbers = numbers[used]
    return of_stacked(axis, mask.astype(bool, copy=False), numbers, one_hot=one_hot, is_finite=True)


def same_affine(one: Affine, other: Affine) -> bool:
    """Whether two facts that the engine has put in compact form say the same."""
    kinds = [(a.axis, a.derived, a.one_hot) for a in (one, other)]
    return kinds[0] == kinds[1] and equal(one.mask, other.mask) and equal(one.stacked, other.stacked)


def without_constants(fact: Affine, known: Bools) -> Affine | None:
    """What is said of the entries that are no constants, in compact form.

    Args:
        known: these entries: all that are said, but for constants, whose terms are 0.
    """
    if not fact.is_finite or not _is_compact(known, fact.stacked):
        return compact_affine(fact.axis, known, fact.stacked, fact.one_hot)
    return of_stacked(fact.axis, known, fact.stacked, one_hot=fact.one_hot, is_finite=True)  # some are known


def _is_compact(mask: Bools, numbers: Floats) -> bool:
    """Whether the only axis is one along which the mask varies."""
    size = max(mask.shape, default=1)
    return mask.size == size and numbers[0].size == size and some(mask) and not every(mask)
