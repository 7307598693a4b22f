"""Batch normalisation, in all its forms, follows its channels; constants that come through it are exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from speedup.testing import KINDS, Result, check_equal, mask_indices, random_masks, randomize

NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def image(d: int, batch: int = 3, size: int = 5, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(batch, channels, *range(size, size + d), generator=generator)


def between(norm: nn.Module, d: int = 2, act: type[nn.Module] = nn.Sigmoid, last: int = 1) -> nn.Sequential:
    """conv, norm of 8 channels, activation, conv with kernels of ``last``: everything random."""
    layers = [CONV[d](3, 8, 1, bias=False), norm, act(), CONV[d](8, 4, last, padding=last // 2)]
    return randomize(nn.Sequential(*layers))


def consistent(result: Result, channels: int) -> None:
    """All that belongs to the norm, layer 1, has this number of channels, and so have its neighbours."""
    norm = result.model[1]
    assert norm.num_features == channels
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is None or tensor.shape == (channels,)
    assert result.shape("0.weight")[0] == channels
    assert result.shape("3.weight")[1] == channels


# masked indices -> channels left with kernels of 1, where constants go into the bias, and with padded ones of 3, where
# one of the constants that are not 0 stays; behind a ReLU, which keeps 0.
MASKS = {
    "filters": ({"0.weight": [0, 1, 2]}, 5, None),
    "gamma": ({"1.weight": [0, 1, 2]}, 5, None),
    "gamma and beta": ({"1.weight": [0, 1, 2], "1.bias": [0, 1, 2]}, 5, 5),
    "beta": ({"1.bias": [0, 1, 2]}, 8, 8),
    "filters, gamma and beta": ({"0.weight": [0, 1], "1.weight": [0, 1], "1.bias": [0, 1]}, 6, 6),
    "filters, and gamma and beta of others": ({"0.weight": [0, 1], "1.weight": [2, 3], "1.bias": [2, 3]}, 4, None),
    "all of gamma": ({"1.weight": range(8)}, 1, 1),
    "all of gamma and beta": ({"1.weight": range(8), "1.bias": range(8)}, 1, 1),
    "nothing": ({"1.weight": []}, 8, 8),
}


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:.* is masked whole")
def test_masks(d: int, case: str) -> None:
    dropped, left, _ = MASKS[case]
    model = between(NORM[d](8), d)
    result = check_equal(model, image(d), mask_indices(model, dropped), [image(d, 1, 7)])
    consistent(result, left)
    assert result.plan.report.gained == []


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.filterwarnings("ignore:.* is masked whole")
def test_masks_before_a_padded_conv(case: str) -> None:
    dropped, _, left = MASKS[case]
    model = between(NORM[2](8), act=nn.ReLU, last=3)
    model[1].bias.data.abs_()
    model[1].running_mean.mul_(0.0)
    result = check_equal(model, image(2), mask_indices(model, dropped), [image(2, 1, 7)])
    without_carrier = MASKS[case][1]
    consistent(result, without_carrier + 1 if left is None else left)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_without_scale_or_without_statistics(d: int, tracking: bool, affine: bool) -> None:
    """Statistics of the batch itself: a constant channel becomes beta, whatever the batch."""
    model = between(NORM[d](8, affine=affine, track_running_stats=tracking, eps=1e-3), d)
    result = check_equal(model, image(d), mask_indices(model, {"0.weight": [1, 5]}), [image(d, 5, 7)])
    consistent(result, 6)
    if affine:
        masks = mask_indices(model, {"1.weight": [0, 1], "0.weight": [6]})
        consistent(check_equal(model, image(d), masks, [image(d, 5, 7)]), 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:.* is masked whole")
def test_random_masks(d: int, kind: str) -> None:
    model = nn.Sequential(
        *(NORM[d](3), CONV[d](3, 8, 3, padding=1), NORM[d](8), nn.ReLU()),
        *(CONV[d](8, 8, 3, padding=1, groups=8, bias=False), NORM[d](8, eps=0.1), nn.Hardswish()),
        *(NORM[d](8, affine=False), CONV[d](8, 6, 3, padding=1, groups=2, bias=False)),
        *(NORM[d](6), CONV[d](6, 4, 1), NORM[d](4)),
    )
    randomize(model, seed=d)
    for seed in range(2 if d < 3 else 1):
        check_equal(model, image(d, size=3), random_masks(model, 7 * d + seed, kind), [image(d, 1, 5)])


@pytest.mark.parametrize("rank", [2, 3])
def test_behind_a_linear_layer(rank: int) -> None:
    """BatchNorm1d of vectors, and of sequences."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            x = self.norm(x) if x.ndim == 2 else self.norm(x.transpose(1, 2)).transpose(1, 2)
            return self.b(x.sigmoid())

    model = randomize(Net())
    shape = (4, 6, 5)[-rank:]
    result = check_equal(model, torch.randn(shape), mask_indices(model, {"a.weight": [1, 2], "norm.weight": [3]}))
    assert [result.shape(n) for n in ("a.weight", "norm.running_var", "b.weight")] == [(5, 5), (5,), (3, 5)]


