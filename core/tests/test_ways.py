"""Where Python asks data for a truth value, both ways are planned; the small model is right whichever the data take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import speedup
from speedup.testing import mask_indices, masked_copy, randomize

ROWS = (1, 4, 6)
UP = torch.rand(3, 4, dtype=torch.float64) + 0.1  # sum > 0
DOWN = -UP


class Two(nn.Module):
    """Two linear layers; of the 8 hidden units 3 are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.more = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 8)

    def between(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> Any:
        return self.two(self.between(self.one(x), x))


def shrink(model: nn.Module, bias: bool = True) -> Any:
    """The small model; it must give the masked one's answers on data that go either way."""
    model = randomize(model).double().eval()
    masks = mask_indices(model, {"one.weight": ROWS, **({"one.bias": ROWS} if bias else {})})
    masked = masked_copy(model, masks)
    plan = speedup.plan(model, UP, masks)
    small: Any = plan.apply()
    with torch.no_grad():
        for x in (UP, DOWN, UP[:1], DOWN[:2]):
            torch.testing.assert_close(small(x), masked(x), rtol=1e-9, atol=1e-9)
    return small


def width(small: Any) -> int:
    return int(small.one.weight.shape[0])


class Either(Two):
    def between(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return y.relu() if x.sum() > 0 else y * 2


class Nested(Two):
    def between(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        y = y.tanh() if bool((x > 0).all()) else y * 2
        if torch.equal(x, x.abs()) or x.max() > 5:
            y = y.relu()
        return y


@pytest.mark.parametrize("model", [Either(), Nested()])
def test_both_ways_can_do_with_less(model: nn.Module) -> None:
    small = shrink(model)
    assert small.one.weight.shape == (5, 4) and small.two.weight.shape == (3, 5)


class Reads(Two):
    """One way reads all units of a layer, the other none of those with a masked column."""

    def forward(self, x: torch.Tensor) -> Any:
        y = self.more(self.one(x).relu())
        return torch.special.bessel_j0(y) if x.sum() > 0 else self.two(y)


class ReadsMaps(Reads):
    """The same with convolutions: a bias has the name of the groups in common with what the weight reads."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.more = (nn.Conv1d(i, o, 1) for i, o in ((4, 8), (8, 3), (8, 8)))

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x[:, :, None])


@pytest.mark.parametrize("kind", [Reads, ReadsMaps])
def test_a_unit_that_one_way_keeps_does_not_keep_what_its_layer_reads(kind: type[Reads]) -> None:
    """What is masked in `one` is a constant on both ways, and goes into the bias of `more`."""
    model = randomize(kind()).double().eval()
    columns = mask_indices(model, {"two.weight": ROWS}, axis=1)
    masks = {**mask_indices(model, {"one.weight": ROWS}), **columns}
    masked = masked_copy(model, masks)
    small: Any = speedup.plan(model, UP, masks).apply()
    with torch.no_grad():
        for x in (UP, DOWN):
            torch.testing.assert_close(small(x), masked(x), rtol=1e-9, atol=1e-9)
    assert small.one.weight.shape[:2] == (5, 4) and small.more.weight.shape[:2] == (8, 5)


class Constant(Two):
    def between(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return y if x.sum() > 0 else y.flip(0)


def test_constants_that_both_fold_alike() -> None:
    small = shrink(Constant(), bias=False)
    assert small.one.weight.shape == (5, 4)


class Unlike(Two):
    def between(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return y.sigmoid() if x.sum() > 0 else y * 2


def test_constants_that_they_fold_otherwise_keep_all() -> None:
    assert width(shrink(Unlike(), bias=False)) == 8


class Needed(Two):
    def between(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return y if x.sum() > 0 else torch.cat([y[:, :4] + x, y[:, 4:]], 1)


def test_what_one_way_needs_stays_for_all() -> None:
    small = shrink(Needed(), bias=True)
    assert small.one.weight.shape == (6, 4) and small.two.weight.shape == (3, 6)


class Refusing(Two):
    def between(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if not bool(x.isfinite().all()):
            raise ValueError(f"{int(x.isnan().sum())} entries are no numbers")
        return y


def test_a_way_that_ends_in_an_error_asks_for_nothing() -> None:
    small = shrink(Refusing())
    assert width(small) == 5
    with pytest.raises(ValueError, match="4 entries"):
        small(UP * torch.tensor([[float("nan")], [1.0], [1.0]]))


class Failing(Two):
    def between(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if x.sum() < 0:
            y = y + torch.linalg.cholesky(-x.sum().reshape(1, 1))  # of a positive number
        return y


def test_a_way_that_fails_on_these_data_is_not_known() -> None:
    assert width(shrink(Failing())) == 8


class Extra(Two):
    def between(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return y if x.sum() > 0 else self.more(y)


def test_a_layer_that_one_way_alone_calls() -> None:
    small = shrink(Extra())
    assert (width(small), small.more.out_features) == (8, 8)  # there what `more` makes is read, of which less is masked


class Waiting(Two):
    def between(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        count = x.new_tensor(3.0) + 0 * x.sum()
        while count != 0:
            count = count - 1
        return y


class Doubling(Two):
    def between(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        for row in x.repeat(10, 1):
            y = y * 2 if row.sum() > 100 else y.relu()
        return y


@pytest.mark.parametrize("model", [Waiting(), Doubling()])
def test_too_many_ways_keep_all(model: nn.Module) -> None:
    assert width(shrink(model)) == 8


class Counting(Two):
    def between(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        for row in x.repeat(10, 1):
            if row.sum() > 100:
                y = y * 2
        return y


def test_calls_that_are_left_out_are_no_other_ways() -> None:
    assert width(shrink(Counting())) == 5


class Number(Two):
    def between(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return y.relu() * abs(x.sum().item())


def test_numbers_have_more_than_two_values() -> None:
    assert width(shrink(Number())) == 8


class Sized(Two):
    def between(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return y if x.sum() > 0 else y.view(-1, 2, 4).relu().view(-1, 8)


def test_a_size_in_the_code_of_one_way() -> None:
    assert width(shrink(Sized())) == 8


@pytest.mark.parametrize(
    ("data", "kept"), [(lambda x: x.mean().item() > 0, 5), (lambda x: sum(x.flatten().tolist()) > 0, 8)]
)
def test_what_exists_when_python_looks_at_data_may_be_read_on_another_way(data: Any, kept: int) -> None:
    """The way that the dummy input takes reads nothing of ``y``; nothing of what makes it may go for that."""

    class Leaves(Two):
        def forward(self, x: torch.Tensor) -> Any:
            y = self.one(x).relu()
            if data(x):
                return x[:, :3]
            return self.two(self.more(y))

    model = randomize(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), Leaves())).double().eval()
    masks = mask_indices(model, {"0.weight": (0, 1), "3.one.weight": ROWS, "3.more.weight": (2,)})
    masked = masked_copy(model, masks)
    small: Any = speedup.plan(model, UP, masks).apply()
    for x in (UP, DOWN, 5 * torch.randn(4, 4, dtype=torch.float64)):
        torch.testing.assert_close(small(x), masked(x), rtol=1e-9, atol=1e-9)
    assert small[0].out_features == 4 and small[3].one.out_features == kept


# -- numbers ----------------------------------------------------------------------------------------------------------


class Compared(Two):
    """A number of the data, which Python only compares."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.how = how

    def between(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.how(y, x)


def refuses(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    assert -9 <= x.min().item() <= x.max().item() < 9.0 and isinstance(x.sum().item(), float)
    return y.relu()


def chooses(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y.relu() * 2 if x.sum().item() > 0 else y.tanh()


def empty(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if not (x != 0).sum().item():
        raise ValueError("nothing but zeros")
    return y


def asks_a_list(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y.relu() * 2 if x.sum(1, keepdim=True).tolist()[0][0] > 0 else y.tanh()


@pytest.mark.parametrize("how", [refuses, chooses, empty, asks_a_list])
def test_a_number_that_is_only_compared_keeps_nothing(how: Any) -> None:
    assert width(shrink(Compared(how))) == 5


def checks_often(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    for k in range(20):
        assert x.abs().max().item() < 9 + k
    return y.relu()


def test_many_checks_are_one_way() -> None:
    assert width(shrink(Compared(checks_often))) == 5


def multiplies(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y * x.sum().item()


def adds_in_place(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    y += x.sum().item()
    return y


def shortens(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y[: 1 + int(x.sum().item() > 0)]


def counts(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    for _ in range((x > 0).sum().item() % 3):
        y = y.cos()
    return y


def fills(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y + torch.full((8,), x.sum().item(), dtype=y.dtype)


def looks_up(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y * {1: 2.0}.get((x > 5).sum().item(), 3.0)


def computes(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y * (math.sqrt(abs(x.sum().item())) + float(np.array(x.max().item())) + float(f"{x.min().item():.1f}"))


def halves(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    n = (x > 0).sum().item()
    return y[: max(1, round(0.5 * n**0.5 - n // 3 + divmod(n, 5)[0]))]


def largest(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y * max(x.flatten().tolist())


def sorts(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y * sorted(x.sum(0).tolist())[1] + torch.tensor(x.sum(1).tolist(), dtype=y.dtype)[:, None]


USED = [largest, sorts, halves, multiplies, adds_in_place, shortens, counts, fills, looks_up, computes]


@pytest.mark.parametrize("how", USED)
def test_a_number_that_is_used_is_itself(how: Any) -> None:
    shrink(Compared(how))


def test_a_number_that_comes_out_is_itself() -> None:
    class Returns(Two):
        def forward(self, x: torch.Tensor) -> Any:
            return self.two(self.one(x)), x.sum().item()

    model = randomize(Returns()).double().eval()
    plan = speedup.plan(model, UP, mask_indices(model, {"one.weight": ROWS, "one.bias": ROWS}))
    small = plan.apply()
    assert type(small(DOWN)[1]) is float and small(DOWN)[1] == DOWN.sum().item()
