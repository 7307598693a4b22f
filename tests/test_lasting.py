"""Tensors of the model that its forward writes into or replaces: the next call reads what this one leaves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.testing import masked_copy, randomize

GONE = (1, 2, 5)


class Net(nn.Module):
    """Buffers are 0 at first, as those of models that were never called."""

    buffers_of: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)
        self.calls = 0
        for name, shape in self.buffers_of:
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, x):
        self.calls += 1
        return self.run(x, torch.relu(self.one(x)))


class DividedOnce(Net):
    """As Rwkv of transformers in eval mode."""

    def run(self, x, y):
        if self.calls == 1:
            self.two.weight.div_(4)
        return self.two(y)


class DividedEachTime(Net):
    def run(self, x, y):
        self.two.weight.div_(2)
        self.two.bias.add_(1)
        return self.two(y)


class DividedAfterwards(Net):
    def run(self, x, y):
        made = self.two(y)
        self.two.weight.data.mul_(0.5)
        self.two.bias.add_(1)
        return made


class DividedInAView(Net):
    def run(self, x, y):
        self.two.weight.detach().view(-1).mul_(0.5)
        return self.two(y)


class Normalized(Net):
    def run(self, x, y):
        weight = self.two.weight
        weight.data.copy_(weight / weight.norm(dim=0, keepdim=True).clamp(min=1e-6))
        return self.two(y)


class MovingMean(Net):
    buffers_of = (("mean", (8,)),)

    def run(self, x, y):
        self.mean.mul_(0.9).add_(y.mean(0), alpha=0.1)
        return self.two(y - self.mean)


class MeanOfBefore(Net):
    buffers_of = (("mean", (8,)),)

    def run(self, x, y):
        made = self.two(y * (self.mean + 1))
        self.mean.mul_(0.9).add_(y.mean(0), alpha=0.1)
        return made


class Replaced(Net):
    buffers_of = (("mean", (8,)),)

    def run(self, x, y):
        made = self.two(y * (self.mean + 1))
        self.mean = self.mean * 0.9 + y.mean(0) * 0.1
        return made


class Renewed(MovingMean):
    """Each call leaves other modules than it has found."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def run(self, x, y):
        y = self.act(y)
        self.act = nn.ReLU()
        return super().run(x, y)


class Largest(Net):
    """As what is rounded to a few bits."""

    buffers_of = (("largest", (8,)),)

    def run(self, x, y):
        self.largest.copy_(torch.maximum(self.largest, y.abs().amax(0)))
        return self.two(torch.round(y / (self.largest + 1e-3) * 127) * (self.largest + 1e-3))


class Recent(Net):
    """As the state of a convolution that goes from call to call."""

    buffers_of = (("recent", (4, 8)),)

    def run(self, x, y):
        self.recent.copy_(torch.cat([self.recent[1:], y.mean(0, keepdim=True)]))
        return self.two(y + self.recent.sum(0))


class InHalves(Net):
    buffers_of = (("state", (16,)),)

    def run(self, x, y):
        a, b = self.state.chunk(2)
        made = self.two(y * (a + 1) + b)
        self.state.copy_(torch.cat([y.mean(0), y.amax(0)]))
        return made


class DelayLine(Net):
    buffers_of = (
        ("a", (8,)),
        ("b", (8,)),
    )

    def run(self, x, y):
        made = self.two(y * (self.b + 1))
        self.b.copy_(self.a)
        self.a.copy_(y.mean(0))
        return made


class Counted(Net):
    buffers_of = (("count", ()),)

    def run(self, x, y):
        self.count += 1
        return self.two(y * self.count)


class CountedAfterwards(Net):
    buffers_of = (("count", ()),)

    def run(self, x, y):
        made = self.two(y * (self.count + 1))
        self.count += 1
        return made


class ZeroAtFirst(Net):
    """What no output reads in the first call is read in the second one."""

    buffers_of = (
        ("a", (8,)),
        ("b", (8,)),
    )

    def run(self, x, y):
        made = self.two(y * self.a)
        self.a.copy_(self.b)
        self.b.add_(1)
        return made


class Cache(Net):
    buffers_of = (("cache", (30, 8)),)

    def run(self, x, y):
        start = 3 * self.calls
        self.cache[start : start + len(y)] = y
        return self.two(y + self.cache[: start + len(y)].sum(0))


class Grows(Net):
    buffers_of = (("cache", (1, 8)),)

    def run(self, x, y):
        self.cache = torch.cat([self.cache, y])
        return self.two(y + self.cache.mean(0))


class OnlyTheSecond(Net):
    buffers_of = (("state", (8,)),)

    def run(self, x, y):
        made = self.two(y if self.calls == 1 else y * self.state)
        self.state.copy_(y.mean(0) + 1)
        return made


class Statistics(Net):
    buffers_of = (("mean", (8,)),)

    def run(self, x, y):
        self.mean.mul_(0.9).add_(y.mean(0), alpha=0.1)
        return self.two(y)


