"""A glance at a run sees the lines, and what is passed between them, that a record of the run has."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup import default_registry, walk
from speedup.graph import Graph
from speedup.resized import _lines, _passed
from speedup.trace import sandbox, trace
from speedup.trace.glance import UnclearError, glance

GIVEN = torch.ones(2, 6)


class Net(nn.Module):
    """Two layers, and between them what a test says."""

    def __init__(self, between: Callable[[Net, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.register_buffer("table", torch.ones(2, 6))
        self.held, self.between = [torch.ones(6)], between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.b(self.between(self, self.a(x)))
        return result


def plain(net: Net, y: torch.Tensor) -> torch.Tensor:
    return F.dropout(F.relu(y), 0.5, net.training) + net.table[:1] * net.held[0]


def in_place(net: Net, y: torch.Tensor) -> torch.Tensor:
    part = y[:, 2:4]
    part.mul_(2)
    y[:, :1] = 0
    return F.relu_(y)


def outside(net: Net, y: torch.Tensor) -> torch.Tensor:
    made = torch.zeros(2, 6)
    rows = made[1:]
    made += torch.arange(6)
    return y + rows


def split(net: Net, y: torch.Tensor) -> torch.Tensor:
    one, two = y.chunk(2, 1)
    return torch.cat([two.contiguous(), one if y.shape[1] > 2 else two], dim=1)


def written(net: Net, y: torch.Tensor) -> torch.Tensor:
    net.b.weight.data.mul_(2)
    return y


def buffered(net: Net, y: torch.Tensor) -> torch.Tensor:
    net.table += 1
    return y


def replaced(net: Net, y: torch.Tensor) -> torch.Tensor:
    net.table = net.table + 1
    return y


def exchanged(net: Net, y: torch.Tensor) -> torch.Tensor:
    net.b = copy.deepcopy(net.b)
    return y


def asking(net: Net, y: torch.Tensor) -> torch.Tensor:
    return y * 2 if y.sum().item() > 0 else y


def swallowing(net: Net, y: torch.Tensor) -> torch.Tensor:
    try:
        return y * 2 if bool((y > 0).any()) else y
    except Exception:
        return y


def choosing(net: Net, y: torch.Tensor) -> torch.Tensor:
    return y[(y > 0).any(1) | True]


def vmapped(net: Net, y: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = torch.vmap(torch.sin)(y)
    return made


def recorded(model: nn.Module) -> Graph:
    return trace(model, (GIVEN,), {}, default_registry())


@pytest.mark.parametrize("between", [plain, in_place, outside, split])
def test_it_sees_the_lines_and_passages_of_a_record(between: Callable[[Net, torch.Tensor], torch.Tensor]) -> None:
    model = Net(between).eval()
    with sandbox(model):
        graph = recorded(model)
        seen = glance(model, ((GIVEN,), {}), default_registry(), graph)
    assert seen.lines == _lines(graph)
    assert seen.passed == _passed(graph)
    assert [t.shape for t in seen.reference] == [(2, 6)]


@pytest.mark.parametrize("between", [written, buffered, replaced, exchanged, asking, swallowing, choosing, vmapped])
def test_it_says_nothing_where_more_is_needed_and_leaves_the_model_as_it_was(
    between: Callable[[Net, torch.Tensor], torch.Tensor],
) -> None:
    model = Net(plain).eval()
    before = copy.deepcopy(model.state_dict())
    with walk.remembered(model), sandbox(model):
        graph = recorded(model)
        model.between = between  # as code does at a size that the record has not seen
        with pytest.raises(UnclearError):
            glance(model, ((GIVEN,), {}), default_registry(), graph)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_what_the_model_raises_is_raised() -> None:
    def failing(net: Net, y: torch.Tensor) -> torch.Tensor:
        raise ValueError("too large")

    model = Net(plain).eval()
    with sandbox(model):
        graph = recorded(model)
        model.between = failing
        with pytest.raises(ValueError, match="too large"):
            glance(model, ((GIVEN,), {}), default_registry(), graph)
