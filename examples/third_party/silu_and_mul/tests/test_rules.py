"""The rule is right, whatever is masked; and what can go goes. The plugin must be installed: ``pip install -e .``."""

from __future__ import annotations

import pytest
import torch
from speedup.testing import Case, RuleTests, check_equal, mask_indices, randomize
from torch import nn

from speedup_plugin_silu_and_mul.layers import silu_and_mul


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 12), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(silu_and_mul(self.up(x)))


class TestRules(RuleTests):
    """The conformance kit: equal for all kinds of masks, pure, monotone, sound, movable; and what is missing."""

    plugins = ("silu-and-mul",)
    missing_ok = False

    def cases(self) -> dict[str, Case]:
        return {"feed forward": Case(FeedForward, torch.randn(4, 5), [torch.randn(2, 3, 5)])}


@pytest.mark.parametrize(
    ("rows", "columns", "left"),
    [
        ([0, 1, 2, 6, 7, 8], [], 3),  # gates and their values
        ([0, 1, 8], [], 3),  # a gate of 0, or a value of 0: the other is not read
        ([], [5], 5),
    ],
)
def test_what_goes(rows: list[int], columns: list[int], left: int) -> None:
    model = randomize(FeedForward())
    masks = mask_indices(model, {"up.weight": rows, "up.bias": rows})
    masks |= mask_indices(model, {"down.weight": columns}, axis=1)
    result = check_equal(model, torch.randn(4, 5), masks, [torch.randn(2, 3, 5)])
    assert (result.shape("up.weight"), result.shape("down.weight")) == ((2 * left, 5), (3, left))
