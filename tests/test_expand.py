"""Modules that run in parts while the model is traced: nothing else may notice."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup import Call, Expanded, Expansion, Registry, RuleError, default_registry
from speedup.testing import check_equal, mask_indices, randomize


class Gate(nn.Module):
    """Its own forward holds a size, and hides what it does behind numpy."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(2 * width, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.from_numpy(x.detach().numpy() @ self.weight.detach().numpy().T)
        return x[..., : self.width] * x[..., self.width :].sigmoid()


class GateForward(Expanded):
    weight: torch.Tensor
    width: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, gate = torch.split(F.linear(x, self.weight), self.width, -1)
        return x * gate.sigmoid()


class InParts(Expansion):
    name = "gate"
    forwards = {Gate: GateForward}  # noqa: RUF012
    fails = False
    needed = True

    def settle(self, module: nn.Module, path: str, calls: Sequence[Call]) -> bool:
        if self.fails:
            raise ValueError("no")
        last = calls[-1].shapes[-1]
        assert last is not None
        module.width = last[-1]  # type: ignore[assignment]
        return self.needed


def net(*layers: nn.Module) -> nn.Module:
    return randomize(nn.Sequential(Gate(4, 6), *layers, nn.Linear(6, 2)))


def registry(rule: Expansion) -> Registry:
    return Registry.from_rules(*default_registry().rules, rule)


MASKS = {"0.weight": [1, 3, 7]}
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("needed", [True, False])
def test_a_small_module_keeps_the_forward_if_it_needs_it(needed: bool) -> None:
    rule = InParts()
    rule.needed = needed
    model = net()
    result = check_equal(model, X, mask_indices(model, MASKS), [X[:1]], registry(rule))
    small = result.model[0]
    assert result.shape("0.weight") == (8, 4) and small.width == 4
    assert isinstance(small, Gate) and isinstance(small, Expanded) == needed
    assert type(small).__name__ == "Gate" and type(model[0]) is Gate


def test_other_modules_stay_as_they_are() -> None:
    model = net(nn.Linear(6, 8), Gate(8, 6))
    result = check_equal(model, X, mask_indices(model, {"2.weight": [0, 6]}), registry=registry(InParts()))
    assert type(result.model[0]) is Gate and type(result.model[2]) is not Gate
    assert result.shape("2.weight") == (10, 8)


def test_planning_leaves_the_class_alone() -> None:
    model = net().eval()
    masks = mask_indices(model, MASKS)
    plan = speedup.plan(model, X, masks, registry=registry(InParts()))
    assert type(model[0]) is Gate and model[0].width == 6
    other = copy.deepcopy(model)
    plan.apply(other)
    assert type(model[0]) is Gate and other[0].width == 4


def test_a_rule_that_raises_leaves_the_model_alone() -> None:
    rule = InParts()
    rule.fails = True
    model = net().eval()
    before = model(X)
    with pytest.raises(RuleError, match="rule 'gate' raised in settle at 0"):
        speedup.plan(model, X, mask_indices(model, MASKS), registry=registry(rule))
    assert type(model[0]) is Gate and torch.equal(model(X), before)


def test_a_small_module_becomes_smaller_again() -> None:
    model: Any = net().eval()
    speedup.ModelSpeedup(model, X, mask_indices(model, MASKS), registry=registry(InParts())).speedup_model()
    again = check_equal(model, X, mask_indices(model, {"0.weight": [0]}), registry=registry(InParts()))
    assert again.shape("0.weight") == (6, 4) and again.model[0].width == 3


def test_a_forward_of_the_instance_is_not_touched() -> None:
    model: Any = net().eval()
    model[0].forward = model[0].forward
    plan = speedup.plan(model, X, mask_indices(model, MASKS), registry=registry(InParts()))
    assert plan.report.parameters[0] == plan.report.parameters[1]
