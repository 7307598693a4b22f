"""constants="drop": smaller than exact, other outputs, and a report that says which and by how much."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.testing import mask_indices, masked_copy, randomize


class Net(nn.Module):
    """Two outputs, of which the second depends on no masked layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1)
        self.other = nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.b(F.relu(self.n(self.a(x)))), self.other(x)


def case() -> tuple[nn.Module, torch.Tensor, Any]:
    model = randomize(Net(), 1).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return model, x, mask_indices(model, {"a.weight": [0, 2, 3, 6]})


def test_no_carrier_stays_and_the_report_tells_which_output_changes() -> None:
    model, x, masks = case()
    exact = speedup.plan(copy.deepcopy(model), x, masks)
    plan = speedup.plan(model, x, masks, constants="drop")
    assert exact.apply().a.weight.shape[0] == 5
    assert [(d.name, d.outputs) for d in plan.report.dropped] == [("b (torch.nn.Conv2d)", (0,))]
    wanted = masked_copy(model, masks)(x)
    small = plan.apply()
    assert small.a.weight.shape[0] == small.b.weight.shape[1] == 4
    assert small.b.bias.shape == (4,)
    got = small(x)
    moved = float((wanted[0] - got[0]).abs().max() / wanted[0].abs().max())
    assert moved > 1e-3 and torch.equal(wanted[1], got[1])
    assert plan.report.changes == pytest.approx([moved, 0.0])
    assert "output 0 by" in str(plan) and "output 1" not in str(plan)
    assert plan.to_dict()["dropped"][0]["outputs"] == (0,)
    assert exact.report.dropped == [] and "dropped" not in str(exact)


def test_nothing_is_dropped_where_masked_channels_are_zero() -> None:
    model, x, masks = case()
    masks |= mask_indices(model, {"a.bias": [0, 2, 3, 6], "n.weight": [0, 2, 3, 6], "n.bias": [0, 2, 3, 6]})
    masks["a"] |= mask_indices(model, {"a.weight": [0, 2, 3, 6]})["a"]
    plan = speedup.plan(model, x, masks, constants="drop")
    assert plan.report.dropped == [] and max(plan.report.changes) < 1e-12


def test_the_front_door_passes_it_on_and_refuses_to_verify() -> None:
    model, x, masks = case()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(speedup.InputError, match="drop"):
        speedup.ModelSpeedup(model, x, masks, constants="drop", verify=True).speedup_model()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert speedup.ModelSpeedup(model, x, masks, constants="drop").speedup_model().a.weight.shape[0] == 4


def test_another_word_is_refused() -> None:
    model, x, masks = case()
    wrong: Any = "keep"
    with pytest.raises(speedup.InputError, match="'exact' or 'drop'"):
        speedup.plan(model, x, masks, constants=wrong)
