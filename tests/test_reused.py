"""Layers that are called several times: a constant that is the same in all calls goes into their one bias."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.testing import check_equal, mask_indices, masked_copy, randomize

GONE = [0, 1, 2, 5]


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).double()


class Twice(nn.Module):
    """Two inputs through the same layers; what stands in front of the second one is told by the test."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor] = torch.sigmoid) -> None:
        super().__init__()
        self.first, self.other = nn.Linear(4, 8), nn.Linear(4, 8)
        self.second, self.head = nn.Linear(8, 4), nn.Linear(8, 2)
        self.between = between

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        one = self.second(torch.sigmoid(self.first(x)))
        return self.head(torch.cat([one, self.second(self.between(self.first(y)))], -1))


def test_the_same_constants_in_both_calls() -> None:
    net = randomize(Twice())
    masks = mask_indices(net, {"first.weight": GONE})
    result = check_equal(net, (numbers(2, 4), numbers(2, 4)), masks, [(numbers(3, 4), numbers(3, 4))])
    assert result.shape("first.weight") == (4, 4) and result.shape("second.weight") == (4, 4)
    assert result.shape("second.bias") == (4,)


@pytest.mark.parametrize("between", [torch.tanh, torch.zeros_like, lambda x: x * 0 + 1.5])
def test_other_constants_in_the_second_call_stay(between: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Other numbers, and none: 0 there must not get what the first call loses."""
    net = randomize(Twice(between))
    masks = mask_indices(net, {"first.weight": GONE})
    result = check_equal(net, (numbers(2, 4), numbers(2, 4)), masks)
    assert result.shape("second.weight") == (4, 8)


def test_what_one_call_alone_has_other_numbers_of_stays_alone() -> None:
    class Net(Twice):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            one, two = torch.sigmoid(self.first(x)), torch.sigmoid(self.other(y))
            return self.head(torch.cat([self.second(one), self.second(two)], -1))

    net = randomize(Net())
    with torch.no_grad():
        net.other.bias.copy_(net.first.bias)
        net.other.bias[1] += 0.5
    masks = mask_indices(net, {"first.weight": GONE, "other.weight": [*GONE, 7]})
    result = check_equal(net, (numbers(2, 4), numbers(2, 4)), masks)
    assert result.shape("second.weight") == (4, 5), "1 has two numbers, and 7 is alive once"


def test_a_literal_number_of_steps() -> None:
    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.head = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(5):
                x = x + 0.1 * self.down(torch.tanh(self.up(x)))
            return self.head(x)

    net = randomize(Flow())
    result = check_equal(net, numbers(2, 4), mask_indices(net, {"up.weight": GONE}), [numbers(5, 4)])
    assert result.shape("up.weight") == (4, 4) and result.shape("down.weight") == (4, 4)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_head_that_is_shared_over_levels(kernel: int) -> None:
    """A border of zeros is no constant: under padding all stay."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.tower = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 8, 1)
            self.head = nn.Conv2d(8, 4, kernel, padding=kernel // 2)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            levels = [self.stem(x), F.max_pool2d(self.stem(x), 2)]
            return [self.head(torch.sigmoid(self.tower(level))) for level in levels]

    net = randomize(Heads())
    result = check_equal(net, numbers(2, 3, 17, 17), mask_indices(net, {"tower.weight": GONE}), [numbers(1, 3, 21, 19)])
    assert result.shape("head.weight")[1] == (4 if kernel == 1 else 8)


class Steps(nn.Module):
    """Reads what was two steps before: the first calls read constants that the later ones do not."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.reads, self.head = nn.Linear(3, 8), nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        now = before = torch.sigmoid(self.rows(torch.zeros_like(x[:, 0])))
        out: Any = 0
        for t in range(x.shape[1]):
            out = out + torch.tanh(self.reads(before))
            before, now = now, torch.sigmoid(self.rows(x[:, t])) * (t + 1.5)
        return self.head(out)


@pytest.mark.parametrize("steps", [2, 4])
def test_at_another_length_there_are_further_calls(steps: int) -> None:
    net = randomize(Steps()).double()
    masks = mask_indices(net, {"rows.weight": GONE})
    small = speedup.ModelSpeedup(copy.deepcopy(net), numbers(2, steps, 3), masks).speedup_model()
    masked = masked_copy(net, masks)
    for length in (2, 3, 5):
        x = numbers(2, length, 3)
        torch.testing.assert_close(small(x), masked(x), rtol=1e-10, atol=1e-10)


def test_another_bias_is_another_layer() -> None:
    class Two(Twice):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            one = self.second(torch.sigmoid(self.first(x)))
            return self.head(torch.cat([one, F.linear(torch.sigmoid(self.first(y)), self.second.weight)], -1))

    net = randomize(Two())
    result = check_equal(net, (numbers(2, 4), numbers(2, 4)), mask_indices(net, {"first.weight": GONE}))
    assert result.shape("second.weight") == (4, 8)


def test_each_call_is_looked_at_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loop(nn.Module):
        def __init__(self, times: int) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 8)
            self.times = times

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            for _ in range(self.times):
                x = torch.sigmoid(self.second(x))
            return x

    asked: list[int] = []
    original = speedup.Rule.uniform

    def counted(rule: speedup.Rule, node: speedup.Node) -> bool:
        asked[-1] += 1
        return original(rule, node)

    monkeypatch.setattr(speedup.Rule, "uniform", counted)
    for times in (10, 40):
        asked.append(0)
        net = randomize(Loop(times)).double()
        speedup.plan(net, numbers(2, 4), mask_indices(net, {"first.weight": GONE}))
    assert asked[1] <= 4 * asked[0]
