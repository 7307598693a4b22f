"""Reductions over positions, channels and tokens: equal at every size, and what can go goes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import KINDS, Result, check_equal, mask_indices, random_masks, randomize

# Masked filters of the two branches, and the constants that are left of them.
A = {0: 0.75, 3: 0.0, 5: -0.5}
B = {0: 0.5, 3: 0.0, 6: -0.25}


class Net(nn.Module):
    """Two convolutions of 8 channels, what is tested, and a layer that reads the channels or the tokens."""

    def __init__(self, body: Callable[..., torch.Tensor], tail: nn.Module, **held: Any) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(3, 8, 3, padding=1)
        self.t = tail
        self.body = body
        self.names = tuple(inspect.signature(body).parameters)
        for name, value in held.items():
            setattr(self, name, value)
        randomize(self)
        with torch.no_grad():
            for conv, constants in ((self.a, A), (self.b, B)):
                for index, value in constants.items():
                    conv.bias[index] = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = {"s": lambda: self, "a": lambda: self.a(x), "b": lambda: self.b(x)}
        return self.t(self.body(**{name: given[name]() for name in self.names}))


def image(batch: int, *size: int) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))


def checked(net: Net, **masks: dict[str, torch.Tensor]) -> Result:
    """Equal on the dummy input, at another batch size and at other image sizes."""
    dropped = {f"{name}.weight": list(at) for name, at in (("a", A), ("b", B)) if name in net.names}
    return check_equal(net, image(2, 6, 6), mask_indices(net, dropped) | masks, [image(1, 7, 5), image(3, 9, 8)])


def kept(result: Result) -> int:
    """Channels that the first layer makes."""
    return result.shape("a.weight")[0]


# -- over positions ---------------------------------------------------------------------------------------------------

# What a reduction makes of equal entries whatever their number goes into the next bias: 5 of 8 channels stay. What
# depends on their number holds for one image size only: then only the constant 0 goes, and 7 stay.
POSITIONS = {
    "mean((2, 3))": (lambda a: a.mean((2, 3)), 5),
    "mean(dim=[2, 3])": (lambda a: a.mean(dim=[2, 3]), 5),
    "mean(axis=(2, 3))": (lambda a: torch.mean(a, axis=(2, 3)), 5),
    "mean((-2, -1))": (lambda a: torch.mean(a, (-2, -1)), 5),
    "mean(-1).mean(-1)": (lambda a: a.mean(-1).mean(-1), 5),
    "mean with keepdim": (lambda a: a.mean((2, 3), True).flatten(1), 5),
    "mean with keepdims": (lambda a: torch.mean(a, dim=(2, 3), keepdims=True)[:, :, 0, 0], 5),
    "mean with dtype": (lambda a: a.mean((2, 3), dtype=torch.float64), 5),
    "nanmean": (lambda a: a.nanmean((2, 3)), 5),
    "amax": (lambda a: a.amax((2, 3)), 5),
    "torch.amin": (lambda a: torch.amin(a, dim=(2, 3)), 5),
    "max(3)[0]": (lambda a: a.max(3)[0].max(2).values, 5),
    "torch.max with keepdim": (lambda a: torch.max(a, 3, True)[0].mean((2, 3)), 5),
    "min(dim=)": (lambda a: a.min(dim=3).values.min(dim=-1)[0], 5),
    "aminmax": (lambda a: sum(a.flatten(2).aminmax(dim=2)), 5),
    "median": (lambda a: a.flatten(2).median(2).values, 5),
    "nanmedian": (lambda a: a.flatten(2).nanmedian(2)[0], 5),
    "mode": (lambda a: a.flatten(2).round().mode(2).values, 5),
    "kthvalue": (lambda a: a.flatten(2).kthvalue(4, 2).values, 5),
    "kthvalue with keepdim": (lambda a: torch.kthvalue(a.flatten(2), 4, keepdim=True)[0].flatten(1), 5),
    "topk": (lambda a: a.flatten(2).topk(5, 2).values.mean(2), 5),
    "torch.topk of the smallest": (lambda a: torch.topk(a.flatten(2), 5, largest=False)[0][..., 3], 5),
    "quantile": (lambda a: a.flatten(2).quantile(0.3, 2), 5),
    "torch.quantile with keepdim": (lambda a: torch.quantile(a.flatten(2), 0.3, dim=-1, keepdim=True)[..., 0], 5),
    "sort": (lambda a: a.flatten(2).sort(2).values[..., 2], 5),
    "sort downwards": (lambda a: torch.sort(a.flatten(2), dim=-1, descending=True)[0][..., 1], 5),
    "cummax": (lambda a: a.flatten(2).cummax(2).values[..., -1], 5),
    "std": (lambda a: a.std((2, 3)), 5),
    "std with keepdim": (lambda a: torch.std(a, (2, 3), keepdim=True).flatten(1), 5),
    "var": (lambda a: a.var((2, 3), unbiased=False), 5),
    "var with correction": (lambda a: torch.var(a, dim=(2, 3), correction=2), 5),
    "var_mean": (lambda a: sum(torch.var_mean(a, (2, 3))), 5),
    "std_mean": (lambda a: torch.std_mean(a, dim=(2, 3))[1], 5),
    "any": (lambda a: (a > 0.1).any(3).any(2).double(), 5),
    "all": (lambda a: (a > -1).all(3).all(2).double(), 5),
    "argmax": (lambda a: a.flatten(2).argmax(2).double(), 5),
    "torch.argmin": (lambda a: torch.argmin(a.flatten(2), dim=2, keepdim=True)[..., 0].double(), 5),
    "sum((2, 3))": (lambda a: a.sum((2, 3)), 7),
    "torch.sum(axis=)": (lambda a: torch.sum(a, axis=(2, 3)), 7),
    "sum, then relu": (lambda a: (a.sum((2, 3)) - 9).relu(), 7),
    "sum over the size": (lambda a: a.sum((2, 3)) / (a.shape[2] * a.shape[3]), 7),
    "nansum": (lambda a: a.nansum((2, 3)), 7),
    "count_nonzero": (lambda a: a.count_nonzero((2, 3)).double(), 7),
    "prod": (lambda a: a.prod(3).prod(2), 7),
    "logsumexp": (lambda a: a.logsumexp((2, 3)), 8),
    "Tensor.norm": (lambda a: a.norm(dim=(2, 3)), 7),
    "torch.norm of p=1": (lambda a: torch.norm(a, p=1, dim=(2, 3)), 7),
    "vector_norm": (lambda a: torch.linalg.vector_norm(a, dim=(2, 3)), 7),
    "linalg.norm of two axes": (lambda a: torch.linalg.norm(a, dim=(2, 3)), 7),
    "linalg.norm of one axis": (lambda a: torch.linalg.norm(a.flatten(2), 3, dim=-1), 7),
    "cumsum": (lambda a: a.flatten(2).cumsum(2)[..., -1], 7),
    "cumprod": (lambda a: torch.cumprod(a.flatten(2), dim=2)[..., 1], 7),
    "softmax over positions": (lambda a: (a.flatten(2).softmax(2) * a.flatten(2)).sum(2), 7),
    "F.normalize over positions": (lambda a: F.normalize(a.flatten(2), dim=2).sum(2), 7),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_reduced_positions_leave_the_channels_free(name: str) -> None:
    body, expected = POSITIONS[name]
    result = checked(Net(body, nn.Linear(8, 5)))
    assert (kept(result), result.shape("t.weight")[1]) == (expected, expected)


# -- over channels ----------------------------------------------------------------------------------------------------

# The reduced channels are 0.75, 0 and -0.5 where masked. Where zeros do not count, the 0 goes: 7 of 8 stay.
CHANNELS = {
    "sum": (lambda a: a.sum(1, keepdim=True), 7),
    "sum without keepdim": (lambda a: torch.sum(a, dim=1)[:, None], 7),
    "sum of squares": (lambda a: a.pow(2).sum(1, True), 7),
    "sum behind relu": (lambda a: a.relu().sum(-3, keepdim=True), 6),
    "nansum": (lambda a: a.nansum(1, True), 7),
    "count_nonzero": (lambda a: a.count_nonzero(1)[:, None].double(), 7),
    "norm": (lambda a: a.norm(dim=1, keepdim=True), 7),
    "norm of p=3": (lambda a: torch.norm(a, 3, 1, True), 7),
    "norm of p=inf": (lambda a: a.norm(float("inf"), 1, True), 7),
    "norm of p=0": (lambda a: torch.norm(a, 0, 1, True), 7),
    "norm of p=-inf": (lambda a: a.norm(float("-inf"), 1, True), 8),
    "vector_norm": (lambda a: torch.linalg.vector_norm(a, 1, 1, True), 7),
    "linalg.norm": (lambda a: torch.linalg.norm(a, dim=1, keepdim=True), 7),
    "sum over channels and rows": (lambda a: a.sum((1, 2), keepdim=True).expand(-1, -1, 4, -1), 7),
    "mean": (lambda a: a.mean(1, keepdim=True), 8),
    # Of the constants the extreme one carries the others.
    "amax": (lambda a: a.amax(1, True), 6),
    "max": (lambda a: a.max(dim=1, keepdim=True)[0], 6),
    "min": (lambda a: a.min(1)[0][:, None], 6),
    "amin over channels and columns": (lambda a: a.amin((1, 3), keepdim=True).expand(-1, -1, -1, 4), 6),
    "max and min": (lambda a: a.amax(1, True) - a.amin(1, True), 7),
    "max, and where it is": (lambda a: sum(a.max(1, keepdim=True)), 8),
    "median": (lambda a: a.median(1, True)[0], 8),
    "std": (lambda a: a.std(1, keepdim=True), 8),
    "argmax": (lambda a: a.argmax(1, keepdim=True).double(), 8),
    "logsumexp": (lambda a: a.logsumexp(1, True), 8),
    "prod": (lambda a: a.prod(1, keepdim=True), 8),
    "any": (lambda a: (a > 0).any(1, keepdim=True).double(), 8),
    "topk": (lambda a: a.topk(1, 1)[0], 8),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_reduced_channels_go_on_counting_what_was_masked(name: str) -> None:
    body, expected = CHANNELS[name]
    assert kept(checked(Net(body, nn.Conv2d(1, 5, 3)))) == expected


# Every channel is read with all the others; relu makes 0.75, 0 and 0 of the constants.
TOGETHER = {
    "softmax": (lambda a: a.softmax(1), 8),
    "log_softmax": (lambda a: F.log_softmax(a, 1), 8),
    "F.normalize": (lambda a: F.normalize(a, dim=1), 7),
    "F.normalize behind relu": (lambda a: F.normalize(a.relu(), dim=1), 6),
    "F.normalize of p=1": (lambda a: F.normalize(a.relu(), p=1.0, dim=1), 6),
    "divided by the norm": (lambda a: a / (a.norm(dim=1, keepdim=True) + 1e-6), 7),
    "less the mean": (lambda a: a - a.mean(1, keepdim=True), 8),
    "root mean square": (lambda a: a * (a.pow(2).mean(1, keepdim=True) + 1e-5).rsqrt(), 8),
    "root of the sum of squares": (lambda a: a * (a.pow(2).sum(1, keepdim=True) + 1e-5).rsqrt(), 7),
    "cumsum": (lambda a: a.cumsum(1), 8),
    "sort": (lambda a: a.sort(1)[0], 8),
    "spatial attention": (lambda a: a * torch.cat([a.amax(1, True), a.mean(1, True)], 1).mean(1, True).sigmoid(), 8),
    "less the largest of all": (lambda a: a - a.max(), 8),
    "over the sum of all": (lambda a: a / (1 + a.abs().sum()), 7),
    "over the norm of an image": (lambda a: a / a.flatten(1).norm(dim=1)[:, None, None, None], 7),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_channels_that_are_scaled_together_stay_exact(name: str) -> None:
    body, expected = TOGETHER[name]
    assert kept(checked(Net(body, nn.Conv2d(8, 5, 3)))) == expected


class SpatialAttention(nn.Module):
    """As in CBAM: where to look, told by mean and maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)
        self.gate = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        mean = torch.mean(x, dim=1, keepdim=True)
        largest, _ = torch.max(x, dim=1, keepdim=True)
        result: torch.Tensor = self.o(x * torch.sigmoid(self.gate(torch.cat([mean, largest], dim=1))))
        return result


