"""How often a model is run, and that the short check of the small model overlooks nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup import tries
from speedup.testing import Masks, check_equal, mask_indices, masked_copy, randomize


def dropped(net: nn.Module) -> Masks:
    """Three of eight channels of ``conv`` are masked, biases too."""
    return mask_indices(net, {"conv.weight": [0, 3, 4], "conv.bias": [0, 3, 4]})


class Counted(nn.Module):
    """Counts the runs with the shapes of their inputs, as its hook sees them."""

    def runs(self, masks: Masks, inputs: torch.Tensor) -> list[tuple[int, ...]]:
        seen: list[tuple[int, ...]] = []
        self.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
        speedup.plan(self, inputs, masks)
        return seen


class Flat(Counted):
    def __init__(self, flatten: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head, self.flatten = nn.Linear(8 * 16, 5), flatten

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(F.dropout(self.flatten(F.relu(self.norm(self.conv(x)))), 0.5, self.training))
        return result


def test_a_plain_model_runs_twice() -> None:
    """The masked one, the small one: a flatten whose size is that of a weight is the same in every run."""
    net = randomize(Flat(lambda x: torch.flatten(x, 1))).double()
    assert net.runs(dropped(net), torch.randn(2, 3, 4, 4).double()) == [(2, 3, 4, 4)] * 2


class Scaled(Counted):
    """A block with a scale of its own, as ConvNeXt has them, or with sizes that are read from the tensor."""

    def __init__(self, use: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.use = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1), use
        self.scale = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.use(self.conv(x), self.scale))
        return result


@pytest.mark.parametrize(
    "use",
    [
        lambda x, scale: x * scale,
        lambda x, scale: x.view(len(x), x.shape[1] // 1, 16).view(x.shape) * scale,
        lambda x, scale: x.reshape(-1, 8 - 8 + x.shape[1], 4, 4) + 1,
    ],
    ids=["parameter", "sizes of a shape", "a size that is computed"],
)
def test_parameters_and_sizes_of_shapes_need_no_recorded_check(
    use: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    net = randomize(Scaled(use)).double()
    assert net.runs(dropped(net), torch.randn(2, 3, 4, 4).double()).count((2, 3, 4, 4)) == 2
    check_equal(net, torch.randn(2, 3, 4, 4).double(), dropped(net), [torch.randn(3, 3, 4, 4).double()])


def test_a_flatten_of_another_order_is_looked_at_too() -> None:
    """Channels last, and a size that the next call takes as it comes."""

    class Mixed(Counted):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            flat = torch.flatten(x.permute(0, 2, 3, 1), 1)
            result: torch.Tensor = self.head(flat.view(x.shape))
            return result

    net = randomize(Mixed()).double()
    check_equal(
        net,
        torch.randn(2, 3, 4, 4).double(),
        dropped(net),
        [torch.randn(3, 3, 6, 4).double(), torch.randn(1, 3, 2, 8).double()],
    )


def test_every_other_size_is_run_once() -> None:
    """For data movement, and for repairs: the masked model is not run again for what is known."""

    class Both(Counted):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv1d(3, 8, 1), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            x = x.reshape(x.shape[0], -1).reshape(-1, 8, x.shape[2])
            result: torch.Tensor = self.head(x.transpose(1, 2) * x.shape[1] ** -0.5)
            return result

    net = randomize(Both()).double()
    seen = net.runs(dropped(net), torch.randn(2, 3, 6).double())
    others = [s for s in seen if s != (2, 3, 6)]
    assert others and all(others.count(s) <= 2 for s in others)  # of the masked model and of the small one


# -- what the short check must see ------------------------------------------------------------------------------------


class Sized(nn.Module):
    """Uses the width of a layer in a way that this input does not show."""

    def __init__(self, use: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.use = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1), use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.use(torch.sigmoid(self.conv(x)), self.conv.out_channels))
        return result


@pytest.mark.parametrize(
    "use",
    [
        lambda x, width: torch.clamp(x, max=width / 8),
        lambda x, width: torch.clamp(x, -float(width), width - 6.5),
        lambda x, width: F.normalize(x * width, dim=1) if width > 6 else x,
        lambda x, width: x.mean(1, keepdim=True) * x / width * 8,
        lambda x, width: x[:, :width] + x[:, -width:],
        lambda x, width: torch.softmax(x * x.shape[1] ** -0.5, 1),
        lambda x, width: F.pad(x, (0, 0, 0, 0, 0, 8 - x.shape[1])) * 2,
    ],
    ids=["clamp", "clamp of a lower bound", "another way", "mean", "slices", "scale", "padding"],
)
def test_a_width_that_enters_numbers(use: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    """It stands in code that is no method, so it cannot be repaired: what would be wrong then has to stay."""
    net = randomize(Sized(use)).double()
    inputs = torch.randn(2, 3, 4, 4).double()
    check_equal(net, inputs, dropped(net), [inputs * 30, torch.randn(3, 3, 6, 6).double()])


def test_a_bound_that_acts_on_other_data_only() -> None:
    """Outputs agree on the dummy input, whatever the bound is: the number of the call has to."""

    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.conv(x).clamp(max=100.0 * self.conv.out_channels))
            return result

    net = randomize(Bounded()).double()
    small, inputs = copy.deepcopy(net), torch.randn(2, 3, 4, 4).double()
    masks = dropped(net)
    speedup.plan(small, inputs, masks).apply()
    masked = masked_copy(net, masks).eval()
    assert small.conv.out_channels == 5
    for scale in (1.0, 1e3, 1e5):
        torch.testing.assert_close(small(inputs * scale), masked(inputs * scale), rtol=1e-12, atol=0)


def test_a_forward_that_writes_into_a_parameter_leaves_it() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)
            self.steps = nn.Parameter(torch.zeros(()), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.steps += 1
            result: torch.Tensor = self.head(self.conv(x))
            return result

    net = randomize(Writes()).double()
    before = net.steps.clone()
    speedup.plan(net, torch.randn(2, 3, 4, 4).double(), dropped(net)).apply()
    assert net.conv.out_channels == 5 and torch.equal(net.steps, before)


# -- places that are found in the data --------------------------------------------------------------------------------


class Finding(nn.Module):
    """A head that runs on the places that are found, as that of a detector runs on boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mid, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        found = []
        for image in images:
            y = self.conv(image[None])
            scaled = F.interpolate(y, size=image.shape[-2:]) * (y.new_full((1,), y.shape[2]) / y.shape[2])
            rows = scaled.flatten(2)[0].T
            rows = self.mid(rows[torch.where(rows.sum(1) > 0)[0]])
            found.append(self.head(F.relu(rows)))
        return found


