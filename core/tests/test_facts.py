"""The two facts, and arrays that broadcast."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speedup.arrays import any_product, compact_axes, read_only, sum_product
from speedup.facts import Affine, affine, compact_affine, constant, unused, without_constants

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@settings(max_examples=100, deadline=None)
@given(shapes, st.integers(0, 2**31), st.data())
def test_compact_arrays_broadcast_back_to_what_they_were(
    shape: tuple[int, ...], seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    small = tuple(s if data.draw(st.booleans()) else 1 for s in shape)
    arrays = [np.broadcast_to(rng.integers(0, 2, small), shape), np.broadcast_to(rng.random(small) < 0.5, shape)]
    found = compact_axes(*arrays)
    assert len({a.shape for a in found}) == 1
    for a, b in zip(found, arrays, strict=True):
        assert np.array_equal(np.broadcast_to(a, shape), b)
    assert all(f == 1 or s > 1 for f, s in zip(found[0].shape, small, strict=True)), "only what varies is written out"


def test_compact_treats_nan_as_equal_to_itself() -> None:
    assert compact_axes(np.full((2, 3), np.nan))[0].shape == (1, 1)


def test_nothing_constant_is_no_fact() -> None:
    assert constant(np.zeros((1, 3), dtype=bool), np.zeros((1, 3))) is None


@settings(max_examples=100, deadline=None)
@given(shapes, st.integers(0, 2**31), st.data())
def test_constants_are_compact_whatever_they_vary_along(shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    narrow = [tuple(s if data.draw(st.booleans()) else 1 for s in shape) for _ in range(2)]
    mask, value = rng.random(narrow[0]) < 0.5, rng.integers(1, 3, narrow[1]).astype(float)
    given_mask = np.ascontiguousarray(np.broadcast_to(mask, shape)) if data.draw(st.booleans()) else mask
    fact = constant(given_mask, value)
    if not mask.any():
        assert fact is None
        return
    assert fact is not None
    wanted = compact_axes(np.broadcast_to(mask, shape), np.where(mask, np.broadcast_to(value, shape), 0.0))
    assert (fact.mask.shape, fact.value.shape) == (wanted[0].shape, wanted[1].shape)
    assert np.array_equal(fact.mask, wanted[0]) and np.array_equal(np.where(fact.mask, fact.value, 0.0), wanted[1])
    assert not np.shares_memory(fact.value, value)


@settings(max_examples=100, deadline=None)
@given(shapes, st.integers(0, 2**31), st.data())
def test_what_is_unused_is_compact_whatever_it_varies_along(
    shape: tuple[int, ...], seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    narrow = tuple(s if data.draw(st.booleans()) else 1 for s in shape)
    mask = np.broadcast_to(rng.random(narrow) < data.draw(st.sampled_from((0.0, 0.5, 1.0))), shape)
    fact = unused(mask)
    if not mask.any():
        assert fact is None
        return
    assert fact is not None and np.array_equal(fact.mask, compact_axes(mask)[0])


def test_the_arrays_of_a_constant_are_read_only_and_those_that_were_given_are_not() -> None:
    mask, value = np.array([True, False]), np.array([1.0, 2.0])
    fact = constant(mask, value)
    assert fact is not None and not fact.mask.flags.writeable and not fact.value.flags.writeable
    mask[:], value[:] = False, 0.0
    assert fact.mask.tolist() == [True, False] and fact.value.tolist() == [1.0, 0.0]


def test_entries_that_are_not_finite_are_not_constant() -> None:
    fact = constant(np.ones((1, 3), dtype=bool), np.array([[1.0, np.inf, np.nan]]))
    assert fact is not None
    assert fact.mask.tolist() == [[True, False, False]]
    assert constant(np.ones((1, 1), dtype=bool), np.array([[-np.inf]])) is None


def test_zero_is_where_the_constant_is_0_and_nowhere_else() -> None:
    fact = constant(np.array([True, True, False]), np.array([0.0, 2.0, 0.0]))
    assert fact is not None and fact.zero.tolist() == [True, False, False]
    assert constant(np.array([True]), np.array([-0.0])).zero.tolist() == [True]  # type: ignore[union-attr]


@st.composite
def operands(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:  # type: ignore[type-arg]
    shape = draw(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    left, right = (rng.random([s if draw(st.booleans()) else 1 for s in shape]) for _ in range(2))
    axes = [a for a in range(len(shape)) if draw(st.booleans())]
    return left, right, tuple(axes)


@settings(max_examples=100, deadline=None)
@given(operands())
def test_products_agree_with_the_plain_formula(case: tuple[np.ndarray, np.ndarray, tuple[int, ...]]) -> None:  # type: ignore[type-arg]
    left, right, over = case
    whole = (left * right).sum(axis=over, keepdims=True)
    assert np.allclose(sum_product(left, right, over), whole)
    a, b = left < 0.5, right < 0.5
    assert np.array_equal(any_product(a, b, over), (a & b).any(axis=over, keepdims=True))


@pytest.mark.parametrize(
    ("line", "shape"),
    [
        ([np.nan, np.nan, np.nan], (1, 1, 1)),
        ([np.nan, 1.0, np.nan], (1, 3, 1)),
        ([1.0, 1.0, np.nan], (1, 3, 1)),
        ([1.0, 2.0, 1.0], (1, 3, 1)),
        ([2.0, 2.0, 2.0], (1, 1, 1)),
        ([], (1, 0, 1)),
    ],
)
def test_an_array_along_one_axis_is_shortened_where_it_is_the_same_all_along(
    line: list[float], shape: tuple[int, ...]
) -> None:
    (found,) = compact_axes(np.array(line, dtype=np.float64).reshape(1, -1, 1))
    assert found.shape == shape
    assert np.array_equal(np.broadcast_to(found, (1, len(line), 1)).ravel(), line, equal_nan=True)


def test_arrays_that_share_entries_are_made_read_only_without_a_warning():
    array = np.broadcast_arrays(np.zeros((2, 1)), np.zeros(3))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = read_only(array)
    assert not given.flags.writeable
    assert read_only(given) is given


def test_what_is_compact_does_not_hold_the_arrays_it_was_made_of() -> None:
    wide = np.broadcast_to(np.arange(1.0, 5.0)[None, :, None], (1, 4, 1000)).copy()
    known = affine(1, wide > 1, [wide, wide + 1], wide)
    assert known is not None and known.stacked.shape == (3, 1, 4, 1) and known.mask.shape == (1, 4, 1)
    assert all(a.base is None or a.base.size <= 12 for a in (known.stacked, known.mask))


@st.composite
def combinations(draw: st.DrawFn) -> Affine:
    """What a rule may say: arrays of any of the shapes that broadcast to one, some numbers not finite."""
    shape, seed = draw(shapes), draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)

    def numbers() -> np.ndarray:
        narrow = tuple(s if draw(st.booleans()) else 1 for s in shape)
        return rng.choice([0.0, 0.0, 1.0, -2.5, np.nan if draw(st.booleans()) else 3.0], narrow)

    terms = tuple(numbers() for _ in range(draw(st.integers(0, 3))))
    mask = np.asarray(rng.random(tuple(s if draw(st.booleans()) else 1 for s in shape)) < 0.6)
    return Affine(0, mask, terms, numbers(), one_hot=draw(st.booleans()))


def said(fact: Affine | None, shape: tuple[int, ...]) -> list[np.ndarray]:
    """The mask, and the numbers where it is true, without terms that are 0 everywhere."""
    if fact is None:
        return [np.zeros(shape, bool)]
    mask = np.broadcast_to(fact.mask, shape)
    arrays = [np.where(mask, np.broadcast_to(a, shape), 0.0) for a in fact.numbers]
    return [mask, arrays[0], *(a for a in arrays[1:] if a.any())] if mask.any() else [mask]


@settings(max_examples=200, deadline=None)
@given(combinations(), st.integers(0, 2**31))
def test_combinations_in_one_array_say_what_they_say_one_by_one(fact: Affine, seed: int) -> None:
    shape = np.broadcast_shapes(fact.mask.shape, *(a.shape for a in fact.numbers))
    rng = np.random.default_rng(seed)
    assert np.array_equal(
        np.stack([np.broadcast_to(a, shape) for a in fact.numbers]),
        np.broadcast_to(fact.stacked, (len(fact.numbers), *shape)),
        equal_nan=True,
    )
    known = np.broadcast_to(fact.mask, shape)
    for term in fact.terms:
        known = known & (term == 0)
    assert np.array_equal(np.broadcast_to(fact.constant, shape), known)
    whole = affine(0, fact.mask, fact.terms, fact.offset, fact.one_hot)
    sound = np.broadcast_to(fact.mask, shape) & np.isfinite(fact.stacked).all(axis=0)
    assert all(map(np.array_equal, said(whole, shape), said(Affine(0, sound, fact.terms, fact.offset), shape)))
    if whole is None:
        return
    mask, value = rng.random(shape) < 0.4, rng.random(shape)
    beside = mask & ~np.broadcast_to(whole.mask, shape)
    for where, found in ((mask, whole.with_constants(mask, value)), (beside, whole.beside(beside, value))):
        assert np.array_equal(np.broadcast_to(found.mask, shape), np.broadcast_to(whole.mask, shape) | where)
        assert np.array_equal(np.broadcast_to(found.offset, shape), np.where(where, value, whole.offset))
        for term, before in zip(found.terms, whole.terms, strict=True):
            assert np.array_equal(np.broadcast_to(term, shape), np.where(where, 0.0, before))
        left = found.mask & ~found.constant
        assert all(
            map(
                np.array_equal,
                said(without_constants(found, left), shape),
                said(compact_affine(0, left, found.stacked, False), shape),
            )
        )
