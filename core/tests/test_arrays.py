"""Arrays of truth values: reductions are those of NumPy, whatever way they are made."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from speedup.arrays import all_of, any_of


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 2, 3), (3, 2, 0, 1)])
@pytest.mark.parametrize(
    "shape", [(5, 4, 3, 3), (64, 80, 3, 3), (64, 1, 9, 70), (2, 0, 3, 3), (1001, 56, 1, 1), (30, 129, 9, 1)]
)
def test_any_and_all_are_those_of_numpy(shape: tuple[int, ...], order: tuple[int, ...]) -> None:
    """Arrays with few entries and many, along few of them and many, as they lie in memory and not."""
    random = np.random.default_rng(0)
    for share in (0.001, 0.1, 0.9, 0.999):
        array = (random.random(shape) < share).transpose(order)
        for axes in (a for n in range(5) for a in itertools.combinations(range(4), n)):
            for found, wanted in ((any_of, np.any), (all_of, np.all)):
                got = found(array, axes)
                assert got.dtype == bool
                np.testing.assert_array_equal(got, wanted(array, axis=axes, keepdims=True) if axes else array)