@pytest.mark.parametrize(("a", "left"), [([1, 4, 6], 6), ([1], 8)])
def test_spatial_attention_keeps_one_zero(a: list[int], left: int) -> None:
    masks = mask_indices(model := randomize(SpatialAttention()), {"a.weight": a, "a.bias": a})
    result = check_equal(model, image(2, 9, 9), masks, [image(3, 12, 10)])
    assert kept(result) == left


@pytest.mark.parametrize("kind", KINDS)
def test_spatial_attention_stays_exact(kind: str) -> None:
    for seed in range(4):
        model = randomize(SpatialAttention(), seed)
        check_equal(model, image(2, 9, 9), random_masks(model, seed, kind), [image(3, 12, 10)])


@pytest.mark.parametrize(
    "body",
    [lambda a: a.sum(), lambda a: a.mean(), lambda a: a.max(), lambda a: a.norm(), lambda a: torch.sum(a, None)],
    ids=["sum", "mean", "max", "norm", "sum of no axis"],
)
def test_a_reduction_of_everything_stays_exact(body: Callable[[torch.Tensor], torch.Tensor]) -> None:
    result = checked(Net(lambda a, b: b + body(a), nn.Conv2d(8, 5, 3)))
    assert kept(result) in (6, 7, 8)
    # What is added to b is no constant, so all of b stays too.
    assert result.shape("b.weight")[0] == 8


