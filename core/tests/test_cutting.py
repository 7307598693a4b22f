"""Cutting along two axes in blocks. What a cut keeps of every fibre is tested in ``test_regular``."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speedup import cutting
from speedup.cutting import cut_indices

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=4),
    st.sampled_from(DTYPES),
    st.integers(0, 2**31),
    st.integers(1, 99),
)
def test_it_is_the_same_as_one_axis_after_the_other(
    shape: list[int], dtype: torch.dtype, seed: int, block: int
) -> None:
    rng = np.random.default_rng(seed)
    tensor = torch.from_numpy(rng.integers(0, 100, shape)).to(dtype).transpose(0, -1)
    axes = rng.permutation(len(shape))[: rng.integers(1, len(shape) + 1)]
    indices = {int(a): np.flatnonzero(rng.random(tensor.shape[a]) < 0.6) for a in axes}
    wanted = tensor
    for axis, kept in indices.items():
        wanted = wanted.index_select(axis, torch.from_numpy(kept))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "_BLOCK", block)
        assert torch.equal(cut_indices(tensor, indices), wanted)


def test_two_cuts_leave_no_more_between_them_than_a_block() -> None:
    tensor = torch.zeros(4096, 1024)  # 16 MiB
    half = {0: np.arange(0, 4096, 2), 1: np.arange(0, 1024, 2)}
    tracemalloc.start()  # NumPy tells it of its memory
    try:
        small = cut_indices(tensor, half)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert small.nbytes <= peak < small.nbytes + cutting._BLOCK + 2**14


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(96, 80), (2, 96, 80), (40, 30, 3, 3), (1600, 1600)])
def test_what_is_large_is_the_same_as_one_by_one(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    numbers = torch.arange(math.prod(shape)) % 251
    tensor = (numbers % 2 == 0 if dtype is torch.bool else numbers.to(torch.uint8).to(dtype)).reshape(shape)
    for way in (tensor, tensor.transpose(0, -1)):
        for axes in ((0,), (1,), (0, 1), (way.ndim - 2, way.ndim - 1)):
            indices = {a: np.flatnonzero(np.arange(way.shape[a]) % 3 > 0) for a in axes}
            wanted = way
            for axis, kept in indices.items():
                wanted = torch.stack([wanted.select(axis, int(k)) for k in kept], axis)
            made = cut_indices(way, indices)
            assert made.dtype == dtype
            assert torch.equal(made.contiguous().view(torch.uint8), wanted.contiguous().view(torch.uint8))
