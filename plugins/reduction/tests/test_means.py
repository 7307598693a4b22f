"""Means over channels in the code of a forward: what is zero goes, and what is left is still divided by all of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.testing import Result, check_equal, mask_indices, random_masks, randomize


class Gated(nn.Module):
    """An RMS norm over groups, behind a gate."""

    def __init__(self, width: int, group_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.group_size = group_size

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        x = x * F.silu(gate)
        *leading, width = x.shape
        grouped = x.view(*leading, width // self.group_size, self.group_size)
        grouped = grouped * torch.rsqrt(grouped.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * grouped.view(*leading, width // self.group_size * self.group_size)


def squares(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean(dim=-1, keepdim=True)


class Norms(nn.Module):
    """The mean as a method, as a function, over several axes, of a helper's, and times something in the same line."""

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        y = x * torch.rsqrt(torch.mean(x * x, -1, True) + 1e-5) + x / (squares(x) + 1)
        y = y + 0.5 * x.abs().mean(-1, keepdim=True) * x
        return (
            y
            + x.abs()
            .mean((1, 2))
            .mul(0.3)[:, None, None]
            * x
        ) * gate.sigmoid()  # fmt: skip


class Net(nn.Module):
    def __init__(self, norm: nn.Module, bias: bool = False) -> None:
        super().__init__()
        self.a = nn.Linear(5, 8, bias=bias)
        self.b = nn.Linear(5, 8)
        self.norm = norm
        self.out = nn.Linear(8, 3)
        randomize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.a(x), self.b(x)))


def tokens(batch: int, count: int) -> torch.Tensor:
    return torch.randn(batch, count, 5, generator=torch.Generator().manual_seed(count))


def checked(net: nn.Module, dropped: list[int]) -> Result:
    return check_equal(net, tokens(2, 4), mask_indices(net, {"a.weight": dropped}), [tokens(1, 7), tokens(3, 4)])


@pytest.mark.parametrize("norm", [Gated(8, 8), Gated(8, 4), Norms()], ids=["gated", "groups", "all forms"])
def test_channels_that_are_zero_go_with_their_gates(norm: nn.Module) -> None:
    result = checked(Net(norm), [0, 3, 5, 6])
    assert all(result.shape(n) == (4, 5) for n in ("a.weight", "b.weight"))
    assert result.shape("out.weight") == (3, 4)


def test_what_is_not_zero_is_counted() -> None:
    result = checked(Net(Norms(), bias=True), [0, 3])
    assert result.shape("a.weight") == (8, 5)


@pytest.mark.parametrize("kind", ["filters", "columns", "fine"])
@pytest.mark.parametrize("norm", [Gated(8, 4), Norms()], ids=["groups", "all forms"])
def test_all_kinds_of_masks_stay_equal(norm: nn.Module, kind: str) -> None:
    net = Net(norm)
    check_equal(net, tokens(2, 4), random_masks(net, 1, kind), [tokens(1, 7)])


def test_rounds_multiply() -> None:
    """What is left of what is left is divided by all that there were."""
    net = Net(Norms()).double().eval()
    small = speedup.plan(net, tokens(2, 4).double(), mask_indices(net, {"a.weight": [0, 3, 5, 6]})).apply(net)
    result = checked(small, [1, 2])
    assert result.shape("a.weight") == (2, 5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_it_survives_copies(copied: Callable[[nn.Module], nn.Module]) -> None:
    net, x = Net(Norms()).double().eval(), tokens(2, 4).double()
    masks = mask_indices(net, {"a.weight": [0, 3, 5, 6]})
    small = speedup.plan(net, x, masks).apply(copy.deepcopy(net))
    torch.testing.assert_close(copied(small)(x), speedup.testing.masked_copy(net, masks)(x), rtol=1e-12, atol=1e-12)


def test_a_saved_model_goes_on_counting(tmp_path: Path) -> None:
    net, x = Net(Norms()).double().eval(), tokens(2, 4).double()
    small = speedup.plan(net, x, mask_indices(net, {"a.weight": [0, 3, 5, 6]})).apply(copy.deepcopy(net))
    speedup.save(small, tmp_path / "small")
    loaded = speedup.load(Net(Norms()).double().eval(), tmp_path / "small")
    assert torch.equal(loaded(x), small(x))


def test_gradients_are_those_of_the_masked_model() -> None:
    net, x = Net(Norms()).double().eval(), tokens(2, 4).double()
    masks = mask_indices(net, {"a.weight": [0, 3, 5, 6]})
    small = speedup.plan(net, x, masks).apply(copy.deepcopy(net))
    big = speedup.testing.masked_copy(net, masks)
    big(x).square().sum().backward()
    small(x).square().sum().backward()
    torch.testing.assert_close(small.a.weight.grad, big.a.weight.grad[[1, 2, 4, 7]])


def test_code_out_of_reach_keeps_its_channels() -> None:
    """A function that is made while the program runs has no source that could be changed."""
    names: dict[str, object] = {}
    exec("def scaled(x, gate):\n    return x / (x.abs().mean(-1, keepdim=True) + 1) * gate", names)

    class Unseen(nn.Module):
        def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
            return names["scaled"](x, gate)  # type: ignore[operator,no-any-return]

    result = checked(Net(Unseen()), [0, 3])
    assert result.shape("a.weight") == (8, 5)
    assert any("a mean over it" in stay.why for stay in result.plan.report.stays)


def test_a_mean_over_positions_counts_them_as_they_are() -> None:
    """Zeros that pad the positions do not depend on how many there are."""

    class Pooled(nn.Module):
        def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
            return F.pad(x, (0, 0, 1, 2)).mean(1, keepdim=True) * gate

    result = checked(Net(Pooled()), [0, 3, 5, 6])
    assert result.shape("out.weight") == (3, 4)
    assert "* 0" not in str(result.plan)


def test_a_mean_over_positions_of_a_table_is_no_constant() -> None:
    """How much of the table is read depends on the input."""

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Linear(5, 8, bias=False), nn.Linear(8, 3)
            self.table = nn.Parameter(torch.ones(1, 16, 8))
            randomize(self)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.out((self.a(x) + self.table[:, : x.shape[1]]).mean(1))
            return y

    checked(Placed(), [0, 3, 5, 6])
