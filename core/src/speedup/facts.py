"""The facts that are known of a tensor, and the arrays that hold them.

*constant* (flows forward): entries whose value does not depend on the model's input, with that value.
*unused* (flows backward): entries that no output of the model depends on.
*affine* (flows forward, wider than constant): entries that are known combinations of unknowns which they share.

Fact arrays *broadcast* to the tensor's shape: they have size 1 on every axis along which the fact does not vary, so a
fact about the channels of a feature map is (1, C, 1, 1) and stays cheap whatever the image size.

In the words of dataflow analysis: constant propagation and liveness, each with the lattice of sets of entries ordered
by inclusion; a rule may only ever add entries.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np

try:  # what np.count_nonzero comes to for a whole array, in three times as long
    from numpy._core.multiarray import count_nonzero
except ImportError:  # NumPy 1
    from numpy import count_nonzero

from speedup.cached import cached_property

# Names for the reader: numpy's own types of reductions and comparisons are too loose to check dtypes with.
Bools: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Indices: TypeAlias = np.ndarray[Any, np.dtype[Any]]


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


def compact_axes(*arrays: Bools | Floats, axes: Collection[int] | None = None) -> tuple[Bools | Floats, ...]:
    """Reduce every axis along which none of the arrays (of one shape) varies to size 1.

    Args:
        axes: those that are looked at; all of them when None.
    """
    if not arrays:
        return ()
    out = alike_shaped(*arrays)
    shape = out[0].shape
    long = [a for a, size in enumerate(shape) if size != 1]
    if axes is not None:
        long = [a for a in long if a in axes]
    elif len(long) == 1 and shape[long[0]]:  # most facts are of this kind
        varies = not all([_is_even(a.ravel()) for a in out])
        return tuple(out if varies else [a.ravel()[:1].reshape((1,) * len(shape)) for a in out])
    for axis in sorted(long, key=lambda a: -shape[a]):
        before = (slice(None),) * axis
        head, tail = (*before, slice(0, 1)), (*before, slice(-1, None))
        heads = [a[head] for a in out]
        # The last entry is mostly enough to tell that not all are the same.
        if same([a[tail] for a in out], heads) and same(out, heads):
            out = heads
    return tuple(out)


def alike_shaped(*arrays: Bools | Floats) -> Sequence[Bools | Floats]:
    """The arrays, broadcast to one shape."""
    shape = arrays[0].shape
    for array in arrays:
        if array.shape != shape:
            return np.broadcast_arrays(*arrays)
    return arrays


def _is_even(line: Bools | Floats) -> bool:
    """Whether all entries of a 1-D array are the same; NaN is the same as NaN."""
    first = line[0]
    if first != first:
        return bool((line != line).all())
    return bool(line[-1] == first and (line == first).all())  # the last one is mostly enough to tell


def same(arrays: Sequence[Bools | Floats], heads: Sequence[Bools | Floats]) -> bool:
    """Whether all entries of each array are the same as its head; NaN is the same as NaN."""
    for array, head in zip(arrays, heads, strict=True):
        same = array == head
        if same.all():
            continue
        if array.dtype.kind != "f" or not (same | ((array != array) & (head != head))).all():
            return False
    return True


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


ZERO = np.zeros(())  # with an array a call of NumPy takes half the time that it takes with a number
_FEW = 4096  # entries, up to which counting them all is faster than looking for one


def count(array: Bools | Floats) -> int:
    """How many entries are true, as ``np.count_nonzero``."""
    return int(count_nonzero(array))


def some(array: Bools | Floats) -> bool:
    """Whether any entry is true, as ``array.any()``, which takes ten times as long where there are few."""
    return bool(count_nonzero(array) if array.size <= _FEW else array.any())


def every(array: Bools) -> bool:
    """Whether all entries are true, as ``array.all()``, which takes ten times as long where there are few."""
    return bool(count_nonzero(array) == array.size if array.size <= _FEW else array.all())


def equal(a: Bools, b: Bools) -> bool:
    """Whether two sets are the same entry for entry, as ``np.array_equal``."""
    return a.shape == b.shape and every(a == b)


def any_of(array: Bools, axes: int | tuple[int, ...]) -> Bools:
    """Where any entry along ``axes`` is true; these axes keep size 1."""
    if axes == ():
        return array
    shape = array.shape
    wide = tuple([a for a in ((axes,) if isinstance(axes, int) else axes) if shape[a] != 1])
    result: Bools = np.logical_or.reduce(array, axis=wide, keepdims=True) if wide else array
    return result


def all_of(array: Bools, axes: int | tuple[int, ...]) -> Bools:
    """Where every entry along ``axes`` is true; these axes keep size 1."""
    if axes == ():
        return array
    shape = array.shape
    wide = tuple([a for a in ((axes,) if isinstance(axes, int) else axes) if shape[a] != 1])
    result: Bools = np.logical_and.reduce(array, axis=wide, keepdims=True) if wide else array
    return result


def varies(array: Bools | Floats, axes: Iterable[int]) -> bool:
    """Whether an array is written out along any of these axes."""
    shape = array.shape
    for axis in axes:  # noqa: SIM110 (a generator takes several times as long)
        if shape[axis] != 1:
            return True
    return False


def along(array: Bools, axis: int) -> Bools:
    """Which indices of ``axis`` have any true entry (1-D)."""
    return any_of(array, tuple(a for a in range(array.ndim) if a != axis)).reshape(-1)


def unfit(array: Bools | Floats, shape: Sequence[int]) -> tuple[int, ...]:
    """The axes along which an array is for tensors of another size than this shape has."""
    return tuple([a for a, (s, whole) in enumerate(zip(array.shape, shape, strict=True)) if s not in (1, whole)])


@functools.cache
def nothing(ndim: int) -> Bools:
    """The empty fact for a tensor of ``ndim`` axes; read-only."""
    return read_only(np.zeros((1,) * ndim, dtype=bool))


@functools.cache
def everything(ndim: int) -> Bools:
    """The full fact for a tensor of ``ndim`` axes; read-only."""
    return read_only(np.ones((1,) * ndim, dtype=bool))


@functools.cache
def zeros(ndim: int) -> Floats:
    """Zeros for a tensor of ``ndim`` axes; read-only."""
    return read_only(np.zeros((1,) * ndim))


# Reading `flags.writeable` of what np.broadcast_arrays gives warns.
_WRITEABLE = 0x400  # NPY_ARRAY_WRITEABLE


def read_only(array: Bools | Floats) -> Bools | Floats:
    """The array as rules see it, who may not write into it: the facts, and a weight in float64, are what is there."""
    if type(array) is np.ndarray and not array.flags.num & _WRITEABLE:
        return array
    view = array.view() if type(array) is np.ndarray else np.asarray(array).view()
    view.setflags(write=False)
    return view


def any_product(left: Bools, right: Bools, over: tuple[int, ...]) -> Bools:
    """``(left & right).any(over)`` without building the product; arrays of equal rank with size-1 axes."""
    of_left, of_right, of_both, is_small = _summed(left.shape, right.shape, over)
    if of_left:
        left = np.logical_or.reduce(left, axis=of_left, keepdims=True)
    if of_right:
        right = np.logical_or.reduce(right, axis=of_right, keepdims=True)
    if not of_both:
        return left & right
    if is_small:
        result: Bools = np.logical_or.reduce(left & right, axis=of_both, keepdims=True)
        return result
    return sum_product(left.astype(np.float32), right.astype(np.float32), over) > 0


_Axes: TypeAlias = tuple[int, ...]


@functools.lru_cache(maxsize=4096)
def _summed(left: _Axes, right: _Axes, over: _Axes) -> tuple[_Axes, _Axes, _Axes, bool]:
    """The axes to reduce of one of two shapes alone, of the other, and of their product; and whether that is no larger
    than one of them."""
    here = [a for a in over if left[a] != 1]
    there = [a for a in over if right[a] != 1]
    one = tuple([a for a in here if a not in there])
    other = tuple([a for a in there if a not in here])
    along_left = {a for a, size in enumerate(left) if size > 1 and a not in one}
    along_right = {a for a, size in enumerate(right) if size > 1 and a not in other}
    is_small = along_left <= along_right or along_right <= along_left
    return one, other, tuple([a for a in here if a in there]), is_small


def sum_product(left: Floats, right: Floats, over: tuple[int, ...]) -> Floats:
    """``(left * right).sum(over)`` without building the product; size-1 axes of one operand broadcast.

    One matrix product per index of the axes that both have and that stay.
    """
    ndim = left.ndim
    here = [a for a in range(ndim) if left.shape[a] > 1]
    there = [a for a in range(ndim) if right.shape[a] > 1]
    both = [a for a in here if a in there]
    each, summed = [a for a in both if a not in over], [a for a in both if a in over]
    left = _sum(left, tuple([a for a in here if a in over and a not in there]))
    right = _sum(right, tuple([a for a in there if a in over and a not in here]))
    rows = [a for a in here if a not in there and a not in over]
    columns = [a for a in there if a not in here and a not in over]
    made = np.matmul(_matrix(left, each, rows, summed), _matrix(right, each, summed, columns))
    shape = [*(left.shape[a] for a in (*each, *rows)), *(right.shape[a] for a in columns)]
    order = [*each, *rows, *columns]
    made = made.reshape(shape).transpose(sorted(range(len(order)), key=order.__getitem__))
    sizes = dict(zip(order, shape, strict=True))
    return np.asarray(made.reshape([sizes.get(a, 1) for a in range(ndim)]))


def _sum(array: Floats, axes: tuple[int, ...]) -> Floats:
    """The sum along axes, which keep size 1; with none the array itself, of which NumPy would make another."""
    result: Floats = array.sum(axes, keepdims=True) if axes else array
    return result


def _matrix(array: Floats, each: Sequence[int], rows: Sequence[int], columns: Sequence[int]) -> Floats:
    """The array as one matrix per index of ``each``."""
    groups = [prod([array.shape[a] for a in axes]) for axes in (each, rows, columns)]
    rest = [a for a in range(array.ndim) if array.shape[a] == 1 and a not in (*each, *rows, *columns)]
    return array.transpose([*each, *rows, *columns, *rest]).reshape(groups)
