"""What rounding tips is no difference; what is wrong still is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import speedup
from speedup import CheckError, Floats, Node, Registry, Rule, default_registry, tries
from speedup.testing import mask_indices, masked_copy, randomize
from speedup.trace import sandbox


class Ranked(nn.Module):
    """Scores that are equal but for the order in which they are summed up, and values in the order of the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.score, self.value = nn.Linear(4, 16), nn.Linear(16, 64, bias=False), nn.Linear(16, 64)
        self.out = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.sigmoid(self.a(x))
        order = self.score(y).topk(64).indices
        result: torch.Tensor = self.out(self.value(y).gather(1, order))
        return result


def ranked() -> Ranked:
    net = randomize(Ranked()).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # Inputs of the scores come in equal pairs, so that swapping weights within a pair changes rounding only.
        net.a.weight[8:], net.a.bias[8:] = net.a.weight[:8], net.a.bias[:8]
        row = net.score.weight[0]
        for other in net.score.weight:
            swap = torch.rand(8, generator=generator) < 0.5
            other.copy_(torch.cat([torch.where(swap, row[8:], row[:8]), torch.where(swap, row[:8], row[8:])]))
    return net


X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_an_order_that_rounding_tips_is_no_difference(caplog: pytest.LogCaptureFixture) -> None:
    net = ranked()
    with caplog.at_level("DEBUG", logger="speedup"):
        plan = speedup.plan(net, X, mask_indices(net, {"a.weight": [0, 8, 3, 11], "a.bias": [0, 3, 8, 11]}))
    assert "rounding tips torch.Tensor.topk" in caplog.text, "the case does not show what it should"
    small = plan.apply()
    assert small.a.weight.shape == (12, 4)  # type: ignore[union-attr]


def test_the_results_of_the_masked_model_are_found_once_for_all_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    net = ranked()
    plan = speedup.plan(net, X, mask_indices(net, {"a.weight": [0, 8, 3, 11], "a.bias": [0, 3, 8, 11]}))
    calls: list[str] = []

    def counted(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        calls.append(function.__name__)
        return function(*args, **kwargs)

    for function in (tries.trace, tries.check):
        monkeypatch.setattr(tries, function.__name__, partial(counted, function))
    assert plan._parts is not None
    with sandbox(net):
        attempt = tries.Tries(net, ((X,), {}), plan.graph, plan.keeps, default_registry(), plan._parts)
        assert attempt({}) is None and attempt({}) is None
    assert calls == ["check", "trace", "check", "check"]


class Wrong(Rule):
    """Says that a sigmoid of a constant is another one."""

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        return None if arrays[0] is None else [1 / (1 + np.exp(-arrays[0])) + 0.01]


def test_a_wrong_rule_in_front_of_a_decision_is_found() -> None:
    wrong = Wrong(name="wrong", functions=(torch.sigmoid,), axes="* -> *")
    rules = [r for r in default_registry().rules if torch.sigmoid not in r.functions]
    assert len(rules) < len(list(default_registry().rules))
    net = ranked()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(speedup.CheckError, match="wrong"):
        speedup.plan(
            net,
            X,
            mask_indices(net, {"a.weight": [0, 8], "a.bias": [0, 8]}),
            registry=Registry.from_rules(*rules, wrong),
        )
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_count_that_rounding_tips_locks_nothing() -> None:
    class Kept(Ranked):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.sigmoid(self.a(x))
            s = self.score(y)
            result: torch.Tensor = self.out(self.value(y) * (s == s[:, :1]).nonzero().shape[0])
            return result

    net = ranked()
    net.__class__ = Kept
    plan = speedup.plan(net, X, mask_indices(net, {"a.weight": [0, 8, 3, 11], "a.bias": [0, 3, 8, 11]}))
    assert plan.apply().a.weight.shape == (12, 4)  # type: ignore[union-attr]


def test_a_refusal_says_where_the_masked_model_first_computes_nan() -> None:
    class Ratio(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.out(self.a(x) / self.b(x))
            return made

    model = randomize(Ratio()).eval()
    masks = mask_indices(model, {"b.weight": (1,), "b.bias": (1,)})
    masks["out"] = mask_indices(model, {"out.weight": (1,)}, axis=1)["out"]  # 0 times infinity
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(CheckError, match=r"the model computes NaN, first at out \(torch\.nn\.Linear\)"):
        speedup.plan(model, torch.randn(3, 4), masks).apply()
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


class OneSize(nn.Module):
    """An attribute is a size twice: of values that lose some, and of keys that do not. Of no other size of the input
    can be seen which of them a repair breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim = 2, 8
        self.k, self.v = nn.Linear(4, 16), nn.Linear(4, 16, bias=False)

    def taken(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape != X.shape:
            raise ValueError("inputs of one size only")
        return x


class Rolled(OneSize):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.taken(x)
        v = self.v(x).view(len(x), self.heads, self.dim)
        result: torch.Tensor = self.out(torch.cat([v.flatten(1), self.k(x).roll(self.dim // 2, -1)], -1))
        return result


class Compared(OneSize):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.taken(x)
        x = x * (x.mean(0) > 0)
        k = self.k(x).view(len(x), -1, self.heads, self.dim)
        v = self.v(x).view(len(x), -1, self.heads, self.dim)
        result: torch.Tensor = self.out((k @ k.transpose(2, 3) @ v).flatten(1))
        return result


@pytest.mark.parametrize("kind", [Rolled, Compared])
def test_no_result_is_taken_of_a_call_that_a_repair_gave_another_size(kind: type[OneSize]) -> None:
    net = randomize(kind()).double().eval()
    masks = mask_indices(net, {"v.weight": range(1, 16, 2)})
    masked = masked_copy(net, masks)
    small: Any = speedup.plan(net, X, masks).apply()
    assert small.v.weight.shape == (8, 4)
    with torch.no_grad():
        assert (small(X) - masked(X)).abs().max() < 1e-12
