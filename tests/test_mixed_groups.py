"""An axis in groups that an op tells apart, each at places of its own: ``(~g=2 i)``, with an op that no plugin has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup import Registry, Rule, default_registry
from speedup.testing import check_equal, check_rules, mask_indices, randomize


@torch.library.custom_op("mixed_groups::shifted", mutates_args=())
def shifted(x: torch.Tensor, weight: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """A convolution of which each group of channels is moved by as many steps as it is told; zeros come in."""
    steps = steps.round().long().clamp(0, 2)
    groups = x.chunk(len(steps), dim=1)
    moved = [F.pad(part, (int(n), 2 - int(n))) for part, n in zip(groups, steps, strict=True)]
    return F.conv1d(torch.cat(moved, 1), weight)


class Shifted(Rule):
    name = "shifted"
    functions = ("torch.ops.mixed_groups.shifted",)
    call = "x, weight, steps"
    operands = ("x", "weight")
    places = ("steps",)

    def signature(self, node):
        count = node.tensors[node.arg("steps").number].shape[0]
        return f"* (~g={count} i) ~1, o (~g i) ~1 -> * o ~1"

    def uniform(self, node):
        return False


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.weight = nn.Conv1d(3, 8, 1), nn.Conv1d(5, 2, 1), nn.Parameter(torch.randn(5, 8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = shifted(F.softplus(self.conv(x)), self.weight, x.mean((0, 1))[:2].abs() * 3)
        result: torch.Tensor = self.head(y)
        return result


REGISTRY = Registry.from_rules(*default_registry().rules, Shifted())
INPUTS = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("gone", "left"), [([1, 2, 5, 6], 6), ([1, 2, 5], 8), ([1, 2, 3, 5, 6, 7], 4)])
def test_groups_keep_the_same_positions_and_fold_constants_each_for_itself(gone: list[int], left: int) -> None:
    """Behind the softplus what is masked is a constant, the same in both groups: one position carries the others."""
    net = randomize(Net())
    masks = mask_indices(net, {"conv.weight": gone, "conv.bias": gone, "weight": [3]})
    result = check_equal(net, INPUTS, masks, [torch.randn(1, 3, 7), torch.randn(3, 3, 12)], REGISTRY)
    assert result.shape("conv.weight")[0] == left and result.shape("weight") == (4, left, 3)


def test_constants_that_differ_from_group_to_group_stay() -> None:
    net = randomize(Net())
    result = check_equal(net, INPUTS, mask_indices(net, {"conv.weight": [1, 2, 5, 6]}), registry=REGISTRY)
    assert result.shape("conv.weight")[0] == 8


def test_the_rule_is_sound() -> None:
    check_rules(Net, INPUTS, registry=REGISTRY, rules=[REGISTRY.rules[-1]])