def test_indices_that_are_read_keep_every_channel() -> None:
    net = Net(
        lambda a: a.max(1)[1][:, None].double() + a.flatten(2).max(2)[1].sum(1)[:, None, None, None], nn.Conv2d(1, 5, 3)
    )
    assert kept(checked(net)) == 8


# -- of two tensors, of parameters, of tokens -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [lambda a, b: torch.max(a, b), lambda a, b: a.min(b), lambda a, b: torch.max(a, other=b)],
    ids=["torch.max", "Tensor.min", "other="],
)
def test_the_larger_of_two_is_no_reduction(body: Callable[..., torch.Tensor]) -> None:
    result = checked(Net(body, nn.Conv2d(8, 5, 3)))
    # Both are constant in channels 0 and 3 only.
    assert (kept(result), result.shape("b.weight")[0]) == (6, 6)


def test_a_reduced_parameter_stays_whole_and_is_computed_anew() -> None:
    net = Net(
        lambda s, a: a * s.p.mean(0)[:, None, None] + s.p.amax(0)[:, None, None] * s.p.norm(),
        nn.Conv2d(8, 5, 3),
        p=nn.Parameter(torch.randn(4, 8)),
    )
    result = checked(net)
    # The norm reads all of the parameter.
    assert result.shape("p") == (4, 8)


