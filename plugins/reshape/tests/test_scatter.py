"""What goes to an index that is data: channels that are 0 before and after can go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from speedup.testing import Result, check_equal, mask_indices, randomize

A = (1, 3, 4)


class Net(nn.Module):
    """Nodes of a graph, the numbers of their neighbours, and a linear layer that reads what arrives."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.body = body
        randomize(self)

    def forward(self, x: Tensor, to: Tensor) -> Tensor:
        result: Tensor = self.o(self.body(self, self.a(x), to))
        return result


def checked(body: Callable[..., Tensor], bias: bool = False) -> Result:
    model = Net(body)
    numbers = torch.Generator().manual_seed(1)
    inputs = [(torch.randn(n, 4, generator=numbers), torch.randint(0, n, (n,), generator=numbers)) for n in (6, 9, 1)]
    masked = {f"{m}.{p}": A for m in "ab" for p in ("weight", "bias") if p == "weight" or not bias}
    return check_equal(model, inputs[0], mask_indices(model, masked), inputs[1:])


def assigned(to: Tensor, index: object, value: Tensor | float) -> Tensor:
    result = to.clone()
    result[index] = value  # type: ignore[index]
    return result


def spread(to: Tensor, x: Tensor) -> Tensor:
    return to[:, None].expand_as(x)


PASSES: dict[str, Callable[..., Tensor]] = {
    "index_add": lambda m, x, to: torch.zeros_like(x).index_add(0, to, x),
    "index_add_ of another size": lambda m, x, to: (
        torch.zeros(len(x) + 1, x.shape[1]).to(x).index_add_(0, to, x, alpha=2)
    ),
    "index_add to others": lambda m, x, to: torch.index_add(x, 0, to, x.tanh()),
    "index_copy": lambda m, x, to: x.index_copy(0, to, x * 2),
    "index_reduce": lambda m, x, to: torch.zeros_like(x).index_reduce(0, to, x, "mean", include_self=False),
    "along the last axis": lambda m, x, to: torch.zeros_like(x.t()).index_add(-1, to, x.t()).t(),
    "scatter": lambda m, x, to: x.scatter(0, spread(to, x), x * 2),
    "scatter_add_": lambda m, x, to: x.new_zeros(len(x), x.shape[1]).scatter_add_(0, spread(to, x), x),
    "scatter_reduce": lambda m, x, to: torch.zeros_like(x).scatter_reduce(0, spread(to, x), x, "amax"),
    "a mean of neighbours": lambda m, x, to: (
        torch.zeros_like(x).index_add(0, to, x[to])
        / torch.zeros(len(x)).to(x).index_add(0, to, torch.ones(len(x)).to(x)).clamp(min=1)[:, None]
    ),
    "x[ids] = y": lambda m, x, to: assigned(torch.zeros_like(x), to, x.tanh()),
    "x[ids] += y": lambda m, x, to: assigned(x, to, x[to] + x),
    "x[ids] = a row": lambda m, x, to: assigned(x, to, x.mean(0)),
    "x[ids] = 0": lambda m, x, to: assigned(x, to, 0.0),
    "x[:, ids] = y": lambda m, x, to: assigned(x[None], (slice(None), to), x[None].tanh())[0],
    "x[rows, columns] = y": lambda m, x, to: assigned(x.new_zeros(2, len(x), x.shape[1]), (to % 2, to), x[to]).sum(0),
    "masked_scatter": lambda m, x, to: x.masked_scatter((to > 1)[:, None].expand_as(x), x.tanh().flip(0)),
    "masked_scatter of images": lambda m, x, to: torch.masked_scatter(
        x, (to > 1).unsqueeze(-1).expand(-1, x.shape[-1]).to(x.device), torch.stack([x, x * 2])
    ),
    "index_fill": lambda m, x, to: x.index_fill(0, to[:1], 0.0),
    "x[mask] = y": lambda m, x, to: assigned(x, to > 1, x[to > 1].tanh()),
    "x[mask of two axes] = y": lambda m, x, to: assigned(torch.stack([x, x]), torch.stack([to, to]) > 1, x.mean(0))[0],
}
STAYS: dict[str, Callable[..., Tensor]] = {
    "masked_scatter of single entries": lambda m, x, to: x.masked_scatter(x > 0, x),
    "index_fill with a number": lambda m, x, to: x.index_fill(0, to[:1], 1.5),
    "a number": lambda m, x, to: x.scatter(0, spread(to, x), 1.5),
    "a number to an index": lambda m, x, to: assigned(x, to, 1.5),
    "a tensor that is not masked to an index": lambda m, x, to: assigned(x, to, x.mean()),
    "assignment to channels": lambda m, x, to: assigned(x, (slice(None), to.repeat(8)[:3] % 8), x[:, :3]),
    "channels": lambda m, x, to: torch.zeros_like(x).index_add(1, to.repeat(8)[:8] % 8, x),
    "fewer than there are": lambda m, x, to: torch.zeros_like(x).scatter_add(0, spread(to, x)[:, :6], x),
}


@pytest.mark.parametrize("name", PASSES)
def test_the_other_axes_pass_entry_for_entry(name: str) -> None:
    result = checked(PASSES[name])
    assert result.shape("a.weight") == (5, 4) and result.shape("o.weight") == (5, 5)
    assert not result.plan.report.barriers


@pytest.mark.parametrize("name", STAYS)
def test_what_else_is_scattered_stays(name: str) -> None:
    assert checked(STAYS[name]).shape("a.weight") == (8, 4)


def test_channels_that_come_in_alike_go_out_alike() -> None:
    """What is 0 and goes into ones is the same in all masked channels, and one carries it for the others."""
    result = checked(lambda m, x, to: torch.ones_like(x).index_add(0, to, x))
    assert result.shape("a.weight") == (6, 4)


def test_sums_of_other_constants_are_not_constant() -> None:
    assert checked(PASSES["index_add"], bias=True).shape("o.weight") == (5, 8)


def test_what_nobody_reads_is_not_scattered() -> None:
    result = checked(lambda m, x, to: torch.zeros_like(x).index_add(0, to, x) * m.b(x))
    assert result.shape("a.weight") == (5, 4) and result.shape("b.weight") == (5, 5)
