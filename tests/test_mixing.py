"""Channels that are shuffled and divided again: which of them can go together, and that they go."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.groups.mixing import _chosen
from speedup.testing import check_equal, randomize

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
OTHER = torch.randn(3, 3, 5, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_view(x: torch.Tensor) -> torch.Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


def by_function(x: torch.Tensor) -> torch.Tensor:
    return F.channel_shuffle(x, 2)


def by_slices(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]


class Branch(nn.Sequential):
    def __init__(self, size: int, width: int) -> None:
        deep = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        super().__init__(nn.Conv2d(size, width, 1), nn.ReLU(), deep, nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))


class Net(nn.Module):
    """Units of ShuffleNetV2, of ``width`` channels to each branch."""

    def __init__(
        self,
        width: int,
        units: int = 3,
        shuffle: Callable[[torch.Tensor], torch.Tensor] = by_view,
        halves: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] = lambda x: x.chunk(2, 1),
    ) -> None:
        super().__init__()
        self.one, self.two = Branch(3, width), Branch(3, width)
        self.units = nn.ModuleList(Branch(width, width) for _ in range(units - 1))
        self.last = nn.Conv2d(2 * width, 5, 1)
        self.shuffle, self.halves = shuffle, halves

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shuffle(torch.cat([self.one(x), self.two(x)], 1))
        for unit in self.units:
            stays, goes = self.halves(x)
            x = self.shuffle(torch.cat([stays, unit(goes)], 1))
        result: torch.Tensor = self.last(x)
        return result


class Literal(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.one(x), self.two(x)], 1)
        x = x.reshape(x.shape[0], 2, 12, *x.shape[2:]).transpose(1, 2).reshape(x.shape[0], 24, *x.shape[2:])
        stays, goes = x.split(12, 1)
        result: torch.Tensor = self.last(self.shuffle(torch.cat([stays, self.units[0](goes)], 1)))
        return result


def nested(masks: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, mask in masks.items():
        path, _, attribute = name.rpartition(".")
        found.setdefault(path, {})[attribute] = mask
    return found


def net(*args: object, **more: object) -> Net:
    return randomize(Net(*args, **more).double().eval(), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("width", "sparsity", "left"), [(12, 0.5, 6), (14, 0.5, 7), (29, 0.5, 15), (12, 0.75, 3)])
def test_a_share_of_all_layers_goes(width: int, sparsity: float, left: int) -> None:
    model = net(width, units=4)
    result = check_equal(model, X, nested(speedup.prune_masks(model, X, "l1", sparsity)), [OTHER])
    for branch in ("one", "two", "units.0", "units.1", "units.2"):
        assert result.shape(f"{branch}.3.weight") == (left, left, 1, 1), result.plan.explain()
    assert result.shape("last.weight") == (5, 2 * left, 1, 1)
    assert not result.plan.report.stays


def test_shifts_that_stay_are_folded_behind_a_shuffle() -> None:
    """The masks leave biases and shifts of norms: what goes is a constant that is not 0."""
    model = net(12, units=4)
    masks = {n: m for n, m in speedup.prune_masks(model, X, "l1", 0.5).items() if not n.endswith("bias")}
    result = check_equal(model, X, nested(masks), [OTHER])
    constants = [result.plan.keeps.facts.value(v) for n in result.plan.graph.nodes for v in n.outputs]
    assert sum(bool((c != 0).any()) for c in constants) > 4
    assert result.shape("last.weight")[1] < 24


@pytest.mark.parametrize(
    "model",
    [
        net(12, shuffle=by_function),
        net(12, halves=by_slices),
        randomize(Literal(12, 2).double().eval(), 0),
        net(11, 2, by_function, by_slices),
    ],
)
def test_other_ways_to_shuffle_and_divide(model: Net) -> None:
    masks = speedup.prune_masks(model, X, "l1", 0.5)
    result = check_equal(model, X, nested(masks), [OTHER])
    width = model.one[3].out_channels
    assert result.shape("last.weight")[1] == 2 * (width - width // 2)
    assert not result.plan.report.stays


def test_what_goes_has_the_lowest_scores_where_there_is_a_choice() -> None:
    model = net(12, 2)
    (group,) = [g for g in speedup.channel_groups(model, X) if g.mixing is not None]
    assert [len(block) for block in group.blocks] == [12, 12, 12]
    scores = np.arange(36.0)
    gone = group.even(scores, 6)
    assert gone is not None
    # Of the first two layers either half loses as many: what is in it stays together.
    assert gone.tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14, 18, 19, 20, *range(24, 30)]


def test_groups_with_no_place_in_common_are_told_from_places_with_one_group() -> None:
    model = net(12)
    with torch.no_grad():
        model.one[3].weight[:6] *= 1e-3
        model.two[3].weight[6:] *= 1e-3
    for sparsity in (0.5, 0.75, 0.9):
        result = check_equal(model, X, nested(speedup.prune_masks(model, X, "l1", sparsity)), [OTHER])
        assert result.shape("last.weight")[1] == 24 - 2 * int(12 * sparsity)
        assert not result.plan.report.stays


def test_masks_from_elsewhere_are_aligned() -> None:
    model = net(14, 4)
    given = {
        name: {"weight": (torch.arange(14) % 2 == 0).reshape(-1, 1, 1, 1).expand_as(module.weight)}
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and name != "last"
    }
    for policy in ("union", "vote", "intersection"):
        result = check_equal(model, X, nested(speedup.align(model, X, given, policy)), [OTHER])
        assert result.shape("last.weight")[1] == 14


def test_counts_are_rounded_layer_by_layer() -> None:
    model = net(12)
    result = check_equal(model, X, nested(speedup.prune_masks(model, X, "l1", 0.4, round_to=4)))
    assert result.shape("last.weight")[1] == 16


class Joined(Net):
    """What was shuffled is added to what was not, so that no channel can change its place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.cat([self.one(x), self.two(x)], 1)
        stays, goes = self.shuffle(first).chunk(2, 1)
        result: torch.Tensor = self.last(self.shuffle(torch.cat([stays, self.units[0](goes)], 1)) + first)
        return result


