"""An index that is data: channels that it does not choose among can go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from speedup.testing import Result, check_equal, mask_indices, randomize

A = {1: 0.5, 3: 0.0, 4: -0.25}


class Net(nn.Module):
    """Tokens, indices, and a linear layer that reads what is looked up."""

    def __init__(self, body: Callable[..., torch.Tensor], width: int) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(4, 8), nn.Linear(width, 5)
        self.table = nn.Parameter(torch.zeros(2, 9, 8))
        self.body = body
        randomize(self)
        with torch.no_grad():
            for index, value in A.items():
                self.a.bias[index] = value

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.o(self.body(self, self.a(x), ids))


def checked(body: Callable[..., torch.Tensor], width: int = 8) -> Result:
    model = Net(body, width)
    ids = [torch.randint(0, 3, size, generator=torch.Generator().manual_seed(1)) for size in ((2, 5), (3, 7), (1, 3))]
    inputs = [(torch.randn(*i.shape, 4, generator=torch.Generator().manual_seed(2)), i) for i in ids]
    masks = mask_indices(model, {"a.weight": list(A)})
    masks[""] = {"table": torch.ones(2, 9, 8).index_fill_(2, torch.tensor([1, 3]), 0)}
    return check_equal(model, inputs[0], masks, inputs[1:])


PASSES: dict[str, Callable[..., torch.Tensor]] = {
    "rows": lambda m, x, i: x[i[0] % len(i)],
    "positions": lambda m, x, i: x[:, i[0]],
    "positions from the right": lambda m, x, i: x[..., i[0], :],
    "rows and positions": lambda m, x, i: x[torch.arange(len(i)), i.argmax(1)],
    "rows and positions that broadcast": lambda m, x, i: x[torch.arange(len(i))[:, None], i],
    "one position": lambda m, x, i: x[:, i[0, 0]],
    "a mask": lambda m, x, i: x[i > 0],
    "rows behind a new axis": lambda m, x, i: x[None, i[0] % len(i)],
    "positions between new axes": lambda m, x, i: x[:, None, i, None],
    "a mask before a new axis": lambda m, x, i: x[i > 0, None, :],
    "a mask of positions": lambda m, x, i: x[:, i[0] > 0],
    "torch.index_select": lambda m, x, i: torch.index_select(x, 1, i[0]),
    "index_select by name": lambda m, x, i: x.index_select(index=i[0], dim=-2),
    "gather": lambda m, x, i: x.gather(1, i[:, :, None].expand(-1, -1, x.shape[2])),
    "torch.gather of an index that is repeated": lambda m, x, i: torch.gather(
        x, -2, i.unsqueeze(-1).repeat(1, 1, x.shape[-1])
    ),
    "take_along_dim": lambda m, x, i: torch.take_along_dim(x, i[..., None], dim=1),
    "take_along_dim of one sequence for all": lambda m, x, i: x.take_along_dim(i[:1, :, None], 1),
}
STAYS: dict[str, tuple[Callable[..., torch.Tensor], int]] = {
    "channels": (lambda m, x, i: x[:, :, i[0, :3]], 3),
    "channels by index_select": (lambda m, x, i: x.index_select(2, i[0, :3]), 3),
    "indices that stand apart": (lambda m, x, i: x.transpose(1, 2)[torch.arange(len(i)), :, i.argmax(1)], 8),
    "indices with a new axis between them": (
        lambda m, x, i: x[None, torch.arange(len(i)), None, i.argmax(1)],
        8,
    ),
    "a number beside an index": (lambda m, x, i: x[0, i[0]], 8),
    "a part of an axis beside an index": (lambda m, x, i: x[:, i[0], :8], 8),
    "gather of channels": (lambda m, x, i: x.gather(2, i[:, :, None].expand(-1, -1, 3)), 3),
    "gather of fewer sequences than there are": (
        lambda m, x, i: x.gather(1, i[:1, :, None].expand(-1, -1, x.shape[2])),
        8,
    ),
}


@pytest.mark.parametrize("name", PASSES)
def test_the_other_axes_pass_entry_for_entry(name: str) -> None:
    result = checked(PASSES[name])
    assert result.shape("a.weight") == (5, 4) and result.shape("o.weight") == (5, 5)
    assert "index" not in str(result.plan.report.barriers)


@pytest.mark.parametrize("name", STAYS)
def test_what_else_is_indexed_stays(name: str) -> None:
    body, width = STAYS[name]
    result = checked(body, width)
    assert result.shape("a.weight") == (8, 4)


def test_a_table_goes_where_masks_make_its_columns_equal() -> None:
    """A parameter has numbers everywhere; only what is masked in all that may be chosen is a constant."""
    result = checked(lambda m, x, i: m.table[:, i].sum(0) + 0.0 * x)
    assert result.shape("table") == (2, 9, 6)


def test_all_rows_stay_though_one_is_chosen() -> None:
    result = checked(lambda m, x, i: m.table[0][i * 0])
    assert result.shape("table") == (2, 9, 6)


class Normed(nn.Module):
    """Of a table behind a norm, rows."""

    def __init__(self, chosen: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.n, self.o = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 5)
        self.chosen = chosen
        randomize(self)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.o(self.chosen(self.n(self.a(x)), ids))


def spread(ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return ids[None, :, None].expand(len(x), -1, x.shape[2])


ROWS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], int]] = {
    "the same for all channels": (lambda x, i: x[:, i], 6),  # one carrier
    "along a broadcast axis": (lambda x, i: torch.take_along_dim(x, i[None, :, None], 1), 6),
    "a copy for each channel": (lambda x, i: x.gather(1, spread(i, x)), 8),  # nothing says that they are copies
    "others for each channel": (lambda x, i: x.gather(1, (spread(i, x) + torch.arange(8)) % x.shape[1]), 8),
}


@pytest.mark.parametrize("name", ROWS)
def test_behind_a_norm(name: str) -> None:
    """What is a multiple of one unknown at every position still is when positions are chosen for all channels alike."""
    chosen, left = ROWS[name]
    model = Normed(chosen)
    inputs = (torch.randn(2, 5, 4), torch.tensor([1, 1, 4]))
    masks = mask_indices(model, {"a.weight": [1, 3, 4], "a.bias": [1, 3, 4]})
    result = check_equal(model, inputs, masks, [(torch.randn(3, 7, 4), torch.tensor([6, 0]))])
    assert result.shape("o.weight") == (5, left)
