"""A view that is changed in place changes the tensor that it is a view of, and other views of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.movement import Movement
from speedup.overwrite import Block, Relaid
from speedup.testing import check_equal, mask_indices, random_masks, randomize


class Net(nn.Module):
    """Eight channels, something done to a part of them in place, and a layer that reads all of them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x) * 1
        if self.kind == "a slice set to 0":
            y[:, 4:6].zero_()
        if self.kind == "a slice with relu":
            F.relu(y[:, 2:7], inplace=True)
        if self.kind == "every second":
            y[:, ::2].mul_(3)
        if self.kind == "one channel":
            y[:, 3].exp_()
        if self.kind == "transposed":
            y[:, 4:].transpose(1, 3).sigmoid_()
        if self.kind == "a view of a view":
            z = y[:, 4:]
            z[:, :2].relu_()
            z.mul_(2)
        if self.kind == "a copy into it":
            y[:, 4:].copy_(x.mean(1, keepdim=True))
        if self.kind == "halves into one another":
            first, second = y.chunk(2, 1)
            first.add_(second)
        if self.kind == "overlapping parts":
            y[:, :5].add_(y[:, 3:])
        if self.kind == "one half, then the other":
            first, second = y.chunk(2, 1)
            first.mul_(2)
            y = torch.cat([first * second, second], 1)
        if self.kind == "a row from the next":
            y[:, :, 0] = y[:, :, 1]
        if self.kind == "a row and the next":
            y[:, :, 0] += y[:, :, 1]
        if self.kind == "a row of a view":
            z = y.transpose(0, 2)
            z[0].copy_(z[1])
        if self.kind == "a flat view":
            y.view(-1).mul_(2)
        result: torch.Tensor = self.b(y)
        return result


# What is done, and how many channels are left when 0, 1, 6 and 7 are masked (weight and bias).
CHANGES = {
    "a slice set to 0": 3,  # a tensor is never empty
    "a slice with relu": 4,
    "every second": 4,
    "one channel": 6,  # what stands before a position that the code holds stays
    "transposed": 4,
    "a view of a view": 4,
    "a copy into it": 3,  # the same goes into all four: one carries it for the others
    "a flat view": 4,
    "halves into one another": 8,  # what is masked in one half is not in the other
    "one half, then the other": 4,
    "a row from the next": 4,
    "a row and the next": 4,
    "a row of a view": 4,
}
# Here what is written is read by the same call: torch makes no promise of what comes out.
BARRIERS = ("overlapping parts",)

X, OTHER = torch.randn(2, 3, 6, 6), torch.randn(3, 3, 5, 9)


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_changed_through_a_view(name: str) -> None:
    net = randomize(Net(name))
    result = check_equal(net, X, mask_indices(net, {"a.weight": [0, 1, 6, 7], "a.bias": [0, 1, 6, 7]}), [OTHER])
    assert not result.plan.report.barriers
    assert result.shape("a.weight")[0] == CHANGES[name], result.plan.explain()
    for seed in range(4):
        check_equal(net, X, random_masks(net, seed), [OTHER])


@pytest.mark.parametrize("name", BARRIERS)
def test_what_stays_whole(name: str) -> None:
    net = randomize(Net(name))
    for seed in range(4):
        result = check_equal(net, X, random_masks(net, seed), [OTHER])
        assert any("in-place change" in b for b in result.plan.report.barriers)


