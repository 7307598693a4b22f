"""Modules whose forward torch.fx has written: traced models, and the feature extractors of torchvision."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor

import speedup
from speedup.testing import mask_indices, masked_copy, randomize

GONE = {"conv.weight": [1, 4], "conv.bias": [1, 4]}
IMAGES = torch.randn(2, 3, 4, 4, dtype=torch.float64)


class Net(nn.Module):
    """A size in the code, and parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(128, 2)
        self.table = nn.Parameter(torch.ones(1, 8, 4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc((self.conv(x) * self.table).view(-1, 128))
        return result


def traced() -> fx.GraphModule:
    return randomize(fx.symbolic_trace(Net())).double().eval()


def test_a_traced_model_keeps_its_repairs_in_copies_and_files(tmp_path: Path) -> None:
    net = traced()
    masks = mask_indices(net, GONE)
    want = masked_copy(net, masks).eval()(IMAGES)
    small = speedup.plan(net, IMAGES, masks).apply()
    assert small.get_parameter("conv.weight").shape[0] == 6 and small.get_parameter("table").shape[1] == 6
    speedup.save(small, tmp_path / "small")
    for other in (
        copy.deepcopy(small),
        copy.copy(small),
        copy.deepcopy(copy.deepcopy(small)),
        pickle.loads(pickle.dumps(small)),
        speedup.load(traced(), tmp_path / "small"),
        fx.symbolic_trace(small),
        small,
    ):
        torch.testing.assert_close(other(IMAGES), want)


@pytest.mark.parametrize("within", [False, True])
def test_a_model_with_a_graph_for_each_mode_keeps_what_its_code_counts(within: bool) -> None:
    """To train, and back again, means to write the forward anew."""
    features: nn.Module = create_feature_extractor(Net(), ["fc"])
    net = randomize(nn.Sequential(features) if within else features).double().eval()
    path = "0." if within else ""
    masks = mask_indices(net, {path + name: gone for name, gone in GONE.items()})
    want = masked_copy(net, masks).eval()(IMAGES)["fc"]
    plan = speedup.plan(net, IMAGES, masks)
    assert "invalid for input of size" in plan.explain(path + "conv")
    small = plan.apply()
    small.train()
    small(IMAGES)
    small.eval()
    torch.testing.assert_close(small(IMAGES)["fc"], want)
    torch.testing.assert_close(copy.deepcopy(small)(IMAGES)["fc"], want)


def test_a_model_with_a_graph_for_each_mode_and_no_sizes_in_its_code_trains() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    net: nn.Module = randomize(create_feature_extractor(layers, ["3"])).double().eval()
    masks = mask_indices(net, {"0.weight": [0, 2]})
    want = masked_copy(net, masks).eval()(IMAGES)["3"]
    small = speedup.plan(net, IMAGES, masks).apply()
    assert small.get_parameter("0.weight").shape[0] == 6
    torch.testing.assert_close(small(IMAGES)["3"], want)
    small.train()
    small(IMAGES)["3"].sum().backward()