def test_chains() -> None:
    """norm, activation, norm: a constant passes all of them and goes into the linear layer at the end."""
    norms = (nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8), nn.Sigmoid(), nn.BatchNorm2d(8))
    model = randomize(nn.Sequential(nn.Conv2d(3, 8, 1), *norms, nn.Conv2d(8, 4, 1)))
    for dropped in ({"0.weight": [0, 1]}, {"1.weight": [0, 1]}, {"3.weight": [0, 1]}, {"5.weight": [0, 1]}):
        result = check_equal(model, image(2), mask_indices(model, dropped), [image(2, 1, 7)])
        assert [result.shape(f"{i}.weight")[0] for i in (0, 1, 3, 5)] == [6, 6, 6, 6]
    each = {"0.weight": [0], "1.weight": [1], "3.weight": [2], "5.weight": [3], "5.bias": [3, 4]}
    result = check_equal(model, image(2), mask_indices(model, each), [image(2, 1, 7)])
    assert [result.shape(f"{i}.weight")[0] for i in (0, 1, 3, 5)] == [4, 4, 4, 4]


def test_before_the_first_layer_it_keeps_the_channels_of_the_input() -> None:
    model = randomize(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)))
    result = check_equal(model, image(2), mask_indices(model, {"0.weight": [1], "0.bias": [1]}), [image(2, 1, 7)])
    assert result.kept == 1.0


def test_as_the_last_layer_it_keeps_its_channels() -> None:
    """A constant output channel of the model stays a channel."""
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    result = check_equal(model, image(2), mask_indices(model, {"0.weight": [1], "1.weight": [2]}), [image(2, 1, 7)])
    assert result.model[1].num_features == 4


def test_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.norm(self.b(self.norm(self.a(x)).relu())).relu())

    model = randomize(Twice())
    names = ["a.weight", "a.bias", "b.weight", "b.bias", "norm.weight", "norm.bias"]
    result = check_equal(model, image(2), mask_indices(model, {n: [1, 2] for n in names}), [image(2, 1, 7)])
    assert result.shape("norm.running_mean") == (6,)
    assert result.shape("b.weight") == (6, 6, 3, 3)
    for seed in range(4):
        check_equal(model, image(2), random_masks(model, seed, "mixed"), [image(2, 1, 7)])


