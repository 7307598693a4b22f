"""The rule is right, whatever is masked; and what can go goes. The plugin must be installed: ``pip install -e .``."""

from __future__ import annotations

import pytest
import torch
from speedup.testing import Case, RuleTests, check_equal, mask_indices, randomize
from torch import nn

from speedup_plugin_kronecker.layers import KroneckerLinear


def network(bias: bool = True) -> nn.Module:
    layers = nn.Linear(5, 12), nn.Sigmoid(), KroneckerLinear(2, 3, 5, 4, bias), nn.ReLU(), nn.Linear(10, 3)
    return nn.Sequential(*layers)


class TestRules(RuleTests):
    """The conformance kit: equal for all kinds of masks, pure, monotone, sound, movable; and what is missing."""

    plugins = ("kronecker",)

    def cases(self) -> dict[str, Case]:
        x, others = torch.randn(4, 5), [torch.randn(2, 3, 5)]
        return {"with bias": Case(network, x, others), "without": Case(lambda: network(False), x, others)}


# Rows of left and right; rows of the layer in front, which has 3 x 4 outputs; columns of the layer behind, 2 x 5.
@pytest.mark.parametrize(
    ("masked", "axis", "left", "right"),
    [
        ({"2.left": [1]}, 0, (1, 3), (5, 4)),
        ({"2.right": [0, 3]}, 0, (2, 3), (3, 4)),
        ({"0.weight": [0, 1, 2, 3]}, 0, (2, 2), (5, 4)),
        ({"0.weight": [0, 4, 8]}, 0, (2, 3), (5, 3)),
        ({"0.weight": [0, 1]}, 0, (2, 3), (5, 4)),  # no whole row of the grid
        ({"4.weight": [0, 1, 2, 3, 4]}, 1, (1, 3), (5, 4)),
        ({"2.left": [0]}, 1, (2, 2), (5, 4)),
    ],
)
def test_what_goes(masked: dict[str, list[int]], axis: int, left: tuple[int, int], right: tuple[int, int]) -> None:
    model = randomize(network())
    result = check_equal(model, torch.randn(4, 5), mask_indices(model, masked, axis), [torch.randn(2, 3, 5)])
    assert (result.shape("2.left"), result.shape("2.right")) == (left, right)
    layer = result.model.get_submodule("2")
    assert layer.in_features == left[1] * right[1] and layer.out_features == left[0] * right[0]


def test_without_a_bias_constants_stay() -> None:
    model = randomize(network(bias=False))
    result = check_equal(model, torch.randn(4, 5), mask_indices(model, {"0.weight": [0, 1, 2, 3]}))
    assert result.shape("2.left") == (2, 3)
    masks = mask_indices(model, {"0.weight": [0, 1, 2, 3], "0.bias": [0, 1, 2, 3]})
    model[1] = nn.ReLU()  # which makes a 0 of 0
    assert check_equal(model, torch.randn(4, 5), masks).shape("2.left") == (2, 2)