def test_a_head_runs_on_few_places_where_it_is_enough() -> None:
    """On all that the data have in the first run and in that of the small model."""
    net = randomize(Finding()).double()
    images = [torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(n)).double() for n in range(2)]
    rows: list[int] = []
    net.head.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    names = ("conv.weight", "conv.bias", "mid.weight", "mid.bias")
    masks = mask_indices(net, {name: [0, 3, 4] for name in names})
    small = check_equal(net, (images,), masks, [([-i for i in images],), (images[:1],)]).model
    assert small.mid.out_features == 5
    rows.clear()
    speedup.plan(net, (images,), masks)
    assert len([n for n in rows if n > 4]) == 4, rows


@pytest.mark.parametrize(
    "use",
    [
        lambda x, y: F.interpolate(x, size=y.shape[-2:]),
        lambda x, y: x.reshape(y.shape),
        lambda x, y: torch.stack([x.new_zeros(x.shape).copy_(x), x])[1],
        lambda x, y: x + (torch.where(y.sum((1, 2, 3)) > -1e9)[0].sum() * 0),
    ],
    ids=["a size", "a shape", "a view that is written into", "in parts"],
)
def test_the_short_check_is_enough(
    use: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch = x.new_zeros(x.shape)
            for number, image in enumerate(x):
                batch[number, :, : image.shape[1]].copy_(image)
            result: torch.Tensor = self.head(F.relu(self.conv(use(batch, x))))
            return result

    def no_more(*args: object) -> None:
        raise AssertionError("the run of the small model was recorded")

    net = randomize(Net()).double()
    monkeypatch.setattr("speedup.tries.check", no_more)
    speedup.plan(net, torch.randn(2, 3, 4, 4).double(), dropped(net)).apply()
    assert net.conv.out_channels == 5


class Literal(Counted):
    """A size that the code holds, and one that it computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        result: torch.Tensor = self.second(x.reshape(x.shape[0], 8, -1).permute(0, 2, 1) * (x.shape[0] + 1))
        return result


def test_a_repaired_model_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is, to see what is to be repaired; that it then makes the calls as planned is seen without recording."""
    closely: list[object] = []
    check = tries.check

    def counted(*args: Any) -> Any:
        closely.append(check(*args))
        return closely[-1]

    monkeypatch.setattr(tries, "check", counted)
    net = randomize(Literal()).double()
    masks, x = mask_indices(net, {"first.weight": [0, 3, 4], "first.bias": [0, 3, 4]}), torch.randn(2, 3, 4, 4).double()
    speedup.plan(copy.deepcopy(net), x, masks)
    assert len(closely) == 1 and closely[0] is not None
    check_equal(net, x, masks, [torch.randn(3, 3, 4, 4).double(), torch.randn(2, 3, 6, 6).double()])
