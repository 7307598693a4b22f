"""What is made anew of a model, and that it is the same however it is computed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import speedup
from speedup import Registry, Rule, RuleError, carrying, default_registry
from speedup.testing import check_equal, mask_indices, masked_copy, randomize


class Counted(nn.Module):
    """Holds no tensor, and a size."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[-1] == self.features else x


class Shy(nn.Module):
    @property
    def features(self) -> int:
        raise ValueError("not yet")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def registry() -> Registry:
    rule = Rule(name="counted", modules=(Counted, Shy), operands=("input",), axes="* c -> * c", sizes={"features": "c"})
    return Registry.from_rules(*default_registry().rules, rule)


def test_a_module_that_serves_any_size_is_not_made_anew() -> None:
    model: Any = randomize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Counted(8), nn.Linear(8, 3)))
    masks = mask_indices(model, {"0.weight": [1, 4]})
    x = torch.randn(5, 4)
    wanted = masked_copy(model, masks)(x)
    plan = speedup.plan(model, x, masks, registry=registry())
    assert plan._parts is not None and sorted(plan._parts.modules) == ["0", "2", "3"]
    relu = model[1]
    torch.testing.assert_close(plan.apply()(x), wanted)
    assert model[1] is relu and model[2].features == 6


def test_a_size_that_raises_is_told_as_the_fault_of_a_rule() -> None:
    model = randomize(nn.Sequential(nn.Linear(4, 8), Shy(), nn.Linear(8, 3)))
    speedup.plan(model, torch.randn(5, 4), mask_indices(model, {"0.weight": []}), registry=registry())
    with pytest.raises(RuleError, match=r"'counted' at 1 .*not yet"):
        speedup.plan(model, torch.randn(5, 4), mask_indices(model, {"0.weight": [1, 4]}), registry=registry())


class Product(nn.Module):
    """Has no bias, and says so with an attribute that torch does not know of."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(inputs, outputs))
        self.shift = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.kernel
        return y if self.shift is None else y + self.shift


def test_a_layer_gains_a_bias_under_the_name_of_an_attribute() -> None:
    model: Any = randomize(nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), Product(8, 5), nn.ReLU(), nn.Linear(5, 3)))
    rule = Rule(
        name="product",
        modules=(Product,),
        operands=("input", "kernel", "shift"),
        axes="* i, i o, o? -> * o",
        bias="shift",
    )
    masks, rules = mask_indices(model, {"0.weight": [1, 4]}), Registry.from_rules(*default_registry().rules, rule)
    result: Any = check_equal(model, torch.randn(5, 4), masks, [torch.randn(1, 4)], registry=rules)
    assert result.plan.report.gained == ["2.shift"] and result.model[2].shift.shape == (5,)
    assert result.shape("2.kernel") == (6, 5) and model[2].shift is None


def test_what_is_cut_is_no_part_of_a_graph_of_gradients() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    plan = speedup.plan(model, torch.randn(5, 4), mask_indices(model, {"0.weight": [1], "0.bias": [1]}))
    for value in plan.graph.sources:
        assert value.tensor is not None and value.tensor.requires_grad
        assert not plan.keeps.cut(value, value.tensor).requires_grad or plan.keeps.whole(value)


def test_a_parameter_that_is_registered_as_a_buffer_stays_one() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
            del self.norm._buffers["running_mean"]
            self.norm.register_buffer("running_mean", nn.Parameter(torch.zeros(8), requires_grad=False))
            self.register_buffer("scale", nn.Parameter(torch.ones(8)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.last(torch.relu(self.norm(self.first(x))) * self.scale)
            return made

    model = randomize(Scaled()).eval()
    masks, x, names = mask_indices(model, {"first.weight": [1, 4]}), torch.randn(5, 4), list(model.state_dict())
    wanted = masked_copy(model, masks)(x)
    torch.testing.assert_close(speedup.plan(model, x, masks).apply()(x), wanted)
    buffers = dict(model.named_buffers())
    assert list(model.state_dict()) == names
    for name, is_trained in {"scale": True, "norm.running_mean": False}.items():
        assert isinstance(buffers[name], nn.Parameter) and buffers[name].requires_grad is is_trained
        assert buffers[name].shape == (6,)


CONVS = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, (3, 2), padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1))
GROUPS = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1, groups=2), nn.Conv2d(6, 4, 1))
SPREAD = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, padding=1), nn.Conv2d(6, 4, 1))
NORMED = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4))


@pytest.mark.parametrize("net", [CONVS, GROUPS, SPREAD, NORMED], ids=["plain", "groups", "transposed", "norm"])
def test_what_carries_is_the_same_where_torch_computes_it(net: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomize(copy.deepcopy(net).double())
    first: Any = model[0]
    inputs = torch.randn(2, first.weight.shape[1], *[9] * (first.weight.ndim - 2), dtype=torch.float64)
    masks = mask_indices(model, {"0.weight": [1, 2, 5, 6]})
    wanted = masked_copy(model, masks)(inputs)
    made = []
    for by_numpy in (carrying.by_numpy, lambda tensor: False):
        monkeypatch.setattr(carrying, "by_numpy", by_numpy)
        small = speedup.plan(copy.deepcopy(model), inputs, masks).apply()
        torch.testing.assert_close(small(inputs), wanted, rtol=1e-12, atol=1e-12)
        made.append(small.state_dict())
    assert any(tensor.shape != model.state_dict()[name].shape for name, tensor in made[0].items())
    for name, tensor in made[0].items():
        torch.testing.assert_close(tensor, made[1][name], rtol=1e-12, atol=1e-14)
