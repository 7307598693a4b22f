"""Arrays of truth values and numbers that broadcast, as facts and keep sets are: what is asked of them everywhere.

They have size 1 on every axis along which they do not vary. An array of one value is asked for by its number of axes
(``everything``), and is one object then, so that ``is`` tells it.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np

try:  # what np.count_nonzero comes to for a whole array, in three times as long
    from numpy._core.multiarray import count_nonzero
except ImportError:  # NumPy 1
    from numpy import count_nonzero

# Names for the reader: numpy's own types of reductions and comparisons are too loose to check dtypes with.
Bools: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Indices: TypeAlias = np.ndarray[Any, np.dtype[Any]]
_Axes: TypeAlias = tuple[int, ...]

ZERO = np.zeros(())  # with an array a call of NumPy takes half the time that it takes with a number
_FEW = 4096  # entries, up to which counting them all is faster than looking for one
_MANY = 1 << 14  # entries of an array, from which on it matters in which order they are joined
_SHORT, _NARROW = 16, 64  # entries of an axis, and of what lies within one of its indices, see ``_joined_along``
_WRITEABLE = 0x400  # NPY_ARRAY_WRITEABLE


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
    return array if axes == () else _joined(np.logical_or, array, axes)


def all_of(array: Bools, axes: int | tuple[int, ...]) -> Bools:
    """Where every entry along ``axes`` is true; these axes keep size 1."""
    return array if axes == () else _joined(np.logical_and, array, axes)


def _joined(join: np.ufunc, array: Bools, axes: int | tuple[int, ...]) -> Bools:
    """What an operation makes of all entries along ``axes``; these axes keep size 1."""
    shape = array.shape
    wide = tuple([a for a in ((axes,) if isinstance(axes, int) else axes) if shape[a] != 1])
    if not wide:
        return array
    if array.size > _MANY:
        for axis in sorted(wide, reverse=True):  # the last one mostly lies next in memory: what is left lies evenly
            array = _joined_along(join, array, axis)
        return array
    result: Bools = join.reduce(array, axis=wide, keepdims=True)
    return result


def _joined_along(join: np.ufunc, array: Bools, axis: int) -> Bools:
    """The same of one axis of a large array: NumPy goes through each few entries that lie in a row by themselves."""
    size, within, before = array.shape[axis], prod(array.shape[axis + 1 :]), (slice(None),) * axis
    if size <= _SHORT:  # index by index
        return functools.reduce(join, [array[(*before, slice(i, i + 1))] for i in range(size)])
    if 1 < within <= _NARROW:  # one half with the other one, again and again
        while size > 1:
            half = (size + 1) // 2
            array = join(array[(*before, slice(half))], array[(*before, slice(size - half, size))])
            size = half
        return array
    result: Bools = join.reduce(array, axis=axis, keepdims=True)
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


def read_only(array: Bools | Floats) -> Bools | Floats:
    """The array as rules see it, who may not write into it: the facts, and a weight in float64, are what is there."""
    if type(array) is np.ndarray and not array.flags.num & _WRITEABLE:
        return array
    view = array.view() if type(array) is np.ndarray else np.asarray(array).view()
    view.setflags(write=False)
    return view


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
