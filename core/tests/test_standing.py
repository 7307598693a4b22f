"""Runs on the same input take up from where the first one looks for places, with what stood there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup import default_registry
from speedup.graph import Graph
from speedup.trace import sandbox, trace
from speedup.trace.standing import OtherwiseError, Standing
from speedup.trace.told import NONE, Told, told

GIVEN = torch.ones(2, 3, 32, 32)
HELD: list[torch.Tensor] = []

Between = Callable[["Net", torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """Two layers, what a test says, and a layer on the rows that are found."""

    def __init__(self, between: Between) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.register_buffer("table", torch.ones(8, 1, 1))
        self.between = between

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        y = self.b(self.a(x))
        z = self.between(self, y)
        rows = z.permute(0, 2, 3, 1).flatten(0, 2)
        return [y, z, self.head(rows[torch.where(rows[:, 0] > 0)[0]])]


def in_place(net: Net, y: torch.Tensor) -> torch.Tensor:
    y[:, :3].mul_(2.0)
    return F.relu_(y + 1)


def view(net: Net, y: torch.Tensor) -> torch.Tensor:
    return y[:, :, 1:].transpose(2, 3)


def expanded(net: Net, y: torch.Tensor) -> torch.Tensor:
    return (net.table * y.mean((2, 3), keepdim=True)).expand_as(y)


def strided(net: Net, y: torch.Tensor) -> torch.Tensor:
    return torch.add(y.contiguous(memory_format=torch.channels_last), 1.0)


def chosen(net: Net, y: torch.Tensor) -> torch.Tensor:
    some = y[y > 0]
    return y * some[: some.numel() // 2].sum()


def reads(net: Net, y: torch.Tensor) -> torch.Tensor:
    return y * float(y.sum())


def writes(net: Net, y: torch.Tensor) -> torch.Tensor:
    net.table.add_(y.mean())
    return y * net.table


def sparse(net: Net, y: torch.Tensor) -> torch.Tensor:
    HELD[:] = [y[0, 0].to_sparse()]
    return y


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """The convolutions that were computed."""
    found: list[nn.Module] = []
    forward = nn.Conv2d.forward

    def counted(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        found.append(self)
        return forward(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", counted)
    yield found


def first_run(net: Net) -> Graph:
    return trace(net, (GIVEN,), {}, default_registry(), answers=(), stands=True)


@pytest.mark.parametrize("between", [in_place, view, expanded, strided, chosen])
def test_what_comes_after_is_the_same(between: Between, made: list[nn.Module]) -> None:
    torch.manual_seed(0)
    net = Net(between).eval()
    with sandbox(net):
        first = first_run(net)
        assert first.standing is not None and made == [net.a, net.b]
        again = trace(net, (GIVEN,), {}, default_registry(), answers=(), compared=first, resumed=first.standing)
    assert first.standing.is_taken_up and made == [net.a, net.b]
    assert len(first.nodes) == len(again.nodes)
    assert all(map(torch.equal, first.reference, again.reference))


def test_it_parts_from_there() -> None:
    torch.manual_seed(0)
    net = Net(view).eval()
    with sandbox(net):
        first = first_run(net)
        with told(Told(calls=NONE)):
            again = trace(net, (GIVEN,), {}, default_registry(), answers=(), compared=first, resumed=first.standing)
    assert torch.equal(first.reference[0], again.reference[0])
    assert len(first.reference[2]) and not len(again.reference[2])


@pytest.mark.parametrize("between", [reads, writes, sparse])
def test_where_contents_decide_more_or_cannot_be_kept_nothing_is(between: Between) -> None:
    net = Net(between).eval()
    with sandbox(net):
        assert first_run(net).standing is None


def test_another_run_is_no_such_run() -> None:
    """A run that does not come to where the first one stood is made again from the start."""
    net, other = Net(view).eval(), Net(in_place).eval()
    with sandbox(net):
        standing = first_run(net).standing
    assert isinstance(standing, Standing)
    with sandbox(other):
        compared = first_run(other)
        with pytest.raises(OtherwiseError):
            trace(other, (GIVEN,), {}, default_registry(), answers=(), compared=compared, resumed=standing)
    assert not standing.is_taken_up