def test_weight_standardisation_in_the_forward_is_exact() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            w = self.weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
            return F.conv2d(x, w, self.bias)

    net = randomize(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), Standardised(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    masks = mask_indices(net, {"0.weight": [1, 4], "0.bias": [1, 4], "2.weight": [0, 2], "2.bias": [0, 2]})
    check_equal(net, image(2, 8, 8), masks, [image(3, 9, 10)])


class Tokens(nn.Module):
    """A mean over tokens, weighted, of which the head reads the channels."""

    def __init__(self, pool: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.score, self.t, self.pool = nn.Linear(3, 8), nn.Linear(8, 1), nn.Linear(8, 5), pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return self.t(self.pool(y, self.score(y)))


TOKENS = {
    "mean": (lambda y, s: y.mean(1), 5),
    "first": (lambda y, s: y[:, 0], 5),
    "amax": (lambda y, s: y.amax(-2), 5),
    "sum": (lambda y, s: y.sum(1), 7),
    "weighted by softmax": (lambda y, s: (y * s.softmax(1)).sum(1), 7),
    "of which some are left out": (lambda y, s: (y * (s > 0)).sum(1) / (s > 0).sum(1).clamp(min=1), 7),
}


@pytest.mark.parametrize("name", TOKENS)
def test_pooled_tokens_leave_the_channels_free(name: str) -> None:
    pool, expected = TOKENS[name]
    net = randomize(Tokens(pool))
    with torch.no_grad():
        for index, value in A.items():
            net.a.bias[index] = value
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(n, tokens, 3, generator=generator) for n, tokens in ((2, 6), (1, 9), (3, 4))]
    result = check_equal(net, inputs[0], mask_indices(net, {"a.weight": list(A)}), inputs[1:])
    assert (kept(result), result.shape("t.weight")[1]) == (expected, expected)


# -- other masks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["filters", "columns", "fine", "whole", "mixed"])
@pytest.mark.parametrize(
    "name", ["F.normalize", "softmax", "spatial attention", "root of the sum of squares", "cumsum"]
)
def test_all_kinds_of_masks_stay_equal(name: str, kind: str) -> None:
    net = Net(TOGETHER[name][0], nn.Conv2d(8, 5, 3, padding=1))
    for seed in range(2):
        check_equal(net, image(2, 6, 6), random_masks(net, seed, kind), [image(3, 9, 8)])


@pytest.mark.parametrize("name", ["sum((2, 3))", "mean((2, 3))", "std", "Tensor.norm", "topk", "logsumexp"])
def test_whole_layers_of_constants_are_reduced_right(name: str) -> None:
    net = Net(POSITIONS[name][0], nn.Linear(8, 5))
    with pytest.warns(UserWarning, match="masked whole"):
        check_equal(net, image(2, 6, 6), mask_indices(net, {"a.weight": range(8)}), [image(1, 7, 5), image(3, 9, 8)])


class Positions(nn.Module):
    """A table of positions, as many as there are, and what is largest among them."""

    def __init__(self, largest: bool) -> None:
        super().__init__()
        self.a = nn.Conv1d(3, 8, 1)
        self.table = nn.Parameter(torch.empty(1, 12, 8))
        self.t = nn.Linear(8, 5)
        self.largest = largest
        randomize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).transpose(1, 2)
        z = y + self.table[:, : y.shape[1]] - y
        return self.t(torch.amax(z, 1) if self.largest else torch.amin(z, 1))


@pytest.mark.parametrize("largest", [True, False])
def test_the_extreme_of_a_table_follows_the_size_of_the_input(largest: bool) -> None:
    net = Positions(largest)
    with torch.no_grad():  # at positions that the dummy input has not
        net.table[:, 8], net.table[:, 9] = 9.0, -9.0
    other = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(1))
    filters = torch.ones(8, 3, 1)
    filters[[1, 4]] = 0
    masks = {"a.weight": filters, "a.bias": filters[:, 0, 0].clone()}
    check_equal(net, other[:, :, :6], masks, [other, other[:, :, :3]])
