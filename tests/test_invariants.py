"""The promises, one by one, on small models whose answer is known; random networks are in test_random_graphs.py."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.testing import check_equal, mask_indices, masked_copy, randomize


class Net(nn.Module):
    """A bit of everything: residual, groups, norm, squeeze-excite, a raw parameter, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.block = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Conv2d(8, 8, 1)
        )
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)
        self.gain = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.drop = nn.Dropout()
        self.boxes, self.classes = nn.Conv2d(8, 4, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = F.relu(self.norm(self.stem(x)))
        y = y + self.block(y)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))
        y = self.drop(y * gate[:, :, None, None] * self.gain)
        return {"boxes": self.boxes(y), "classes": self.classes(F.adaptive_max_pool2d(y, 1).flatten(1))}


GIVEN = (2, 3, 8, 8)
ALIGNED = (1, 3, 4, 6)  # two in each half, as the grouped convolution wants


def aligned(model: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """Channels that are dead in every layer that makes them, constants and all."""
    rows = {n: ALIGNED for n in ("stem.weight", "norm.weight", "norm.bias", "block.3.weight", "block.3.bias")}
    return mask_indices(model, {**rows, "squeeze.weight": (0,)})


def net() -> Net:
    return randomize(Net()).eval()


def test_what_lines_up_goes_from_every_layer_of_the_residual_stream() -> None:
    model = net()
    others = [torch.randn(1, 3, 8, 8), torch.randn(4, 3, 13, 10)]
    result = check_equal(model, torch.randn(*GIVEN), aligned(model), others)
    assert result.shape("stem.weight")[0] == 4 and result.shape("block.3.weight")[0] == 4
    assert result.shape("gain") == (1, 4, 1, 1) and result.shape("classes.weight") == (5, 4)
    assert result.shape("boxes.weight") == (4, 4, 1, 1) and result.shape("block.0.weight")[1] == 2


def test_unaligned_masks_are_as_exact() -> None:
    model = net()
    rows = {"stem.weight": (0, 2, 5), "block.0.weight": (1, 6), "block.3.weight": (2, 3), "excite.weight": (7,)}
    masks = {**mask_indices(model, rows), **mask_indices(model, {"gain": (0,)}, axis=1)}
    result = check_equal(model, torch.randn(*GIVEN), masks, [torch.randn(3, 3, 11, 9)])
    assert result.shape("block.0.weight")[0] == 6 and result.shape("block.3.weight")[1] == 6, "folded into a bias"
    assert result.shape("gain") == (1, 8, 1, 1), "the residual stream is read as a whole"


def test_outputs_keep_their_shape_whatever_is_masked() -> None:
    model = net()
    masks = mask_indices(model, {"boxes.weight": (0, 1, 2), "boxes.bias": (0, 1, 2), "classes.weight": (0, 4)})
    small = speedup.ModelSpeedup(model, torch.randn(*GIVEN), masks).speedup_model()
    out = small(torch.randn(*GIVEN))
    assert out["boxes"].shape == (2, 4, 8, 8) and out["classes"].shape == (2, 5)
    assert bool((out["boxes"][:, :3] == 0).all())


def test_a_bias_is_not_added_for_less_than_it_costs() -> None:
    """Never larger: a removed constant may need a new bias, which must not cost more than what goes."""
    model = randomize(nn.Sequential(nn.Linear(1, 2, bias=False), nn.Sigmoid(), nn.Linear(2, 50, bias=False))).eval()
    masks = mask_indices(model, {"0.weight": (0,)})
    result = check_equal(model, torch.randn(3, 1), masks)
    assert result.plan.report.parameters[1] <= result.plan.report.parameters[0]
    wide = randomize(nn.Sequential(nn.Linear(1, 2, bias=False), nn.Sigmoid(), nn.Linear(2, 1, bias=False))).eval()
    check_equal(wide, torch.randn(3, 1), mask_indices(wide, {"0.weight": (0,)}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precisions_agree_up_to_their_rounding(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    reference = masked_copy(model, aligned(model))
    x = torch.randn(*GIVEN).to(dtype)
    small = speedup.ModelSpeedup(model, x, aligned(model)).speedup_model()
    for a, b in zip(small(x).values(), reference(x).values(), strict=True):
        assert a.dtype == dtype
        a, b = a.detach(), b.detach()
        assert float((a - b).abs().max()) <= 40 * torch.finfo(dtype).eps * float(b.abs().max())


def test_equality_is_about_eval_mode_and_the_model_stays_in_train_mode() -> None:
    model = net().train()
    reference = masked_copy(model, aligned(model)).eval()
    small = speedup.ModelSpeedup(model, torch.randn(*GIVEN), aligned(model)).speedup_model()
    assert all(m.training for m in small.modules())
    x = torch.randn(*GIVEN)
    for a, b in zip(small.eval()(x).values(), reference(x).values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_running_statistics_are_kept_and_cut_not_updated() -> None:
    model = net().train()
    mean, steps = model.norm.running_mean.clone(), model.norm.num_batches_tracked.clone()  # type: ignore[union-attr, operator]
    small: Any = speedup.ModelSpeedup(model, torch.randn(*GIVEN), aligned(model)).speedup_model()
    kept = [c for c in range(8) if c not in ALIGNED]
    assert torch.equal(small.norm.running_mean, mean[kept]) and torch.equal(small.norm.num_batches_tracked, steps)


def test_the_answer_does_not_depend_on_the_dummy_inputs_numbers() -> None:
    plans = []
    for scale in (0.0, 1.0, -100.0):
        model = net()
        plans.append(speedup.plan(model, torch.full(GIVEN, scale), aligned(model)).to_dict())
    assert plans[0] == plans[1] == plans[2]


def test_a_dummy_input_of_zeros_makes_nothing_constant() -> None:
    model = net()
    masks = mask_indices(model, {"stem.weight": (1,)})
    small = speedup.ModelSpeedup(model, torch.zeros(1, 3, 4, 4), masks).speedup_model()
    reference = masked_copy(net(), masks)
    x = torch.randn(3, 3, 9, 9)
    for a, b in zip(small(x).values(), reference(x).values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_applying_to_a_model_with_other_weights_is_planned_for_those_weights() -> None:
    model = net()
    plan = speedup.plan(model, torch.randn(*GIVEN), aligned(model))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    reference = masked_copy(other, aligned(other))
    x = torch.randn(*GIVEN)
    small = plan.apply(other)
    for a, b in zip(small(x).values(), reference(x).values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_another_process_gives_the_same_plan() -> None:
    """No order of a set or of memory addresses may decide anything."""
    script = (
        "import json, torch, speedup\n"
        "from tests.test_invariants import GIVEN, net, aligned\n"
        "model = net()\n"
        "print(json.dumps(speedup.plan(model, torch.ones(GIVEN), aligned(model)).to_dict()))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    here = speedup.plan(net(), torch.ones(GIVEN), aligned(net())).to_dict()
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(json.dumps(here))
