"""Channels in an order that a buffer holds (permutations of flows, shuffles that are drawn once)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import speedup
from speedup.testing import Result, check_equal, mask_indices, masked_copy, randomize

GONE = (1, 3, 4)
ORDER = [7, 2, 4, 0, 3, 6, 1, 5]


class Net(nn.Module):
    """A layer, its channels in another order, and a layer that reads them."""

    perm: Tensor

    def __init__(self, body: Callable[..., Tensor], order: list[int] = ORDER, persistent: bool = True) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(len(order), 5)
        self.body = body
        self.register_buffer("perm", torch.tensor(order), persistent=persistent)
        randomize(self)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(self.body(self.a(x), self.perm))
        return result


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, 4, generator=torch.Generator().manual_seed(shape[0]))


def checked(model: Net, masked: tuple[int, ...] = GONE, **more: list[int]) -> Result:
    gone = {"a.weight": list(masked), "a.bias": list(masked[1:])}  # of one a constant is left
    return check_equal(model, images(2, 3), mask_indices(model, {**gone, **more}), [images(5, 2)])


FORMS: dict[str, Callable[..., Tensor]] = {
    "x[..., perm]": lambda y, perm: y[..., perm],
    "x[:, :, perm]": lambda y, perm: y[:, :, perm],
    "index_select": lambda y, perm: torch.index_select(y, -1, perm),
    "x.index_select": lambda y, perm: y.index_select(2, perm).relu(),
    "behind a transposition": lambda y, perm: y.mT[:, perm].mT,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_buffer_holds_the_places_of_what_is_left(form: Callable[..., Tensor]) -> None:
    result = checked(Net(form))
    assert result.shape("a.weight") == (5, 4) and result.shape("b.weight") == (5, 5)
    assert result.model.get_buffer("perm").tolist() == [4, 1, 0, 3, 2]  # of 0, 2, 5, 6, 7


@pytest.mark.parametrize("order", [[0, 2, 2, -1, -3], [6, 6], [3, 5, 1]], ids=str)
def test_channels_may_come_out_several_times_or_not_at_all(order: list[int]) -> None:
    result = checked(Net(FORMS["x[..., perm]"], order), masked=(1, 3))
    kept = {o % 8 for o in order} - {1, 3}
    assert result.shape("a.weight")[0] == len(kept)


def test_what_nobody_reads_behind_it_goes_in_front() -> None:
    model = Net(FORMS["x[..., perm]"])
    masks = mask_indices(model, {"b.weight": [0, 1]}, axis=1)
    result = check_equal(model, images(2, 3), masks, [images(5, 2)])
    assert result.shape("a.weight") == (6, 4)  # 7 and 2


def test_an_index_of_two_calls_keeps_what_they_choose_from() -> None:
    assert checked(Net(lambda y, perm: y[..., perm].tanh()[..., perm])).shape("a.weight") == (8, 4)


def test_the_order_is_kept_with_the_model(tmp_path: Path) -> None:
    model = Net(FORMS["x[..., perm]"], persistent=False).double().eval()
    masks = mask_indices(model, {"a.weight": list(GONE), "a.bias": list(GONE)})
    wanted = masked_copy(model, masks)
    small = speedup.plan(model, images(2, 3).double(), masks).apply()
    speedup.save(small, tmp_path / "small")
    again = speedup.load(Net(FORMS["x[..., perm]"], persistent=False).double().eval(), tmp_path / "small")
    assert torch.allclose(again(images(5, 2).double()), wanted(images(5, 2).double()))


def test_channels_that_are_one_are_found_through_the_order() -> None:
    model = Net(FORMS["x[..., perm]"]).eval()
    groups = speedup.channel_groups(model, images(2, 3))
    assert any("a" in str(g) and "b" in str(g) for g in groups)
