"""What is left of an axis may stand in another order: everything behind it is cut in that order, or is locked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from speedup.order import in_order, reordering
from speedup.testing import KINDS, check_equal, mask_indices, random_masks, randomize


def shuffled(x: torch.Tensor, groups: int = 2) -> torch.Tensor:
    b, c, *sizes = x.shape
    return x.view(b, groups, c // groups, *sizes).transpose(1, 2).reshape(b, c, *sizes)


class Net(nn.Module):
    """Eight channels that are shuffled, and what stands behind the shuffle."""

    def __init__(self, behind: Callable[[Net, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.t = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 3, padding=1)
        self.n, self.deep = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped, self.slope = nn.Conv2d(8, 8, 1, groups=4), nn.PReLU(8)
        self.other, self.layer, self.linear = nn.Conv2d(3, 8, 1), nn.LayerNorm(8), nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.behind = behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.x = x
        result: torch.Tensor = self.t(self.behind(self, shuffled(self.a(x))))
        return result


def _twice(s: Net, y: torch.Tensor) -> torch.Tensor:
    return s.n(shuffled(s.n(y), 4))


# What stands behind, and the channels that are left of 8 when 0, 3, 4 and 6 are masked.
BEHIND: dict[str, tuple[Callable[[Net, torch.Tensor], torch.Tensor], int]] = {
    "nothing": (lambda s, y: y, 4),
    "a norm and an activation": (lambda s, y: torch.sigmoid(s.n(y)), 6),  # a carrier, and one of the other group
    "depthwise": (lambda s, y: s.deep(y), 4),
    "a slope for each channel": (lambda s, y: s.slope(y), 4),
    "a parameter of no module": (lambda s, y: y * s.scale, 4),
    "channels last": (lambda s, y: s.linear(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 4),
    "itself": (lambda s, y: y + torch.sigmoid(s.n(y)) * y, 4),
    "twice": (lambda s, y: shuffled(y), 4),
    "flat": (lambda s, y: y.flatten(1).unflatten(1, (-1, *y.shape[2:])), 4),
    # Another tensor stands as it stood, groups hold other channels, one norm reads both orders: these are locked.
    "joined": (lambda s, y: y + s.other(s.x), 8),
    "grouped": (lambda s, y: s.grouped(y), 8),
    "a norm of both": (_twice, 8),
}

X, OTHER = torch.randn(2, 3, 6, 6), torch.randn(3, 3, 5, 9)


@pytest.mark.parametrize("name", BEHIND)
def test_what_stands_behind_a_shuffle(name: str) -> None:
    behind, left = BEHIND[name]
    net = randomize(Net(behind))
    dropped = [0, 3, 4, 6]
    result = check_equal(net, X, mask_indices(net, {"a.weight": dropped, "a.bias": dropped}), [OTHER])
    assert result.shape("a.weight")[0] == left, result.plan.explain()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BEHIND)
def test_any_masks(name: str, kind: str) -> None:
    for seed in range(2):
        net = randomize(Net(BEHIND[name][0]), seed)
        check_equal(net, X, random_masks(net, seed, kind), [OTHER])


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_groups_that_hold_the_same_channels_in_another_order(kind: Callable[..., nn.Module]) -> None:
    """Of 0 2 3 | 5 6 7 at the places behind the shuffle the small shuffle makes 0 3 2 | 5 6 7."""
    layers = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1, groups=2), nn.ChannelShuffle(2), kind(8, 6, 1, groups=2)
    net = randomize(nn.Sequential(*layers, nn.Conv2d(6, 4, 1)))
    result = check_equal(net, X, mask_indices(net, {"1.weight": [2, 4], "1.bias": [2, 4]}), [OTHER])
    assert result.shape("1.weight")[0] == 6, result.plan.explain()


def test_a_bias_that_is_new_stands_in_the_order_of_its_channels() -> None:
    """The depthwise layer has none and takes up the constants of what it reads."""
    layers = nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Conv2d(8, 4, 1)
    net = randomize(nn.Sequential(*layers))
    result = check_equal(net, X, mask_indices(net, {"0.weight": [0, 5], "3.weight": [1]}), [OTHER])
    assert result.shape("0.weight")[0] == 6 and result.shape("2.weight")[0] == 6


def test_the_order_that_is_found_is_the_one_that_was_made() -> None:
    wanted = torch.arange(24.0).reshape(2, 3, 4)
    for axis, ranks in ((2, [3, 1, 0, 2]), (1, [2, 0, 1])):
        got = wanted.index_select(axis, torch.tensor(ranks))
        orders = reordering([wanted], [got])
        assert orders is not None and list(orders) == [axis]
        assert torch.equal(in_order(wanted, orders), got)
    by_group = torch.stack([wanted[:, 0], wanted[:, 1].flip(1), wanted[:, 2].roll(1, 1)], 1)
    orders = reordering([wanted], [by_group])
    assert orders is not None and torch.equal(in_order(wanted, orders), by_group)
    assert reordering([wanted], [wanted + 1]) is None
    assert reordering([wanted], [wanted[:1]]) is None
    assert reordering([wanted], [wanted.clone()]) == {}


def test_where_a_whole_tensor_stands_in_another_order_what_it_is_made_of_is_locked() -> None:
    class Sums(nn.Module):
        """The sums of pairs, all of which are left, are read in their order."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x).roll(2, 1)
            torch.pixel_shuffle(y.unflatten(1, (4, 2)).sum(2), 2)
            result: torch.Tensor = self.b(y)
            return result

    net = randomize(Sums())
    result = check_equal(net, X, mask_indices(net, {"a.weight": (0, 2, 4, 6), "a.bias": (0, 2, 4, 6)}), [OTHER])
    assert result.shape("a.weight")[0] == 8, result.plan.explain()
