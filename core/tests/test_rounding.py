"""How far two tensors are from each other, and their largest entry: the short way says what the long one says."""

from __future__ import annotations

import math

import pytest
import torch

from speedup.rounding import distance, largest_entry

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("a", "b", "error", "largest"),
    [
        ([1.0, -5.0], [1.5, -5.0], 0.5, 5.0),
        ([1.0, NAN], [1.25, NAN], 0.25, 1.0),
        ([INF, 2.0], [INF, 2.0], 0.0, 2.0),
        ([INF, 2.0], [-INF, 2.0], INF, 2.0),
        ([INF, -3.0], [4.0, -3.0], INF, 3.0),
        ([1.0, 2.0], [1.0, NAN], INF, 2.0),
        ([1e308, 0.0], [-1e308, 0.0], INF, 1e308),
        ([NAN], [NAN], 0.0, 0.0),
        ([], [], 0.0, 0.0),
    ],
)
def test_what_is_not_finite_is_equal_to_itself_alone(
    a: list[float], b: list[float], error: float, largest: float
) -> None:
    one, other = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    assert distance(one, other) == (error, largest)
    assert largest_entry(one) == largest


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_the_largest_entry_of_every_float_type(dtype: torch.dtype) -> None:
    assert largest_entry(torch.tensor([[1.0, -2.0], [0.5, 0.0]]).to(dtype)) == 2.0


@pytest.mark.parametrize("tensor", [torch.tensor([3]), torch.tensor([True]), torch.tensor([3.0 + 4.0j])])
def test_other_types_have_none(tensor: torch.Tensor) -> None:
    assert largest_entry(tensor) == 0.0
