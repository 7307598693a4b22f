"""What folding leaves out since it changes nothing: columns that are multiplied with 0, and passes over one unknown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from speedup import default_registry, response
from speedup.carriers import Rows
from speedup.graph import Node
from speedup.response import response as respond
from speedup.testing import check_equal, mask_indices, randomize
from speedup.trace import sandbox, trace


def node_of(layer: nn.Module, *inputs: torch.Tensor) -> Node:
    with sandbox(layer):
        graph = trace(layer, inputs, {}, default_registry())
    return next(n for n in graph.nodes if n.rule is not None and n.rule.folds(n))


def named(node: Node, k: int, axis: int, array: np.ndarray) -> np.ndarray:
    shape = [1] * len(node.layout.operands[k] or ())
    shape[axis] = -1
    return node.layout.to_named(k, array.reshape(shape))


@pytest.mark.parametrize("at_once", [8, 1 << 17])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("count", [1, 5])
def test_the_response_is_that_of_the_call(
    groups: int, count: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response, "AT_ONCE", at_once)
    conv = randomize(nn.Conv2d(12, 8, (3, 2), groups=groups)).double()
    node = node_of(conv, torch.zeros(1, 12, 5, 5, dtype=torch.float64))
    values, wanted = np.zeros(12), np.arange(8) % 3 > 0
    values[:count] = values[6 : 6 + count] = np.arange(count) + 1.0
    given_values = torch.from_numpy(values).reshape(1, 12, 1, 1).expand(1, 12, 3, 2)
    right = nn.functional.conv2d(given_values, conv.weight, groups=groups).reshape(-1)
    found = respond(node, 0, 1, named(node, 0, 1, values), named(node, node.layout.n_inputs, 1, wanted))
    found = node.layout.from_named(node.layout.n_inputs, found).reshape(-1)
    assert np.allclose(found[wanted], right.detach().numpy()[wanted], rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [8, 1 << 17])
@pytest.mark.parametrize("count", [1, 5, 20])
@pytest.mark.parametrize("lost", [0, 3])
def test_the_response_of_a_matrix(
    lost: int, count: int, at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response, "AT_ONCE", at_once)
    linear = randomize(nn.Linear(20, 7)).to(dtype)
    node = node_of(linear, torch.zeros(1, 20, dtype=dtype))
    values, wanted = np.zeros(20), np.arange(7) >= lost
    values[20 - count :] = np.arange(count) + 1.0
    right = linear.weight.detach().double().numpy() @ values
    found = respond(node, 0, 1, named(node, 0, 1, values), named(node, node.layout.n_inputs, 1, wanted)).reshape(-1)
    assert np.allclose(found[wanted], right[wanted], rtol=1e-12) and not found[~wanted].any()


def test_a_column_that_nobody_asks_for_may_hold_anything() -> None:
    linear = randomize(nn.Linear(6, 3)).double()
    node = node_of(linear, torch.zeros(1, 6, dtype=torch.float64))
    values = np.array([0.0, 1.0, 2.0, 3.0, 0.0, 4.0])
    weight = linear.weight.detach().clone()
    right = weight.numpy() @ values
    weight[0, 0] = weight[1, 4] = float("inf")
    wanted = named(node, node.layout.n_inputs, 1, np.ones(3, dtype=bool))
    assert np.allclose(respond(node, 0, 1, named(node, 0, 1, values), wanted, weight).reshape(-1), right)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 6))
def test_one_unknown_lacks_what_many_would(seed: int, groups: int, entries: int) -> None:
    rng = np.random.default_rng(seed)

    def lacking(numbers: np.ndarray) -> np.ndarray:
        rows = Rows.__new__(Rows)
        rows.all, rows.gone, rows.kept = numbers, gone, kept
        rows.at, rows.offset = np.arange(entries), np.zeros((groups, entries))
        rows.going_at = gone.any(axis=0).nonzero()[0]
        rows.going = np.where(gone[:, None], numbers, 0.0)[:, :, rows.going_at]
        return rows.lacking

    gone = rng.random((groups, entries)) < 0.5
    kept = ~gone & (rng.random((groups, entries)) < 0.5)
    one = rng.choice([0.0, 1e-12, 1e-4, 0.5, -1.0, 2.0], (groups, 1, entries))
    assert np.array_equal(lacking(one), lacking(np.concatenate([one, np.zeros_like(one)], axis=1)))


@pytest.mark.parametrize("lost", ["alike", "by group", "uneven rows", "a whole group"])
def test_grouped_weights_carry(lost: str) -> None:
    """Constants under zero padding, which the columns of the kept ones carry: groups keep as many, or not."""
    rows = {"alike": [0, 4, 8], "by group": [0, 5, 10], "uneven rows": [0, 4], "a whole group": [0, 4, 8]}[lost]
    net = randomize(
        nn.Sequential(
            nn.Conv2d(3, 12, 3),
            nn.ReLU(),
            nn.Conv2d(12, 12, 3, padding=1, groups=3),
            nn.Conv2d(12, 4, 1),
        )
    ).double()
    with torch.no_grad():
        net[0].bias.abs_().add_(0.5)  # type: ignore[union-attr, operator]
    more = [4, 5, 6, 7] if lost == "a whole group" else []
    gone = {"0.weight": sorted({*rows, 1, 6, 11}), "2.weight": sorted({*rows, *more}), "2.bias": sorted({*rows, *more})}
    check_equal(net, torch.randn(2, 3, 7, 7, dtype=torch.float64), mask_indices(net, gone))
