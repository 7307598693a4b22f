"""The masked model in a traced run: what a call reads is masked, and nothing else; at the end all is as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import speedup
from speedup import masking
from speedup.kept import kept_of
from speedup.masking import Masking, masked
from speedup.testing import masked_copy, randomize

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def layer() -> tuple[nn.Linear, torch.Tensor, Masking]:
    linear = randomize(nn.Linear(4, 6).double(), 0)
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[[0, 3]] = False
    return linear, mask, Masking(linear, {"weight": mask})


def test_a_parameter_is_masked_for_one_call() -> None:
    linear, mask, masking = layer()
    before, at = linear.weight.detach().clone(), linear.weight.data_ptr()
    with masking.run():
        states = masking.mask([linear.weight, linear.bias])
        assert torch.equal(linear.weight, before * mask) and linear.weight.data_ptr() != at
        masking.unmask(states, [linear.weight.sum()])
        assert linear.weight.data_ptr() == at
    assert torch.equal(linear.weight, before)


@pytest.mark.parametrize("use", ["view", "write", "again"])
def test_it_stays_masked_where_a_run_may_notice(use: str) -> None:
    linear, mask, masking = layer()
    before, at = linear.weight.detach().clone(), linear.weight.data_ptr()
    with torch.no_grad(), masking.run():
        for _ in range(2 if use == "again" else 1):
            states = masking.mask([], linear)
            if use == "write":
                linear.weight.add_(1)
            masking.unmask(states, [linear.weight.t()[1:]] if use == "view" else [])
        expected: torch.Tensor = before * mask
        if use == "write":
            expected = expected + 1
        assert torch.equal(linear.weight, expected)
    assert torch.equal(linear.weight, before) and linear.weight.data_ptr() == at


def test_the_mask_of_a_tied_parameter_is_that_of_all_its_names() -> None:
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = one.weight
    model = nn.Sequential(one, other)
    first, second = (torch.arange(16).reshape(4, 4) % n != 0 for n in (2, 3))
    masking = Masking(model, {"0.weight": first, "1.weight": second}, whole=True)
    with masking.run():
        assert torch.equal(other.weight.detach().bool(), first & second)


class Writes(nn.Module):
    """Uses its own weights in some way that is not just reading them."""

    def __init__(self, use: Callable[[Any], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.use = use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(torch.relu(nn.functional.linear(x, self.use(self), self.first.bias)))
        return y


def doubled_in_place(m: Any) -> torch.Tensor:
    line = m.first.weight[1:2]
    m.first.weight.mul_(2)
    return torch.cat([m.first.weight[:1], line, m.first.weight[2:]])


def clamped_data(m: Any) -> torch.Tensor:
    m.first.weight.data.clamp_(-0.5, 0.5)
    weight: torch.Tensor = m.first.weight
    return weight


def data_times(m: Any) -> torch.Tensor:
    m.first.weight.data *= 0.5  # as PixelCNNs do with a mask: written into, and then set to itself
    weight: torch.Tensor = m.first.weight
    return weight


def other_data(m: Any) -> torch.Tensor:
    m.first.weight.data = m.first.weight.data / m.first.weight.abs().sum()
    weight: torch.Tensor = m.first.weight
    return weight


def read_often(m: Any) -> torch.Tensor:
    return torch.stack([m.first.weight * 1 for _ in range(5)]).sum(0)


def last_doubled(m: Any) -> torch.Tensor:
    m.last.weight.mul_(2)
    m.last.bias.data = m.last.bias.data + 1
    weight: torch.Tensor = m.first.weight
    return weight


@pytest.mark.parametrize(
    ("use", "left"),
    [(doubled_in_place, 5), (clamped_data, 4), (data_times, 4), (other_data, 6), (last_doubled, 5), (read_often, 4)],
)
def test_forwards_that_write_into_weights(use: Callable[[Any], torch.Tensor], left: int) -> None:
    """They are put back after every run, of the small model too: else its first use would be its second run."""
    model = randomize(Writes(use).double().eval(), 0)
    masks = {"first.weight": torch.ones(6, 4)}  # the biases stay: constants that are not 0
    masks["first.weight"][[1, 4]] = 0
    before = {n: (t.clone(), t.data_ptr()) for n, t in model.state_dict().items()}
    with torch.no_grad():
        wanted = masked_copy(model, masks)(X)
        plan = speedup.plan(model, X, masks)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name][0]) and tensor.data_ptr() == before[name][1]
        small = plan.apply()
        torch.testing.assert_close(small(X), wanted, rtol=1e-12, atol=1e-12)
    assert small.get_parameter("first.weight").shape[0] == left


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.int32, torch.bool]
)
@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 1, 1), (1, 4, 1)])
@pytest.mark.parametrize("few", [0, 2**11])
def test_what_the_mask_keeps_is_as_it_was(
    dtype: torch.dtype, shape: tuple[int, ...], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masking, "_FEW", few)
    generator = torch.Generator().manual_seed(0)
    tensor = (torch.randn(5, 4, 3, generator=generator) * 3).to(dtype).transpose(0, 1).contiguous().transpose(0, 1)
    mask = torch.rand(shape, generator=generator) > 0.5
    wanted = torch.where(mask, tensor, torch.zeros((), dtype=dtype))
    made = masked(tensor, mask)
    assert made.dtype is dtype and made.stride() == tensor.stride() and torch.equal(made, wanted)
    assert torch.equal(masked(tensor, mask, out=made), wanted) and torch.equal(made, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(5, 4), (5, 1)])
@pytest.mark.parametrize("few", [0, 2**11])
def test_what_is_no_number_is_0_where_it_is_masked(
    dtype: torch.dtype, shape: tuple[int, ...], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masking, "_FEW", few)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[1:3] = False
    tensor = torch.ones(5, 4, dtype=dtype)
    tensor[1], tensor[2], tensor[4, 0] = torch.nan, -torch.inf, torch.inf
    wanted = torch.where(mask, tensor, torch.zeros((), dtype=dtype))
    assert torch.equal(masked(tensor, mask), wanted) and torch.equal(masked(tensor, mask, out=tensor), wanted)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_small_model_has_0_where_no_number_was_masked(number: float) -> None:
    """Single entries are masked, which stay; of whole filters the constants go into what reads them."""
    model = randomize(nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 3)), 0)
    model.double()
    masks = {f"{i}.weight": torch.ones(model.get_parameter(f"{i}.weight").shape, dtype=torch.bool) for i in (0, 2)}
    masks["0.weight"][[1, 4]], masks["2.weight"][2, 3], masks["2.weight"][0] = False, False, False
    wanted = masked_copy(model, masks)(X)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name)[~mask] = number
    for masked_model in (speedup.masks.apply_masks(copy.deepcopy(model), masks), masked_copy(model, masks)):
        assert torch.equal(masked_model(X), wanted)
    small: Any = speedup.ModelSpeedup(model, X, masks).speedup_model()
    assert small[0].out_features == 6 and small[2].out_features == 5
    torch.testing.assert_close(small(X), wanted, rtol=1e-12, atol=1e-12)


class Fresh(TorchDispatchMode):
    """Counts the entries of the floating-point tensors that ops make."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in pytree.tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        if torch.is_tensor(result) and result.is_floating_point():
            self.entries += result.numel() * (result.untyped_storage().data_ptr() not in given)
        return result


def test_what_is_masked_of_what_stays_takes_no_further_memory() -> None:
    model = randomize(nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 256))).eval()
    rows, columns = torch.ones(256, 1), torch.ones(128, 1)
    rows[::2], columns[::2] = 0, 0
    masks = {"0.weight": columns.expand(128, 64), "0.bias": columns[:, 0], "1.weight": rows.expand(256, 128)}
    plan = speedup.plan(model, torch.randn(2, 64), masks)
    (weight,) = (v for v in plan.graph.sources if v.names == ("1.weight",))
    with Fresh() as fresh:
        small = kept_of(plan.keeps, weight)
    assert small.shape == (256, 64) and not small[::2].any(), "outputs stay, and are masked"
    assert fresh.entries < small.numel() + 64
