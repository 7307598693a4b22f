"""Reasons that name what keeps a unit."""

from __future__ import annotations

import torch
from torch import nn

import speedup
from speedup.testing import mask_indices, randomize


class Begun(nn.Module):
    """A cell in a loop that begins with a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.read = nn.LSTMCell(3, 6), nn.Linear(6, 2)
        self.begin = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.begin.expand(len(x), -1)
        c = torch.zeros_like(h)
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
        return self.read(h)


def test_one_cell_has_no_other_to_count_with() -> None:
    model = randomize(Begun()).double().eval()
    rows = [20, 5, 3, 12, 7, 2, 13, 17, 4, 1, 19, 22]
    dropped = {f"cell.{name}": rows for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    masks = mask_indices(model, {**dropped, "begin": [1, 2, 3]})
    plan = speedup.plan(model, torch.randn(2, 4, 3, dtype=torch.float64), masks)
    assert plan.report.reasons
    assert not any("same count" in reason.why for reason in plan.report.reasons)