class Turning(Net):
    """Which channels are taken is another matter in the next call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor([1, 2, 0, 4, 5, 3, 6, 7]))

    def run(self, x, y):
        y = y[:, self.index]
        self.index = self.index.roll(1)
        return self.two(y)


class OnOneWay(Net):
    buffers_of = (("count", ()),)

    def run(self, x, y):
        if x.sum() > 0:
            self.count += 1
        return self.two(y * (self.count + 1))


class OneHolderOfTwo(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Module(), nn.Module()
        shared = torch.zeros(8, dtype=torch.float64)
        self.a.register_buffer("state", shared)
        self.b.register_buffer("state", shared)

    def run(self, x, y):
        made = self.two(y * (self.a.state + 1) + self.b.state)
        self.b.state = self.b.state + y.mean(0)
        return made


def compare(model: nn.Module, biases: bool, calls: int = 4) -> nn.Module:
    """The small model, called as often as the masked one."""
    model = randomize(model.double().eval(), 0)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.zero_()
    masks = {f"one.{n}": torch.ones_like(p) for n, p in model.one.named_parameters() if biases or n == "weight"}
    for mask in masks.values():
        mask[list(GONE)] = 0
    masked, before = masked_copy(model, masks), {n: t.clone() for n, t in model.state_dict().items()}
    plan = speedup.plan(model, torch.randn(2, 4, dtype=torch.float64), masks)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    small = plan.apply()
    with torch.no_grad():
        for rows in range(2, 2 + calls):
            x = torch.randn(rows % 3 + 1, 4, dtype=torch.float64)
            torch.testing.assert_close(small(x), masked(x), rtol=1e-10, atol=1e-12)
    return small


WEIGHTS = (DividedOnce, DividedEachTime, DividedAfterwards, DividedInAView, Normalized)
BUFFERS = (MovingMean, MeanOfBefore, Replaced, Renewed, Largest, Recent, InHalves, DelayLine, ZeroAtFirst)
COUNTERS = (Counted, CountedAfterwards, OnOneWay)


@pytest.mark.parametrize("net", (*WEIGHTS, *BUFFERS, *COUNTERS))
@pytest.mark.parametrize("biases", [True, False])
def test_what_the_next_call_reads_keeps_step(net: type[Net], biases: bool) -> None:
    small = compare(net(), biases)
    if biases:
        assert small.one.weight.shape == (5, 4) and small.two.weight.shape == (3, 5)
        assert all(b.shape[-1] in (5, 10) for b in small.buffers() if b.ndim)


@pytest.mark.parametrize("net", [Cache, Grows, OnlyTheSecond, Statistics, Turning, OneHolderOfTwo])
@pytest.mark.parametrize("biases", [True, False])
def test_what_the_next_call_may_read_otherwise_stays_whole(net: type[Net], biases: bool) -> None:
    assert compare(net(), biases).one.weight.shape == (8, 4)


def test_parts_of_a_state_that_no_call_reads_go() -> None:
    class Columns(MeanOfBefore):
        def run(self, x, y):
            made = self.two(y * (self.mean + 1))
            self.mean.mul_(0.9).add_(x.sum(-1).mean())
            return made

    assert compare(Columns(), True).mean.shape == (5,)


def test_a_factor_that_changes_is_not_folded_into() -> None:
    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.RMSNorm(8)

        def run(self, x, y):
            made = self.two(self.norm(y))
            self.norm.weight.mul_(1.5).add_(0.25)
            self.two.bias.mul_(0.5)
            return made

    for biases in (True, False):
        compare(Scaled(), biases)


def test_a_buffer_that_changes_its_size_is_put_back() -> None:
    """As observers of ``torch.ao.quantization`` do, in whose buffers nothing is at first."""

    class Observed(Net):
        buffers_of = (("least", (0,)),)

        def run(self, x, y):
            least = y.amin(0)
            if self.least.numel() == 0:
                self.least.resize_(least.shape).copy_(least)
            self.least.copy_(torch.minimum(self.least, least))
            return self.two(F.relu(y - self.least))

    assert compare(Observed(), True).least.shape == (8,)


def test_channel_groups_go_with_what_is_left_for_the_next_call() -> None:
    groups = speedup.channel_groups(DividedAfterwards().eval(), torch.randn(2, 4))
    assert [g.size for g in groups] == [8]


class State(Net):
    """One row for each sample."""

    buffers_of = (("state", (2, 8)),)

    def run(self, x, y):
        self.state = 0.5 * self.state + y
        return self.two(self.state)


@pytest.mark.parametrize("net", [*WEIGHTS, *BUFFERS, *COUNTERS, State])
def test_masks_are_made_for_what_the_next_call_reads(net: type[Net]) -> None:
    model, x = randomize(net().double().eval()), torch.randn(2, 4, dtype=torch.float64)
    small = speedup.plan(model, x, speedup.prune_masks(model, x, sparsity=0.5)).apply()
    assert small.one.weight.shape == (4, 4) and small.two.weight.shape == (3, 4)


def test_without_contents() -> None:
    filled = randomize(DividedEachTime().double().eval(), 0)
    masks = {f"one.{n}": torch.ones_like(p) for n, p in filled.one.named_parameters()}
    for mask in masks.values():
        mask[list(GONE)] = 0
    with torch.device("meta"):
        model = DividedEachTime().double().eval()
    plan = speedup.plan(model, torch.zeros(2, 4, dtype=torch.float64), masks)
    small = plan.fill(plan.apply().to_empty(device="cpu"), filled)
    masked = masked_copy(filled, masks)
    assert small.two.weight.shape == (3, 5)
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(3, 4, dtype=torch.float64)
            torch.testing.assert_close(small(x), masked(x), rtol=1e-10, atol=1e-12)
