"""Nested tensors, lists of tensors of several sizes: what reads them stays whole, and all else goes on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speedup.testing import check_equal, mask_indices, random_masks, randomize


class Texts(nn.Module):
    """Texts of several lengths: in front each for itself, then nested, behind padded."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.before, self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 4)
        self.behind, self.out, self.layout = nn.Linear(4, 8), nn.Linear(8, 2), layout

    def forward(self, texts: list[torch.Tensor]) -> torch.Tensor:
        nested = torch.nested.nested_tensor([self.before(t).relu() for t in texts], layout=self.layout)
        padded = torch.nested.to_padded_tensor(self.second(self.first(nested).relu()), 0.0)
        return self.out(self.behind(padded).relu())


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_layers_around_them_become_smaller(layout: torch.layout) -> None:
    model = randomize(Texts(layout))
    few, many = [[torch.randn(n, 5) for n in lengths] for lengths in ((3, 5), (2, 1, 4))]
    result = check_equal(model, (few,), mask_indices(model, {"behind.weight": [0, 3], "first.weight": [1]}), [(many,)])
    assert result.shape("out.weight") == (2, 6) and result.shape("first.weight") == (6, 8)
    for kind in ("filters+biases", "fine", "mixed"):
        check_equal(model, (few,), random_masks(model, 0, kind), [(many,)])