# -- functions ------------------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """Normalises with tensors of its own, between two convolutions."""

    def __init__(self, call: Callable[[Functional, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.call = call
        self.a, self.b = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 1)
        self.gamma, self.beta = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.call(self, self.a(x)).sigmoid())


# the call, and what it reads
FUNCTIONS: dict[str, tuple[Callable[[Functional, torch.Tensor], torch.Tensor], str]] = {
    "F.batch_norm": (lambda m, x: F.batch_norm(x, m.mean, m.var, m.gamma, m.beta), "mean var gamma beta"),
    "F.batch_norm, by name": (
        lambda m, x: F.batch_norm(x, running_var=m.var, running_mean=m.mean, bias=m.beta, weight=m.gamma, eps=0.1),
        "mean var gamma beta",
    ),
    "F.batch_norm, no scale": (lambda m, x: F.batch_norm(x, m.mean, m.var), "mean var"),
    "F.batch_norm, scale alone": (lambda m, x: F.batch_norm(x, m.mean, m.var, m.gamma), "mean var gamma"),
    "F.batch_norm, of the batch": (
        lambda m, x: F.batch_norm(x, None, None, m.gamma, m.beta, training=True),
        "gamma beta",
    ),
    "torch.batch_norm": (
        lambda m, x: torch.batch_norm(x, m.gamma, m.beta, m.mean, m.var, False, 0.1, 1e-5, False),
        "mean var gamma beta",
    ),
    "torch.batch_norm, no scale": (
        lambda m, x: torch.batch_norm(x, None, None, m.mean, m.var, False, 0.1, 1e-5, False),
        "mean var",
    ),
    "torch.batch_norm, of the batch": (
        lambda m, x: torch.batch_norm(x, m.gamma, m.beta, None, None, True, 0.1, 1e-5, False),
        "gamma beta",
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions(function: str) -> None:
    call, read = FUNCTIONS[function]
    model = randomize(Functional(call))
    result = check_equal(model, image(2), mask_indices(model, {"a.weight": [0, 1, 2]}), [image(2, 2, 7)])
    assert (result.shape("a.weight")[0], result.shape("b.weight")[1]) == (5, 5)
    assert {result.shape(name) for name in read.split()} == {(5,)}
    if "gamma" in read:
        dropped = {"a.weight": [0], "gamma": [1, 2], "beta": [2, 3]}
        result = check_equal(model, image(2), mask_indices(model, dropped), [image(2, 2, 7)])
        assert (result.shape("a.weight")[0], result.shape("gamma")) == (5, (5,))
    for seed, kind in enumerate(("filters", "mixed")):
        check_equal(model, image(2), random_masks(model, seed, kind), [image(2, 2, 7)])


def test_a_function_that_updates_its_statistics() -> None:
    """With training=True the running statistics are written to: they are results, and keep their size."""
    model = randomize(Functional(lambda m, x: F.batch_norm(x, m.mean, m.var, m.gamma, m.beta, training=True)))
    result = check_equal(model, image(2), mask_indices(model, {"a.weight": [0, 1]}), [image(2, 2, 7)])
    assert result.shape("mean") == result.shape("var")


# -- other layers ---------------------------------------------------------------------------------------------------


def test_frozen_batch_norm_of_torchvision() -> None:
    """Known by its structure: the four tensors of a batch norm are its buffers."""
    model = between(FrozenBatchNorm2d(8), last=1)
    result = check_equal(model, image(2), mask_indices(model, {"0.weight": [0, 1, 7]}), [image(2, 1, 7)])
    norm = result.model[1]
    assert type(norm) is FrozenBatchNorm2d
    assert [tuple(b.shape) for b in norm.buffers()] == [(5,)] * 4
    assert (result.shape("0.weight")[0], result.shape("3.weight")[1]) == (5, 5)
    assert result.plan.report.barriers == []
    for seed, kind in enumerate(("filters", "columns", "fine")):
        check_equal(model, image(2), random_masks(model, seed, kind), [image(2, 1, 7)])


def test_a_frozen_batch_norm_of_another_structure_is_looked_into() -> None:
    """A name alone claims nothing: what the module does counts."""

    class FrozenBatchNormAndMore(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, torch.ones(8))
            self.register_buffer("mixing", torch.ones(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = (self.weight * (self.running_var + 1e-5).rsqrt()) @ self.mixing
            return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]

    model = between(FrozenBatchNormAndMore())
    result = check_equal(model, image(2), mask_indices(model, {"0.weight": [0, 1]}), [image(2, 1, 7)])
    assert result.shape("0.weight")[0] == 6


@pytest.mark.parametrize("case", ["filters", "gamma", "gamma and beta", "beta"])
def test_sync_batch_norm(case: str) -> None:
    """In eval mode it runs on a CPU, and without a process group, as a plain batch norm."""
    dropped, left, _ = MASKS[case]
    model = between(nn.SyncBatchNorm(8)).eval()
    result = check_equal(model, image(2), mask_indices(model, dropped), [image(2, 1, 7)])
    assert type(result.model[1]) is nn.SyncBatchNorm
    consistent(result, left)


def test_a_subclass_with_its_own_init() -> None:
    class Norm(nn.BatchNorm2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels, eps=0.01, momentum=0.3)

    model = between(Norm(8))
    result = check_equal(model, image(2), mask_indices(model, {"0.weight": [0, 1]}), [image(2, 1, 7)])
    consistent(result, 6)
    assert (result.model[1].eps, result.model[1].momentum, type(result.model[1])) == (0.01, 0.3, Norm)


def test_a_subclass_with_an_activation_is_looked_into() -> None:
    """As in EfficientNet code: the norm and its activation in one class."""

    class NormAct(nn.BatchNorm2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.act = nn.SiLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(super().forward(x))

    model = between(NormAct(8))
    result = check_equal(model, image(2), mask_indices(model, {"0.weight": [0, 1]}), [image(2, 1, 7)])
    assert (result.shape("0.weight")[0], result.shape("1.running_mean"), result.shape("3.weight")[1]) == (6, (6,), 6)


def test_running_statistics_go_on_in_training() -> None:
    """The small model can be trained further: buffers are buffers, of the new size, and are updated."""
    model = between(nn.BatchNorm2d(8, momentum=0.5))
    result = check_equal(model, image(2), mask_indices(model, {"0.weight": [0, 1]}), [image(2, 1, 7)])
    norm = result.model[1]
    assert {name for name, _ in norm.named_buffers()} == {"running_mean", "running_var", "num_batches_tracked"}
    before = norm.running_mean.clone()
    result.model.train()(image(2).double())
    assert norm.num_batches_tracked == 1
    assert not torch.equal(before, norm.running_mean)


# -- constants for which the layer in front has no bias ---------------------------------------------------------------


class Chain(nn.Module):
    """conv, activation, 1x1 conv without bias, what is tested, conv."""

    def __init__(self, norm: nn.Module, bias: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1, bias=bias)
        self.norm, self.c = norm, nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.norm(self.b(torch.sigmoid(self.a(x))))))


class Between(nn.Module):
    """Two branches read the output: the norm alone cannot take what the layer lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x) + x


@pytest.mark.parametrize(
    ("norm", "bias", "gained"),
    [
        (nn.BatchNorm2d(6), False, False),
        (nn.BatchNorm2d(6, affine=False), False, False),
        (nn.BatchNorm2d(6), True, False),
        (nn.BatchNorm2d(6, track_running_stats=False), False, True),
        (Between(), False, True),
        (nn.Identity(), False, True),
    ],
    ids=["norm", "norm without scale", "bias", "statistics of the batch", "two readers", "no norm"],
)
def test_a_norm_takes_constants_for_which_there_is_no_bias(norm: nn.Module, bias: bool, gained: bool) -> None:
    model = randomize(Chain(norm, bias), 3)
    x = torch.randn(2, 3, 5, 5)
    result = check_equal(model, x, mask_indices(model, {"a.weight": [0, 2, 5]}), [torch.randn(3, 3, 4, 7)])
    assert result.shape("b.weight") == (6, 5, 1, 1)
    assert [name for name, _ in result.model.named_parameters() if name == "b.bias"] == ["b.bias"] * (gained or bias)
