"""Cosines lose what is 0 in both vectors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import check_equal, mask_indices, randomize
from speedup_plugin_reduction.similarity import similarity


class Two(nn.Module):
    """Two layers of 8 units and what is made of them."""

    def __init__(self, body: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.body = nn.Linear(3, 8), nn.Linear(3, 8), body
        randomize(self)
        with torch.no_grad():
            self.a.bias[[0, 3, 5]] = 0
            self.b.bias[[0, 3, 6]] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.a(x), self.b(x))


@pytest.mark.parametrize(
    "body",
    [
        lambda a, b: F.cosine_similarity(a, b, dim=-1),
        lambda a, b: torch.cosine_similarity(a[:, None], x2=b[None], dim=2),
    ],
)
def test_what_is_zero_in_both_goes(body: Callable[..., torch.Tensor]) -> None:
    """What is 0 in one of them counts in the length of the other."""
    model = Two(body)
    masks = mask_indices(model, {"a.weight": [0, 3, 5], "b.weight": [0, 3, 6]})
    result = check_equal(model, torch.randn(4, 3), masks, [torch.randn(7, 3)])
    assert (result.shape("a.weight")[0], result.shape("b.weight")[0]) == (6, 6)


def test_the_parts_are_the_function() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 6, 8, dtype=torch.float64), torch.randn(4, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(similarity(x[:, :1], y, -1), F.cosine_similarity(x[:, :1], y, -1))
    torch.testing.assert_close(similarity(x, 0 * x), F.cosine_similarity(x, 0 * x))
