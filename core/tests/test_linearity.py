"""Combinations of unknowns through pointwise calls, which see all unknowns next to each other where they can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from speedup import Floats, Node, Registry, Rule, default_registry
from speedup.testing import check_equal, mask_indices, randomize


class Bend(nn.Module):
    """A layer that the tests' own rules claim."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * x + 0.25


class Bending(Rule):
    """Notes the shapes that it is asked about."""

    name = "bend"
    modules = (Bend,)
    axes = "* -> *"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        (x,) = arrays
        assert x is not None
        self.seen.append(x.shape)
        return self.result(x)

    def result(self, x: Floats) -> Sequence[Floats] | None:
        return [np.tanh(x) * x + 0.25]


class Raising(Bending):
    def result(self, x: Floats) -> Sequence[Floats] | None:
        if x.shape[0] not in (1, 2):
            raise ValueError("these are no sizes of mine")
        return super().result(x)


class Shaping(Bending):
    """Gives one row, whatever comes."""

    def result(self, x: Floats) -> Sequence[Floats] | None:
        return super().result(x[:1])


class Mixing(Bending):
    """Looks at all rows for each."""

    def result(self, x: Floats) -> Sequence[Floats] | None:
        found = super().result(x)
        assert found is not None
        return [found[0] + (len(x) > 2)]


class Rounding(Bending):
    """Computes the last row in another way, as a kernel does with what is left of its steps."""

    def result(self, x: Floats) -> Sequence[Floats] | None:
        found = super().result(x)
        assert found is not None
        if len(x) > 2:
            found[0][-1] = np.nextafter(found[0][-1], np.inf)
        return found


class Silent(Bending):
    def result(self, x: Floats) -> Sequence[Floats] | None:
        return None if len(x) > 2 else super().result(x)


def padded(middle: nn.Module) -> nn.Sequential:
    """Constants under padding differ at the borders: an unknown for each kind of place."""
    return nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), middle, nn.BatchNorm2d(8), nn.SiLU(),
        nn.Conv2d(8, 3, 1),
    )  # fmt: skip


def reduced(rule: Rule | None, middle: nn.Module) -> tuple[Any, tuple[int, ...]]:
    """What the small model is like, checked against the masked one, and the size of its last weight."""
    model = randomize(padded(middle)).double()
    masks = mask_indices(model, {"0.weight": [1, 2, 5]})
    rules = default_registry() if rule is None else Registry.from_rules(*default_registry().rules, rule)
    result = check_equal(model, torch.randn(2, 2, 6, 7, dtype=torch.float64), masks, registry=rules)
    return result, result.shape("5.weight")


def test_all_unknowns_stand_next_to_each_other() -> None:
    rule = Bending()
    _, shape = reduced(rule, Bend())
    assert max(s[0] for s in rule.seen) == 16, "15 kinds of borders, and the inside"
    assert sum(s[0] == 16 for s in rule.seen) == 1 and len(rule.seen) < 8
    assert shape[1] == reduced(None, nn.Tanh())[1][1]


@pytest.mark.parametrize("kind", [Raising, Shaping, Mixing, Rounding, Silent])
def test_a_rule_that_counts_on_the_sizes_there_are_is_asked_one_by_one(kind: type[Bending]) -> None:
    usual, shape = reduced(Bending(), Bend())
    rule = kind()
    result, also = reduced(rule, Bend())
    assert also == shape and sum(s[0] == 1 for s in rule.seen) > 15
    for name in ("1.weight", "5.weight"):
        assert result.shape(name) == usual.shape(name)


@pytest.mark.parametrize("count", [1, 2])
def test_unknowns_of_two_tensors_that_are_joined(count: int) -> None:
    """A sum of two norms: their unknowns are told apart, whether the batch may stand for them or not."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = (nn.Sequential(nn.Linear(3, 16), nn.LayerNorm(16)) for _ in range(2))
            self.last = nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.last(self.one(x) * 2 - self.two(x))
            return result

    model = randomize(Joined()).double()
    masks = mask_indices(model, {"one.0.weight": range(4, 14), "two.0.weight": range(3, 12)})
    result = check_equal(model, torch.randn(count, 3, dtype=torch.float64), masks)
    assert result.shape("last.weight") == (2, 12), "8 are known of both, of which 4 carry: mean and deviation of each"