def test_a_part_of_a_parameter_that_is_made_0() -> None:
    class Attention(nn.Module):
        """As the second version of shifted windows has it: keys have no bias."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.qkv, self.out = nn.Linear(4, 6), nn.Linear(6, 12), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bias = self.qkv.bias.clone()
            bias[4:8].zero_()
            q, k, v = F.linear(self.a(x), self.qkv.weight, bias).chunk(3, -1)
            result: torch.Tensor = self.out((q @ k.transpose(1, 2)).softmax(-1) @ v)
            return result

    net = randomize(Attention())
    plan_masks = mask_indices(net, {"qkv.weight": [1, 5, 9], "qkv.bias": [1, 5, 9], "a.weight": [2]})
    result = check_equal(net, torch.randn(2, 5, 4), plan_masks, [torch.randn(1, 7, 4)])
    assert result.shape("qkv.weight") == (9, 6) and result.shape("qkv.bias") == (9,)
    assert result.shape("out.weight") == (3, 3)


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[:, 1:3],
        lambda t: t[1],
        lambda t: t.permute(2, 0, 1)[::2],
        lambda t: t[:, ::2, 1:].transpose(0, 2),
        lambda t: t[1:2, :, None, 3],
        lambda t: t[2, 3, 4],
        lambda t: t,
    ],
)
def test_a_block_is_where_the_view_is(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for whole in (
        torch.arange(60.0).reshape(3, 4, 5),
        torch.arange(120.0).reshape(6, 4, 5)[1::2],
        torch.arange(60.0).reshape(5, 4, 3).permute(2, 1, 0),
    ):
        part = view(whole)
        block = Block.of(part, whole)
        assert block is not None
        assert torch.equal(block.take(whole.clone()), part)
        changed = whole.clone()
        view(changed).copy_(part + 100)
        assert torch.equal(block.put(whole, part + 100), changed)
        origin = block.origin(tuple(whole.shape))
        both = whole, part + 100
        found = torch.empty_like(whole)
        for place in np.ndindex(*whole.shape):
            source, *at = (int(np.broadcast_to(a, whole.shape)[place]) for a in (origin.source, *origin.coordinates))
            found[place] = both[source][tuple(at[: both[source].ndim])]
        assert torch.equal(found, changed)
        assert all(a == 1 for c in origin.coordinates for a, n in zip(c.shape, whole.shape, strict=True) if n == 1)


def test_what_is_no_block() -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    for part in (whole.view(-1)[3:9], whole.as_strided((3,), (7,)), whole[:, :1].expand(4, 6), whole.view(torch.int32)):
        assert Block.of(part, whole) is None


@pytest.mark.parametrize("view", [torch.flatten, torch.t, lambda t: t.flatten(1).mT, lambda t: t.view(4, 3, 2, 1).mT])
def test_all_of_a_tensor_laid_out_otherwise(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    other = view(whole)
    for a, b in ((whole, other), (other, whole)):
        relaid = Relaid.of(a, b)
        assert relaid is not None and torch.equal(relaid.take(b.clone()), a)


def test_what_is_not_all_of_a_tensor() -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    for part in (whole[:2], whole[:, :3], whole.as_strided((24,), (0,)), whole.view(torch.int32)):
        assert Relaid.of(part, whole) is None and Relaid.of(whole, part) is None


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[:, 1:3, ::2],
        lambda t: t[:, :2].transpose(1, 2),
        lambda t: t[:, 2],
        lambda t: t[:, 1:, 1:4],
    ],
)
def test_sets_move_as_the_entries_do(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * self.scale
            view(y).mul_(2)
            return y

    plan = speedup.plan(Changing(), torch.randn(2, 4, 6), {"scale": torch.ones(6)})
    (node,) = [n for n in plan.graph.nodes if n.op_name.startswith("in-place change")]
    rule, shapes = node.rule, [v.shape for v in node.operands]
    assert isinstance(rule, Movement)
    sizes = [int(np.prod(s)) for s in shapes]
    numbers = [torch.arange(sum(sizes[:k]), sum(sizes[: k + 1])).reshape(s) for k, s in enumerate(shapes)]
    origin = node.run(numbers).numpy()
    random = np.random.default_rng(0)
    for axes in itertools.product((0, 1), repeat=3):
        chosen = random.random([n if a else 1 for a, n in zip(axes, node.outputs[0].shape, strict=True)]) < 0.4
        there = np.isin(np.arange(sum(sizes)), origin[np.broadcast_to(chosen, origin.shape)])
        wanted = [p.reshape(s) for p, s in zip(np.split(there, [sizes[0]]), shapes, strict=True)]
        for found, part in zip(rule.scatter(node, [chosen]), wanted, strict=True):
            assert (np.broadcast_to(found, part.shape) == part).all()
        (moved,) = rule.gather(node, wanted, False)
        assert (np.broadcast_to(moved, origin.shape) == there[origin]).all()
