"""What folding leaves out since it changes nothing: columns that are multiplied with 0, and passes over one unknown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from speedup import default_registry, response
from speedup.carriers import Carriers
from speedup.node import Node
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


def carriers_of(numbers: np.ndarray, gone: np.ndarray, kept: np.ndarray) -> Carriers:
    """Those of rows with these numbers, (groups, unknowns, entries)."""
    return Carriers(numbers, np.zeros(gone.shape), gone, kept)


def is_spanned(found: Carriers, numbers: np.ndarray) -> bool:
    """Whether what goes is what the carriers give of it, and only kept ones carry."""
    span = found.span
    made = numbers[:, :, span.at] @ span.left @ span.shares
    own = np.where(found.kept[:, span.at, None], 0.0, span.left)
    wanted = np.where(found.gone[:, None], numbers, 0.0)[:, :, found.going_at]
    made = np.where(found.gone[:, None, found.going_at], made, 0.0)
    return not own.any() and np.allclose(made, wanted, rtol=0, atol=1e-8 * np.abs(numbers).max(initial=1e-30))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 6))
def test_one_unknown_lacks_what_many_would(seed: int, groups: int, entries: int) -> None:
    rng = np.random.default_rng(seed)
    gone = rng.random((groups, entries)) < 0.5
    kept = ~gone & (rng.random((groups, entries)) < 0.5)
    one = rng.choice([0.0, 1e-12, 1e-4, 0.5, -1.0, 2.0], (groups, 1, entries))
    two = np.concatenate([one, np.zeros_like(one)], axis=1)
    assert np.array_equal(carriers_of(one, gone, kept).lacking, carriers_of(two, gone, kept).lacking)


@pytest.mark.parametrize("unknowns", [1, 3])
def test_few_of_many_kept_rows_carry(unknowns: int) -> None:
    rng = np.random.default_rng(unknowns)
    numbers, kept = rng.normal(size=(2, unknowns, 400)), rng.random((2, 400)) < 0.5
    found = carriers_of(numbers, ~kept, kept)
    assert not found.lacking.any() and is_spanned(found, numbers)
    assert len(found.span.at) <= 2 * 16 * unknowns, "a few in each group"


def test_where_the_longest_kept_rows_do_not_suffice_all_carry() -> None:
    rng = np.random.default_rng(0)
    numbers = np.zeros((1, 2, 160))
    numbers[0, 0] = rng.normal(size=160) + 10
    numbers[0, 1, [7, 140, 150]] = 1.0
    numbers[0, 0, 7] = 0.0
    kept = np.arange(160)[None] < 80
    found = carriers_of(numbers, ~kept, kept)
    assert not found.lacking.any() and is_spanned(found, numbers) and 7 in found.span.at


def test_where_the_longest_kept_rows_are_nearly_alike_all_carry() -> None:
    """Else weights hundreds of times as large as those that go would come of it."""
    rng = np.random.default_rng(0)
    numbers = np.stack([rng.normal(size=160), np.ones(160)])[None]
    numbers[0, 0, :40] = 1000 * (1 + 1e-3 * rng.normal(size=40))
    kept = np.arange(160)[None] < 80
    found = carriers_of(numbers, ~kept, kept)
    assert not found.lacking.any() and is_spanned(found, numbers)
    assert np.abs(found.span.left @ found.span.shares).max() < 1


def test_groups_of_fewer_entries_than_there_are_unknowns() -> None:
    """Constants under the padding of one convolution come to each channel of another by itself."""
    layers = [nn.Conv2d(2, 8, 1), *(nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(2)), nn.Conv2d(8, 3, 1)]
    model = randomize(nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), *layers[2:])).double()
    check_equal(model, torch.randn(2, 2, 6, 7, dtype=torch.float64), mask_indices(model, {"0.weight": [1, 2, 5]}))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 4), st.integers(1, 30))
def test_carriers_that_were_found_serve_for_less_that_goes(seed: int, groups: int, unknowns: int, entries: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.choice([0.0, 0.5, -1.0, 2.0, 3.5], (groups, unknowns, entries))
    gone = rng.random((groups, entries)) < 0.6
    kept = ~gone & (rng.random((groups, entries)) < 0.3)
    before = carriers_of(numbers, gone, kept)
    more = before.lacking | (gone & (rng.random(gone.shape) < 0.3))
    still, carry = gone & ~more, kept | more
    now = before.narrowed(still, carry)
    if now is not None:
        assert not now.lacking.any() and np.array_equal(now.going_at, still.any(axis=0).nonzero()[0])
        assert is_spanned(now, numbers)
    anew = carriers_of(numbers, still, carry)
    assert not anew.lacking.any() and is_spanned(anew, numbers)
    assert before.narrowed(still, kept) is None or not before.lacking.any(), "less is kept than it took"


def test_carriers_are_found_anew_where_what_still_goes_is_much_smaller() -> None:
    numbers = np.array([[[1.0, 0.0, 1e-9, 0.0], [0.0, 1.0, 0.0, 1e-9], [0.0, 0.0, 1e-14, 1e-14]]])
    gone, kept = np.ones((1, 4), bool), np.zeros((1, 4), bool)
    before = carriers_of(numbers, gone, kept)
    assert before.lacking.tolist() == [[True, True, False, False]]
    assert before.narrowed(gone & ~before.lacking, before.lacking) is None


def test_carriers_are_found_anew_where_what_goes_became_much_smaller_little_by_little() -> None:
    sizes = 0.2 ** np.arange(16)
    numbers = np.array([[[*sizes, 1e-11], [*sizes, -1e-11]]])
    kept = np.arange(17)[None] < 1
    found = carriers_of(numbers, ~kept, kept)
    assert not found.lacking.any(), "the last is rounding beside the others"
    for last in range(2, 17):
        kept = np.arange(17)[None] < last
        found = found.narrowed(~kept, kept) or carriers_of(numbers, ~kept, kept)
    assert found.lacking[0, 16], "it is alone"


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
