"""Regular sets: growing to one, its shape, and cutting it out of a tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speedup.cutting import cut
from speedup.regular import hull, is_box, is_regular, kept_shape, ragged_axis, regularize

Shape = tuple[int, ...]

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@st.composite
def sets(draw: st.DrawFn) -> np.ndarray:  # type: ignore[type-arg]
    """Random sets that hold something."""
    shape = draw(shapes)
    density = draw(st.sampled_from((0.1, 0.4, 0.7, 1.0)))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    keep: np.ndarray = rng.random(shape) < density  # type: ignore[type-arg]
    keep.flat[rng.integers(keep.size)] = True
    return keep


@settings(max_examples=150, deadline=None)
@given(sets())
def test_regularize_gives_a_regular_set_that_contains_the_old_one(keep: np.ndarray) -> None:  # type: ignore[type-arg]
    grown = regularize(keep)
    assert is_regular(grown)
    assert not (keep & ~grown).any()
    assert not (grown & ~hull(keep)).any(), "it fills up with indices that other fibres keep"


@settings(max_examples=100, deadline=None)
@given(sets())
def test_regularize_is_idempotent(keep: np.ndarray) -> None:  # type: ignore[type-arg]
    once = regularize(keep)
    assert np.array_equal(regularize(once), once)


@settings(max_examples=100, deadline=None)
@given(sets())
def test_regularize_leaves_boxes_and_the_empty_set_alone(keep: np.ndarray) -> None:  # type: ignore[type-arg]
    box = hull(keep)
    assert is_box(box)
    assert np.array_equal(regularize(box), box)
    empty = np.zeros_like(keep)
    assert not regularize(empty).any()


# Ragged along its first axis alone, or along its last and then its first.
TWO_WAYS = [[[1, 0], [0, 0], [0, 0]], [[0, 1], [0, 1], [0, 0]], [[0, 0], [1, 0], [0, 0]]]


@settings(max_examples=150, deadline=None)
@given(sets(), st.integers(0, 2**31))
@example(np.array(TWO_WAYS, dtype=bool), 0)
def test_a_cut_keeps_exactly_the_kept_entries_of_every_fibre_in_their_order(
    keep: np.ndarray,  # type: ignore[type-arg]
    seed: int,
) -> None:
    keep = regularize(keep)
    tensor = torch.from_numpy(np.random.default_rng(seed).random(keep.shape))
    small = cut(tensor, keep)
    assert tuple(small.shape) == kept_shape(keep, keep.shape)
    axis = ragged_axis(keep)
    axis = keep.ndim - 1 if axis is None else axis
    fibres = np.moveaxis(keep, axis, -1).reshape(-1, keep.shape[axis])
    entries = np.moveaxis(tensor.numpy(), axis, -1).reshape(-1, keep.shape[axis])
    wanted = np.stack([e[f] for e, f in zip(entries, fibres, strict=True) if f.any()])
    assert np.array_equal(np.moveaxis(small.numpy(), axis, -1).reshape(wanted.shape), wanted)


@settings(max_examples=80, deadline=None)
@given(sets(), st.data())
def test_axes_that_are_not_written_out_are_kept_whole(keep: np.ndarray, data: st.DataObject) -> None:  # type: ignore[type-arg]
    keep = regularize(keep)
    shape = tuple(s if s > 1 else data.draw(st.integers(1, 3)) for s in keep.shape)
    tensor = torch.arange(float(np.prod(shape))).reshape(shape)
    whole = regularize(np.broadcast_to(keep, shape).copy())
    assert torch.equal(cut(tensor, keep), cut(tensor, whole))
    assert kept_shape(keep, shape) == kept_shape(whole, shape)


def test_a_ragged_set_has_equal_counts_at_different_positions() -> None:
    keep = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
    assert ragged_axis(keep) == 1 and not is_box(keep)
    assert kept_shape(keep, (3, 4)) == (2, 2)
    tensor = torch.arange(12.0).reshape(3, 4)
    assert cut(tensor, keep).tolist() == [[0, 2], [5, 6]]


def test_a_shortfall_is_filled_with_what_other_fibres_keep() -> None:
    keep = np.array([[0, 0, 1, 1], [0, 0, 0, 1]], dtype=bool)
    assert regularize(keep).tolist() == [[False, False, True, True], [False, False, True, True]]


def test_an_empty_fibre_stays_empty() -> None:
    keep = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=bool)
    assert regularize(keep).sum(axis=1).tolist() == [3, 0, 3]


def test_a_set_without_equal_counts_is_not_regular() -> None:
    keep = np.array([[1, 1, 0], [0, 1, 0]], dtype=bool)
    assert not is_regular(keep)
    with pytest.raises(ValueError, match="not a regular set"):
        ragged_axis(keep)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.bool, torch.complex64])
def test_a_cut_keeps_the_dtype_and_is_a_new_tensor(dtype: torch.dtype) -> None:
    tensor = torch.ones(4, 3, dtype=dtype)
    keep = np.array([1, 0, 1, 1], dtype=bool).reshape(4, 1)
    small = cut(tensor, keep)
    assert small.dtype == dtype and small.shape == (3, 3)
    small.zero_()
    assert bool(tensor.to(torch.complex64).abs().min() == 1)


def test_a_set_may_be_ragged_along_one_axis_after_the_other() -> None:
    """A matrix per group, with rows and columns of its own: cut as each group's matrix would be."""
    rows = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 0]], bool)
    columns = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 0]], bool)
    keep = rows[:, :, None] & columns[:, None, :]
    tensor = torch.arange(36.0).reshape(3, 3, 4)
    small = cut(tensor, keep)
    assert tuple(small.shape) == kept_shape(keep, (3, 3, 4)) == (2, 2, 2)
    for n in range(2):
        assert torch.equal(small[n], tensor[n][rows[n]][:, columns[n]])
