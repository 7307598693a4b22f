"""Whatever a model returns, and in whatever it returns it: its shape stays, and numbers made of shapes stay."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import speedup
from speedup.errors import TraceError
from speedup.testing import check_equal, mask_indices, randomize

MASKED = {"one.weight": (1, 2, 5), "one.bias": (1, 2, 5)}


class Net(nn.Module):
    """Two linear layers; ``give`` says what is returned of the hidden units and the result."""

    def __init__(self, give: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)
        self.give = give

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.one(x).relu()
        return self.give(hidden, self.two(hidden))


def small(give: Callable[[torch.Tensor, torch.Tensor], Any]) -> Any:
    model = randomize(Net(give)).eval()
    return speedup.ModelSpeedup(model, torch.randn(2, 4), mask_indices(model, MASKED)).speedup_model()


@dataclass
class Held:
    value: Any

    def __call__(self) -> Any:
        return self.value


def test_the_hidden_units_go_where_they_are_not_returned() -> None:
    assert small(lambda hidden, out: out).one.out_features == 5


@pytest.mark.parametrize(
    "give",
    [
        lambda hidden, out: {"out": out, "width": hidden.shape[-1]},
        lambda hidden, out: (out, [hidden.numel()]),
        lambda hidden, out: Held((out, 1 / hidden.size(1))),
        lambda hidden, out: (out, str(tuple(hidden.shape))),
    ],
)
def test_a_number_made_of_a_size_keeps_it(give: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
    model = small(give)
    given = torch.randn(2, 4)
    before = randomize(Net(give)).eval()(given)
    after = model(given)
    number = {dict: lambda t: t["width"], tuple: lambda t: t[1], Held: lambda t: t.value[1]}[type(before)]
    assert number(after) == number(before)


@pytest.mark.parametrize(
    ("give", "find"),
    [
        (lambda hidden, out: (out, Held(hidden)), lambda r: r[1].value),
        (lambda hidden, out: (out, lambda: hidden), lambda r: r[1]()),
        (lambda hidden, out: (out, functools.partial(torch.add, hidden)), lambda r: r[1](0)),
        (lambda hidden, out: (out, Held(hidden).__call__), lambda r: r[1]()),
        (lambda hidden, out: Held({"inner": [out, Held(hidden)]}), lambda r: r.value["inner"][1].value),
        (lambda hidden, out: torch.distributions.Normal(hidden, 1.0), lambda r: r.mean),
    ],
)
def test_a_tensor_is_found_wherever_it_is_returned(give: Any, find: Callable[[Any], torch.Tensor]) -> None:
    model = small(give)
    assert model.one.out_features == 8
    assert find(model(torch.randn(2, 4))).shape == (2, 8)


def test_what_is_put_into_a_list_of_the_caller_is_an_output() -> None:
    class Appends(Net):
        def forward(self, x: torch.Tensor, seen: list[torch.Tensor]) -> Any:
            hidden = self.one(x).relu()
            seen.append(hidden)
            return self.two(hidden)

    model = randomize(Appends(lambda hidden, out: out)).eval()
    speedup.ModelSpeedup(model, (torch.randn(2, 4), []), mask_indices(model, MASKED)).speedup_model()
    seen: list[torch.Tensor] = []
    model(torch.randn(2, 4), seen)
    assert seen[0].shape == (2, 8)


def test_a_model_that_returns_no_tensor_is_refused() -> None:
    def lazily(hidden: torch.Tensor, out: torch.Tensor) -> Iterator[torch.Tensor]:
        yield hidden
        yield out

    for give, what in ((lazily, "generator"), (lambda hidden, out: None, "no tensor")):
        model = randomize(Net(give)).eval()
        with pytest.raises(TraceError, match=what):
            speedup.plan(model, torch.randn(2, 4), mask_indices(model, MASKED))
        assert model.one.out_features == 8


def test_a_number_of_a_loss_is_right() -> None:
    model = small(lambda hidden, out: {"out": out, "loss": out.square().mean().item()})
    out = model(torch.randn(2, 4))
    assert out["loss"] == pytest.approx(float(out["out"].square().mean()))


@pytest.mark.parametrize(
    "body",
    [
        lambda s, y: torch.vmap(lambda t: s.mid(t).relu())(y),
        lambda s, y: torch.vmap(torch.func.grad(lambda t: s.mid(t).tanh().sum()))(y),
        lambda s, y: torch.func.jvp(lambda t: s.mid(t).tanh(), (y,), (torch.ones_like(y),))[1],
    ],
)
def test_transforms_of_functions_hold_what_they_touch(body: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    """Inside ``torch.vmap`` and the like tensors are wrappers of others, made out of sight."""

    class Transformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.mid, self.two = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.first = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.two(body(self, self.one(self.first(x)).relu()))
            return result

    model = randomize(Transformed()).eval()
    masks = mask_indices(model, {**MASKED, "mid.weight": (0, 3), "first.0.weight": (0, 1)})
    result = check_equal(model, torch.randn(2, 4), masks, [torch.randn(5, 4)])
    assert result.shape("one.weight") == (8, 4) and result.shape("mid.weight") == (8, 8)
    assert result.shape("first.0.weight") == (4, 4), "what came before goes as ever"


def test_a_mask_that_a_transform_makes_of_positions_keeps_nothing() -> None:
    """As libraries make masks of attention of a function of two positions."""

    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            def may_see(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
                return (q >= k) | (ids[0].gather(0, q) == ids[0].gather(0, k))

            at = torch.arange(x.shape[1])[:, None]
            seen = torch.vmap(torch.vmap(may_see, (None, 0)), (0, None))(at, at)[..., 0]
            hidden = self.one(x).relu()
            result: torch.Tensor = self.two(seen.to(hidden.dtype) @ hidden)
            return result

    model = randomize(Causal()).eval()
    given = (torch.randn(2, 5, 4), torch.tensor([[0, 1, 1, 0, 2]]))
    other = (torch.randn(1, 7, 4), torch.tensor([[0, 1, 1, 2, 2, 3, 0]]))
    result = check_equal(model, given, mask_indices(model, MASKED), [other])
    assert result.shape("one.weight")[0] < 8 and result.shape("two.weight")[1] < 8
