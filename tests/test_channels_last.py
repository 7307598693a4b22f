"""``apply(channels_last=True)``: the same numbers in another order in memory, all or nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import speedup
from speedup.errors import CheckError
from speedup.testing import mask_indices, masked_copy, randomize

LAST = torch.channels_last


class Net(nn.Module):
    """Convolutions, a table of four axes that is added, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.table = nn.Parameter(torch.ones(1, 6, 8, 8))
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.two(torch.relu(self.one(x))) + self.table
        result: torch.Tensor = self.head(y.mean((2, 3)))
        return result


class Views(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.two(torch.relu(self.one(x))).view(len(x), -1).sum()


def given() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, dtype=torch.float64)


def net(kind: type[Net] = Net) -> Net:
    return randomize(kind()).double().eval()


@pytest.mark.parametrize("biases", [True, False])
def test_a_model_that_is_in_that_format_stays_in_it(biases: bool) -> None:
    """Cut weights, and those with a carrier channel for what masked biases do not cover."""
    model = net().to(memory_format=LAST)
    masks = mask_indices(model, {"one.weight": (1, 5), **({"one.bias": (1, 5)} if biases else {})})
    wanted, x = masked_copy(model, masks), given().to(memory_format=LAST)
    small: Any = speedup.plan(model, x, masks).apply()
    assert small.one.weight.shape[0] == (6 if biases else 8), "other constants stay in front of padding"
    for layer in (small.one, small.two):
        assert layer.weight.is_contiguous(memory_format=LAST) and not layer.weight.is_contiguous()
    assert torch.allclose(small(x), wanted(x), rtol=1e-12, atol=1e-12)


def test_weights_of_convolutions_are_in_that_format_and_the_answers_stay() -> None:
    model = net()
    masks = mask_indices(model, {"one.weight": (1, 5), "one.bias": (1, 5)})
    wanted, x = masked_copy(model, masks), given()
    plan = speedup.plan(model, x, masks)
    small: Any = plan.apply(channels_last=True, verify=True)
    assert plan.report.channels_last == ["one.weight", "two.weight"]
    assert small.one.weight.shape[0] == 6 and "channels last: one.weight, two.weight" in str(plan)
    for layer in (small.one, small.two):
        assert layer.weight.is_contiguous(memory_format=LAST) and not layer.weight.is_contiguous()
    assert small.table.is_contiguous(), "only what a contraction multiplies with"
    assert small.one(x).is_contiguous(memory_format=LAST), "what it makes is in that format too"
    for each in (x, torch.randn(5, 3, 8, 8, dtype=torch.float64)):
        assert torch.allclose(small(each), wanted(each), rtol=1e-12, atol=1e-12)
    assert list(small.state_dict()) == list(wanted.state_dict())


def test_it_goes_with_fusing() -> None:
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).double().eval()
    x = given()
    wanted = model(x)
    masks = mask_indices(model, {"0.weight": ()})
    small: Any = speedup.ModelSpeedup(model, x, masks, fuse=True, channels_last=True).speedup_model()
    assert type(small[1]) is nn.Identity and small[0].weight.is_contiguous(memory_format=LAST)
    assert torch.allclose(small(x), wanted)


def test_training_goes_on() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(given()).sum().backward()
    optimizer.step()
    plan = speedup.plan(model, given(), mask_indices(model, {"one.weight": (1,), "one.bias": (1,)}))
    small: Any = plan.apply(channels_last=True, optimizer=optimizer)
    small(given()).sum().backward()
    optimizer.step()
    assert small.one.weight.is_contiguous(memory_format=LAST)


def test_a_model_that_cannot_run_in_it_is_left_alone() -> None:
    model = net(Views)
    x = given()
    tensors = {n: (id(t), t.data_ptr(), t.stride(), t.clone()) for n, t in model.named_parameters()}
    plan = speedup.plan(model, x, mask_indices(model, {"one.weight": (1, 5), "one.bias": (1, 5)}))
    with pytest.raises(CheckError, match=r"does not run in that format.*view.*reshape or flatten"):
        plan.apply(channels_last=True)
    for name, tensor in model.named_parameters():
        number, at, stride, values = tensors[name]
        assert (id(tensor), tensor.data_ptr(), tensor.stride()) == (number, at, stride) and torch.equal(tensor, values)
    small: Any = plan.apply()
    assert small.one.weight.shape[0] == 6, "the plan is as good as before"
