"""Windows of one entry along the axis that holds the channels, as people pool over the words of a text."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import check_equal, mask_indices, random_masks, randomize


class Text(nn.Module):
    def __init__(self, pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.words, self.pool, self.out = nn.Linear(5, 8), pool, nn.Linear(8, 3)
        randomize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.pool(self.words(x)))


POOLS = {
    "Lp": nn.LPPool2d(2, (2, 1)),
    "average of all": lambda x: F.avg_pool2d(x, (x.shape[1], 1)).squeeze(1),
    "maximum of all": lambda x: F.max_pool2d(x[:, None], (x.shape[1], 1)).flatten(1),
    "of two": nn.AvgPool2d((2, 1), padding=(1, 0)),
    "of three": nn.MaxPool3d((3, 1, 1), 1, (1, 0, 0), ceil_mode=True),
}


@pytest.mark.parametrize("name", POOLS)
def test_channels_pass(name: str) -> None:
    model = Text(POOLS[name])
    shape = (2, 4, 6, 5) if name == "of three" else (2, 6, 5)
    result = check_equal(
        model, torch.randn(shape), mask_indices(model, {"words.weight": [0, 3, 6]}), [torch.randn(shape)]
    )
    assert result.shape("out.weight") == (3, 6 if name == "of two" else 5)  # where zeros count one carries constants
    for seed in range(3):
        check_equal(model, torch.randn(shape), random_masks(model, seed, "mixed"), [torch.randn(shape)])


def test_they_do_not_pass_other_windows() -> None:
    for pool in (
        nn.AvgPool2d((2, 1), 2),
        nn.AvgPool2d(1, padding=0, stride=(1, 2)),
        nn.MaxPool2d((2, 3), (2, 1), (0, 1)),
    ):
        model = Text(lambda x, pool=pool: F.interpolate(pool(x[:, None]), (3, 8))[:, 0])
        for seed in range(3):
            check_equal(model, torch.randn(2, 6, 5), random_masks(model, seed, "mixed"))


def test_positions_count_along_all_sides() -> None:
    model = Text(lambda x: F.max_pool2d(x[:, None], (2, 1), return_indices=True)[1].flatten(2).double()[..., :8])
    check_equal(model, torch.randn(2, 6, 5), mask_indices(model, {"words.weight": [0, 3], "words.bias": [0, 3]}))