def test_what_cannot_change_its_place_goes_in_larger_parts_or_stays() -> None:
    model = randomize(Joined(12, 2).double().eval(), 0)
    assert all(g.mixing is None for g in speedup.channel_groups(model, X))
    check_equal(model, X, nested(speedup.prune_masks(model, X, "l1", 0.5)), [OTHER])


class Unit(nn.Module):
    """Of the first ShuffleNet: convolutions in groups, a shuffle between them."""

    def __init__(self, size: int, width: int, groups: int) -> None:
        super().__init__()
        self.shrink, self.shuffle = nn.Conv2d(size, width, 1, groups=groups), nn.ChannelShuffle(groups)
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.grow = nn.Conv2d(width, size, 1, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = F.relu(x + self.grow(self.deep(self.shuffle(F.relu(self.shrink(x))))))
        return result


@pytest.mark.parametrize(("groups", "each", "left"), [(2, 6, 6), (3, 20, 30), (4, 16, 32)])
def test_groups_that_are_shuffled_for_other_groups(groups: int, each: int, left: int) -> None:
    width = groups * each
    layers = (
        nn.Conv2d(3, 4 * groups, 1),
        *(Unit(4 * groups, width, groups) for _ in range(2)),
        nn.Conv2d(4 * groups, 5, 1),
    )
    model = randomize(nn.Sequential(*layers).double().eval(), 0)
    result = check_equal(model, X, nested(speedup.prune_masks(model, X, "l1", 0.5)), [OTHER])
    assert result.shape("1.deep.weight")[0] == result.shape("2.deep.weight")[0] == left, result.plan.explain()
    assert not result.plan.report.stays


def test_the_best_subsequence() -> None:
    a, b = ((0, 0, 0),), ((0, 0, 1),)
    scores = np.array([3.0, 1.0, 2.0, 5.0, 4.0])
    assert _chosen([a, b, a, b, a], [a, b], scores).tolist() == [0, 3]
    assert _chosen([a, b, a, b, a], [b, a], scores).tolist() == [3, 4]
    assert _chosen([a, b, a, b, a], [a, a], scores).tolist() == [0, 4]
    assert _chosen([a, b], [b, a], scores[:2]) is None
    assert _chosen([b, b], [a], scores[:2]) is None
