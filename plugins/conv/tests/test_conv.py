"""Convolutions and transposed convolutions answer exactly as masked, and lose exactly what can go."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from speedup.testing import KINDS, Masks, check_equal, mask_indices, random_masks, randomize

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def image(d: int, batch: int = 2, size: int = 6, channels: int = 3) -> torch.Tensor:
    """An input of ``d`` spatial axes, of different sizes."""
    generator = torch.Generator().manual_seed(size)
    return torch.randn(batch, channels, *range(size, size + d), generator=generator)


def between(d: int, layer: nn.Module, channels_in: int, channels_out: int) -> nn.Sequential:
    """The layer between two convolutions of width one, everything random."""
    return randomize(nn.Sequential(CONV[d](3, channels_in, 1), layer, CONV[d](channels_out, 4, 1)))


def small_convs(*widths: int, **arguments: Any) -> nn.Sequential:
    """Conv2d layers of these widths with kernels of 3, a sigmoid between them, everything random."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Conv2d(a, b, 3, **arguments), nn.Sigmoid()]
    return randomize(nn.Sequential(*layers[:-1]))


def merged(*masks: Masks) -> Masks:
    found: Masks = {}
    for each in masks:
        for path, own in each.items():
            found.setdefault(path, {}).update(own)
    return found


# -- every form of the layer -----------------------------------------------------------------------------------------

# These filters of the layer before are masked, and give the constants of its bias; then some of the layer itself.
BEFORE = [0, 2, 3, 6]
# groups, channels in and out, masked filters -> (in, out, groups) left where constants go into the bias; where borders
# differ, one constant per group stays as a carrier, and a depthwise channel that reads a constant stays.
GROUPED = {
    "one group": (1, 8, 6, [0, 1, 3], (4, 3, 1), (5, 3, 1)),
    "two groups of uneven masks": (2, 8, 6, [0, 1, 3], (6, 4, 2), (8, 4, 2)),
    "whole groups masked": (4, 8, 4, [0, 1, 3], (2, 1, 1), (2, 1, 1)),
    "depthwise": (8, 8, 8, [0, 1, 3], (3, 3, 3), (5, 5, 5)),
    "depthwise, multiplier 2": (8, 8, 16, [0, 1, 3], (4, 8, 4), (7, 14, 7)),
}
# A multiplier of 2 gives two filters that read a constant for each of three channels. There is one carrier for each way
# in which places differ: what the first and what the last tap do not read at a border, and, in 2d, both at a corner.
FEWER = {(1, "zeros"): 5, (1, "zeros, dilation"): 5, (2, "zeros, dilation"): 6}
# arguments of the layer, whether a constant comes out the same everywhere, in how many dimensions it is tried
WINDOWS = {
    "kernel 1": (dict(kernel_size=1), True, (2,)),
    "unpadded": (dict(kernel_size=3), True, (1, 2, 3)),
    "valid": (dict(kernel_size=2, padding="valid", dilation=2), True, (2,)),
    "zeros": (dict(kernel_size=3, padding=1), False, (1, 2, 3)),
    "zeros, stride": (dict(kernel_size=3, padding=2, stride=2), False, (2,)),
    "zeros, dilation": (dict(kernel_size=2, padding=1, dilation=2), False, (1, 2)),
    "same": (dict(kernel_size=3, padding="same"), False, (2,)),
    "same, kernel 1": (dict(kernel_size=1, padding="same"), True, (2,)),
    "reflect": (dict(kernel_size=3, padding=1, padding_mode="reflect"), True, (1, 2, 3)),
    "reflect, same": (dict(kernel_size=3, padding="same", padding_mode="reflect"), True, (2,)),
    "replicate": (dict(kernel_size=3, padding=2, padding_mode="replicate", stride=2), True, (2,)),
    "circular": (dict(kernel_size=3, padding=1, padding_mode="circular"), True, (1, 2)),
}
CONV_CASES = [
    pytest.param(d, grouped, window, bias, id=f"{d}d-{grouped}-{window}-{'bias' if bias else 'no bias'}")
    for g, grouped in enumerate(GROUPED)
    for w, (window, (_, _, dims)) in enumerate(WINDOWS.items())
    for d in dims
    for bias in [(g + w + d) % 2 == 0]
]


@pytest.mark.parametrize(("d", "grouped", "window", "bias"), CONV_CASES)
def test_conv(d: int, grouped: str, window: str, bias: bool) -> None:
    groups, wide_in, wide_out, masked, uniform_left, padded_left = GROUPED[grouped]
    arguments, uniform, _ = WINDOWS[window]
    model = between(d, CONV[d](wide_in, wide_out, groups=groups, bias=bias, **arguments), wide_in, wide_out)
    result = check_equal(
        model, image(d), mask_indices(model, {"0.weight": BEFORE, "1.weight": masked}), [image(d, 3, 7)]
    )
    layer = result.model[1]
    left = (layer.in_channels, layer.out_channels, layer.groups)
    few = FEWER.get((d, window)) if grouped == "depthwise, multiplier 2" else None
    assert left == (uniform_left if uniform else padded_left if few is None else (few, 2 * few, few))
    assert tuple(layer.weight.shape[:2]) == (left[1], left[0] // left[2])
    assert result.shape("0.weight")[0] == left[0]
    assert result.shape("2.weight")[1] == left[1]


@pytest.mark.parametrize("d", [1, 2, 3])
def test_padding_given_per_axis(d: int) -> None:
    """Zero padding of one axis alone is padding."""
    padding = (1, *[0] * (d - 1))
    model = between(d, CONV[d](8, 6, 3, padding=padding, stride=(2, *[1] * (d - 1))), 8, 6)
    result = check_equal(model, image(d), mask_indices(model, {"0.weight": BEFORE}), [image(d, 1, 9)])
    assert result.shape("1.weight")[:2] == (6, 5)
    model = between(d, CONV[d](8, 6, 3, padding=(0,) * d), 8, 6)
    result = check_equal(model, image(d), mask_indices(model, {"0.weight": BEFORE}), [image(d, 1, 9)])
    assert result.shape("1.weight")[:2] == (6, 4)


# groups, channels in and out, masked output indices of every group -> (in, out, groups) left, as above.
TRANSPOSED_GROUPED = {
    "one group": (1, 8, 6, [0, 3], (4, 4, 1), (5, 4, 1)),
    "two groups": (2, 8, 6, [1], (6, 4, 2), (8, 4, 2)),
    "groups of constants": (4, 8, 8, [1], (6, 3, 3), (8, 4, 4)),
    "depthwise": (8, 8, 8, [], (4, 4, 4), (8, 8, 8)),
    "depthwise, multiplier 2": (8, 8, 16, [0], (4, 4, 4), (8, 8, 8)),
}
TRANSPOSED_WINDOWS = {
    "kernel 1": (dict(kernel_size=1), True, (1, 2, 3)),
    "plain": (dict(kernel_size=3), False, (1, 2, 3)),
    "kernel 1, stride": (dict(kernel_size=1, stride=2), False, (2,)),
    "kernel is stride": (dict(kernel_size=2, stride=2), False, (2, 3)),
    "padding": (dict(kernel_size=3, padding=1, dilation=2), False, (2,)),
    "output padding": (dict(kernel_size=3, stride=2, padding=1, output_padding=1), False, (1, 2, 3)),
}
TRANSPOSED_CASES = [
    pytest.param(d, grouped, window, bias, id=f"{d}d-{grouped}-{window}-{'bias' if bias else 'no bias'}")
    for g, grouped in enumerate(TRANSPOSED_GROUPED)
    for w, (window, (_, _, dims)) in enumerate(TRANSPOSED_WINDOWS.items())
    for d in dims
    for bias in [(g + w + d) % 2 == 0]
]


@pytest.mark.parametrize(("d", "grouped", "window", "bias"), TRANSPOSED_CASES)
def test_transposed_conv(d: int, grouped: str, window: str, bias: bool) -> None:
    groups, wide_in, wide_out, masked, uniform_left, spread_left = TRANSPOSED_GROUPED[grouped]
    arguments, uniform, _ = TRANSPOSED_WINDOWS[window]
    model = between(d, TRANSPOSED[d](wide_in, wide_out, groups=groups, bias=bias, **arguments), wide_in, wide_out)
    masks = mask_indices(model, {"0.weight": BEFORE})
    if masked:
        masks = merged(masks, mask_indices(model, {"1.weight": masked}, axis=1))
    result = check_equal(model, image(d), masks, [image(d, 3, 7)])
    layer = result.model[1]
    left = (layer.in_channels, layer.out_channels, layer.groups)
    assert left == (uniform_left if uniform else spread_left)
    assert tuple(layer.weight.shape[:2]) == (left[0], left[1] // left[2])
    assert result.shape("2.weight")[1] == left[1]


def test_output_size_of_a_transposed_conv() -> None:
    """The size that a caller asks for at run time goes to the smaller layer too."""

    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1)
            self.last = nn.Conv2d(6, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.up(self.down(x), output_size=x.shape[2:]))

    model = randomize(Up())
    masks = merged(
        mask_indices(model, {"down.weight": [1, 2], "down.bias": [1, 2]}), mask_indices(model, {"up.weight": [0, 5]}, 1)
    )
    result = check_equal(model, image(2, size=8), masks, [image(2, 1, 5)])
    assert result.shape("up.weight") == (6, 4, 3, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:.* is masked whole")
def test_random_masks(d: int, kind: str) -> None:
    model = nn.Sequential(
        CONV[d](3, 8, 3, padding=1),
        nn.ReLU(),
        CONV[d](8, 8, 3, padding=1, groups=2),
        nn.Sigmoid(),
        CONV[d](8, 16, 3, padding=1, groups=8, bias=False),
        nn.Hardswish(),
        TRANSPOSED[d](16, 6, 2, stride=2, groups=2),
        nn.LeakyReLU(0.3),
        CONV[d](6, 4, 1, bias=False),
        CONV[d](4, 3, 3, padding=1, padding_mode="replicate"),
    )
    randomize(model, seed=d)
    check_equal(model, image(d, size=4), random_masks(model, d, kind), [image(d, 1, 5)])


# -- functions on raw parameters ------------------------------------------------------------------------------------


class Functional(nn.Module):
    """conv or transposed conv as a function of parameters that no layer owns."""

    def __init__(self, d: int, transposed: bool, groups: int, bias: bool, **arguments: Any) -> None:
        super().__init__()
        self.first = CONV[d](3, 8, 1)
        self.kernel = nn.Parameter(
            torch.empty(8, 6 // groups, *[3] * d) if transposed else torch.empty(6, 8 // groups, *[3] * d)
        )
        self.shift = nn.Parameter(torch.empty(6)) if bias else None
        self.last = CONV[d](6, 2, 1)
        self.call = getattr(F, f"conv_transpose{d}d" if transposed else f"conv{d}d")
        self.arguments = {"groups": groups, **arguments}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.call(self.first(x), self.kernel, self.shift, **self.arguments))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_functions(d: int, transposed: bool, bias: bool) -> None:
    model = randomize(Functional(d, transposed, 1, bias, padding=1))
    axis = int(transposed)
    masks = merged(mask_indices(model, {"first.weight": BEFORE}), mask_indices(model, {"kernel": [0, 1, 3]}, axis))
    result = check_equal(model, image(d), masks, [image(d, 1, 9)])
    assert result.shape("kernel")[:2] == ((5, 3) if transposed else (3, 5))
    assert result.shape("last.weight")[1] == 3
    if bias:
        assert result.shape("shift") == (3,)


@pytest.mark.parametrize("bias", [True, False])
def test_constants_before_an_unpadded_function(bias: bool) -> None:
    """They go into its bias; a function without one keeps one of them, which carries the others."""
    model = randomize(Functional(2, False, 1, bias))
    result = check_equal(model, image(2), mask_indices(model, {"first.weight": BEFORE}), [image(2, 1, 9)])
    assert result.shape("kernel")[:2] == (6, 4 if bias else 5)


@pytest.mark.parametrize("padding", [0, 1, "same", (1, 0)])
def test_groups_of_a_function(padding: Any) -> None:
    """The number of groups stands in the caller's code: groups shrink evenly and none goes."""
    model = randomize(Functional(2, False, 2, True, padding=padding))
    dropped = {"first.weight": [0, 1, 4], "first.bias": [0, 1, 4], "kernel": [0, 3, 4]}
    result = check_equal(model, image(2), mask_indices(model, dropped), [image(2, 1, 9)])
    assert result.shape("kernel")[:2] == (4, 3)
    whole = mask_indices(model, {"kernel": [0, 1, 2], "shift": [0, 1, 2]})
    assert check_equal(model, image(2), whole, [image(2, 1, 9)]).shape("kernel")[0] in (4, 6)


def test_a_kernel_shared_by_two_calls_keeps_what_either_needs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
            self.kernel = nn.Parameter(torch.empty(5, 6, 3, 3))
            self.last = nn.Conv2d(5, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = F.conv2d(self.a(x), self.kernel, padding=1)
            return self.last(a + F.conv2d(self.b(x), self.kernel, padding=1))

    model = randomize(Twice())
    # Zeros in both can go; what is a constant of a bias, or masked in one of the two only, stays.
    zero = [0, 1]
    dropped = {"a.weight": [*zero, 2], "a.bias": [*zero, 2], "b.weight": [*zero, 3], "b.bias": zero, "kernel": [4]}
    result = check_equal(model, image(2), mask_indices(model, dropped), [image(2, 1, 8)])
    assert result.shape("kernel") == (4, 4, 3, 3)


# -- constants ------------------------------------------------------------------------------------------------------

# widths; padding; masked filters -> channels left of every layer but the last
CONSTANTS = {
    "unpadded: into the bias": ((3, 8, 5, 2), 0, {"0.weight": [1, 2, 3]}, (5, 5)),
    "padded: one carrier for three": ((3, 8, 5, 2), 1, {"0.weight": [1, 2, 3]}, (6, 5)),
    "padded: a single constant is its own carrier": ((3, 8, 5, 2), 1, {"0.weight": [1]}, (8, 5)),
    "in two layers": ((3, 8, 6, 2), 1, {"0.weight": [1, 2, 3], "2.weight": [0, 1, 5]}, (6, 4)),
    "all but one": ((3, 8, 6, 2), 1, {"0.weight": [0, 1, 2, 3, 4, 5, 6]}, (2, 6)),
    "all: one constant is left": ((3, 8, 6, 2), 1, {"0.weight": range(8)}, (1, 6)),
    "all, unpadded": ((3, 8, 6, 2), 0, {"0.weight": range(8)}, (1, 1)),
    "the output layer keeps its size": ((3, 8, 6, 4), 1, {"4.weight": [0, 1]}, (8, 6)),
    "the output layer whole": ((3, 8, 6, 4), 1, {"4.weight": range(4)}, (1, 1)),
    "columns": ((3, 8, 6, 2), 1, {"2.weight, axis 1": [0, 3], "4.weight, axis 1": [1]}, (6, 5)),
    "columns and the filters behind them": (
        (3, 8, 6, 2),
        1,
        {"0.weight": [0, 3, 4], "2.weight, axis 1": [0, 3, 4]},
        (5, 6),
    ),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("case", CONSTANTS)
@pytest.mark.filterwarnings("ignore:.* is masked whole")
def test_constants(case: str, bias: bool) -> None:
    """Behind a sigmoid every masked filter is a constant that is not 0, with or without a bias."""
    widths, padding, dropped, left = CONSTANTS[case]
    model = small_convs(*widths, padding=padding, bias=bias)
    masks: Masks = {}
    for place, indices in dropped.items():
        name, _, axis = place.partition(", axis ")
        masks = merged(masks, mask_indices(model, {name: indices}, int(axis or 0)))
    result = check_equal(model, image(2, size=8), masks, [image(2, 1, 9), image(2, 3, 13)])
    assert tuple(result.shape(f"{2 * i}.weight")[0] for i in range(len(widths) - 2)) == left
    assert result.shape(f"{2 * len(widths) - 4}.weight")[0] == widths[-1]
    if padding:
        assert result.plan.report.gained == []


def test_masked_biases_alone() -> None:
    model = small_convs(3, 8, 6, 2, padding=1)
    result = check_equal(
        model, image(2, size=8), mask_indices(model, {"0.bias": [0, 3], "2.bias": [1]}), [image(2, 1, 9)]
    )
    assert result.kept == 1.0
    assert not result.model[0].bias[[0, 3]].any()


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("arguments", [dict(padding=1), dict(padding=0), dict(padding="same", dilation=2)])
def test_zeros_leave_no_trace(act: type[nn.Module], arguments: dict[str, Any]) -> None:
    """A filter masked with its bias is 0 behind an activation that keeps 0: no carrier, no bias."""
    layers = [
        nn.Conv2d(3, 8, 3, **arguments),
        act(),
        nn.Conv2d(8, 4, 3, bias=False, **arguments),
        act(),
        nn.Conv2d(4, 2, 1),
    ]
    model = randomize(nn.Sequential(*layers))
    masks = mask_indices(model, {"0.weight": [0, 1, 7], "0.bias": [0, 1, 7], "2.weight": [2]})
    result = check_equal(model, image(2, size=8), masks, [image(2, 1, 11)])
    assert (result.shape("0.weight")[0], result.shape("2.weight")[0]) == (5, 3)
    assert result.plan.report.gained == []


def test_a_gained_bias() -> None:
    """A layer without bias gains one where it takes up constants: fewer parameters than a carrier."""
    model = small_convs(3, 8, 5, 2, padding=0, bias=False)
    result = check_equal(model, image(2, size=8), mask_indices(model, {"0.weight": [1, 2, 3]}), [image(2, 1, 9)])
    layer = result.model[2]
    assert result.plan.report.gained == ["2.bias"]
    assert isinstance(layer.bias, nn.Parameter) and layer.bias.shape == (5,) and layer.bias.requires_grad
    assert result.model[0].bias is None and result.model[4].bias is None


def test_a_bias_is_gained_for_the_filters_that_are_left_only() -> None:
    model = small_convs(3, 8, 5, 2, padding=0, bias=False)
    result = check_equal(
        model, image(2, size=8), mask_indices(model, {"0.weight": [1], "2.weight": [0, 4]}), [image(2, 1, 9)]
    )
    assert result.shape("2.bias") == (3,)


# masked filters of the layer before (8 of them, 4 for each group) -> channels left: each group has its own carrier
CARRIERS = {
    "one group has constants": ([0, 1, 2], 8, "as many as the other group"),
    "both groups have": ([0, 1, 4, 5], 6, "two and a carrier each"),
    "one group is constant": ([0, 1, 2, 3, 5, 6], 6, "one carrier, padded to the three of the other"),
    "one is left in each": ([0, 1, 2, 4, 5, 6], 4, "one and a carrier each"),
}


@pytest.mark.parametrize("case", CARRIERS)
def test_every_group_has_its_own_carrier(case: str) -> None:
    dropped, left, _ = CARRIERS[case]
    model = randomize(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 6, 3, padding=1, groups=2), nn.Conv2d(6, 2, 1))
    )
    result = check_equal(model, image(2, size=8), mask_indices(model, {"0.weight": dropped}), [image(2, 1, 11)])
    assert (result.shape("0.weight")[0], result.model[2].groups) == (left, 2)


@pytest.mark.parametrize("groups", [1, 2])
def test_large_weights_take_up_constants_part_by_part(groups: int) -> None:
    """More entries than are computed with at a time: rows, columns and carriers stay those of their place."""
    model = randomize(
        nn.Sequential(
            nn.Conv2d(3, 128, 1), nn.Sigmoid(), nn.Conv2d(128, 480, 3, padding=1, groups=groups), nn.Sigmoid(),
            nn.Conv2d(480, 2, 1),
        ), seed=groups
    )  # fmt: skip
    masks = mask_indices(model, {"0.weight": range(0, 128, 3), "2.weight": range(1, 480, 2)})
    masks["2"]["weight"][:, [0, 5]] = 0
    result = check_equal(model, image(2), masks, [image(2, 1, 9)])
    assert result.shape("2.weight")[0] == 240
    assert result.shape("0.weight")[0] < 96


def test_batch_norm_takes_up_constants_of_a_padded_depthwise_chain() -> None:
    """A mobile block: masks of the expansion and of the depthwise conv that are not aligned."""
    block = nn.Sequential(
        nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
        nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4),
    )  # fmt: skip
    model = randomize(block, seed=3)
    aligned = [0, 3, 4, 5, 11]
    for name in ("1.weight", "1.bias"):
        model.get_parameter(name).data.abs_()
    both = {"0.weight": aligned, "1.weight": aligned, "1.bias": aligned, "3.weight": [*aligned, 7]}
    result = check_equal(model, image(2, size=8), mask_indices(model, both), [image(2, 1, 11)])
    assert (result.shape("0.weight")[0], result.model[3].groups) == (6, 6)
    # Without the masks of the norm, a positive beta comes through it: what the padded depthwise conv makes of it stays,
    # but for one channel of which ReLU6 makes the same at all places.
    unaligned = {"0.weight": aligned, "3.weight": [1, 3]}
    result = check_equal(model, image(2, size=8), mask_indices(model, unaligned), [image(2, 1, 11)])
    assert (result.shape("0.weight")[0], result.model[3].groups) == (9, 9)


def test_fine_masks_are_baked_in() -> None:
    model = small_convs(3, 8, 5, 2, padding=1)
    masks = random_masks(model, 0, "fine")
    masks["2"]["weight"][:, 3] = 0
    result = check_equal(model, image(2, size=8), masks, [image(2, 1, 9)])
    assert result.shape("2.weight")[:2] == (5, 7)
    kept = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(result.model[2].weight != 0, masks["2"]["weight"][:, kept] != 0)


# -- what layers are and how they are called ------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_unbatched_input(d: int, transposed: bool) -> None:
    layer = (TRANSPOSED if transposed else CONV)[d](8, 6, 3, padding=1, groups=2)
    model = between(d, layer, 8, 6)
    result = check_equal(model, image(d)[0], mask_indices(model, {"0.weight": BEFORE}), [image(d, 1, 9)[0], image(d)])
    assert result.shape("0.weight")[0] == 8  # three of the first group are constant: one carrier, padded to the other's
    masks = mask_indices(model, {"0.weight": BEFORE, "0.bias": BEFORE})
    assert check_equal(model, image(d)[0], masks, [image(d)]).shape("0.weight")[0] == 6


def test_a_layer_called_twice() -> None:
    """Its constants can only be folded where both calls agree; zeros go for both."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.shared(self.shared(self.first(x)).relu()))

    model = randomize(Twice())
    zeros = {f"{layer}.{name}": [1, 4] for layer in ("first", "shared") for name in ("weight", "bias")}
    result = check_equal(model, image(2), mask_indices(model, zeros), [image(2, 1, 9)])
    assert result.shape("shared.weight") == (6, 6, 3, 3)
    for seed in range(4):
        check_equal(model, image(2), random_masks(model, seed, "mixed"), [image(2, 1, 9)])


def test_a_layer_called_at_two_sizes() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3, padding=1)
            self.last = nn.Conv2d(6, 2, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.first(x)
            return self.last(self.head(x)), self.last(self.head(x[..., ::2, ::2]))

    model = randomize(Pyramid())
    masks = mask_indices(model, {"first.weight": [0, 5], "first.bias": [0, 5], "head.weight": [3]})
    result = check_equal(model, image(2), masks, [image(2, 1, 9)])
    # The masked filter of the head is a constant in both calls; its readers share a bias, to which each would add it.
    assert result.shape("head.weight")[1] == 6


class Named(nn.Conv2d):
    """A subclass that only builds itself in another way."""

    def __init__(self, width: int) -> None:
        super().__init__(8, width, 3, padding=1, bias=False)
        self.width = width

    def extra_repr(self) -> str:
        return f"width={self.width}"


class Standardized(nn.Conv2d):
    """A subclass that computes something else: each filter is standardised (weight standardisation)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-3)
        return F.conv2d(input, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Scaled(nn.Conv2d):
    """A subclass whose forward adds to that of its parent."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input) + 1


def test_a_subclass_with_its_own_init_is_claimed() -> None:
    model = between(2, Named(6), 8, 6)
    masks = mask_indices(model, {"0.weight": BEFORE, "0.bias": BEFORE, "1.weight": [0]})
    result = check_equal(model, image(2), masks, [image(2, 1, 9)])
    assert result.shape("1.weight") == (5, 4, 3, 3)
    assert type(result.model[1]) is Named and result.model[1].width == 6
    assert (result.model[1].in_channels, result.model[1].out_channels) == (4, 5)


def test_an_overridden_forward_is_looked_into() -> None:
    model = between(2, Scaled(8, 6, 3, padding=1), 8, 6)
    masks = mask_indices(model, {"0.weight": BEFORE, "0.bias": BEFORE, "1.weight": [0]})
    result = check_equal(model, image(2), masks, [image(2, 1, 9)])
    assert result.shape("1.weight") == (5, 4, 3, 3)
    assert type(result.model[1]) is Scaled


@pytest.mark.parametrize("kind", ["filters", "columns", "mixed"])
def test_a_forward_that_reads_its_weight_in_other_ways(kind: str) -> None:
    """The mean of a filter counts all of its columns: a rule that took the layer for a plain one would be wrong."""
    model = between(2, Standardized(8, 6, 3, padding=1), 8, 6)
    for seed in range(2):
        check_equal(model, image(2), random_masks(model, seed, kind), [image(2, 1, 9)])


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


@pytest.mark.parametrize("how", ["weight_norm", "own"])
def test_a_parametrized_layer(how: str) -> None:
    """Its weight is computed in each forward: the parameters behind it are what is masked."""
    model = between(2, nn.Conv2d(8, 6, 3, padding=1), 8, 6)
    if how == "weight_norm":
        parametrizations.weight_norm(model[1])
        name = "1.parametrizations.weight.original1"
    else:
        parametrize.register_parametrization(model[1], "weight", Doubled())
        name = "1.parametrizations.weight.original"
    masks = mask_indices(model, {"0.weight": BEFORE, "0.bias": BEFORE, name: [2]})
    if how == "weight_norm":
        masks.update(mask_indices(model, {"0.weight": BEFORE, "0.bias": BEFORE}))
        del masks["1.parametrizations.weight"]  # a masked direction would be divided by its norm, 0
    result = check_equal(model, image(2), masks, [image(2, 1, 9)])
    if how == "own":
        assert result.shape(name)[1] == 4
    assert parametrize.is_parametrized(result.model[1], "weight")


def test_forward_hooks() -> None:
    """Hooks run as before, on what is left, and what they do to the output counts."""
    model = between(2, nn.Conv2d(8, 6, 3, padding=1), 8, 6)
    seen: list[tuple[int, ...]] = []
    model[1].register_forward_pre_hook(lambda module, args: (args[0] + 0.5,))
    model[1].register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    model[1].register_forward_hook(lambda module, args, output: output.tanh() * 3)
    masks = mask_indices(model, {"0.weight": BEFORE, "1.weight": [0]})
    result = check_equal(model, image(2), masks, [image(2, 1, 9)])
    assert result.shape("1.weight")[:2] == (5, 5)  # a half is added to what is read: one carrier
    seen.clear()
    result.model(image(2).double())
    assert seen == [(2, 5, 6, 7)]


def test_frozen_layers_stay_frozen() -> None:
    model = between(2, nn.Conv2d(8, 6, 3), 8, 6)
    model[1].requires_grad_(False)
    result = check_equal(model, image(2), mask_indices(model, {"0.weight": BEFORE, "1.weight": [0]}), [image(2, 1, 9)])
    assert [p.requires_grad for p in result.model.parameters()] == [True, True, False, False, True, True]
    assert result.shape("1.weight")[:2] == (5, 4)


def test_attributes_say_what_is_left() -> None:
    """Everything else of the layer is as it was: stride, padding and a copy that can be made of it."""
    layer = nn.Conv2d(8, 6, (3, 1), stride=(2, 1), padding=(1, 0), groups=2, padding_mode="reflect")
    model = between(2, layer, 8, 6)
    masks = mask_indices(model, {"0.weight": BEFORE, "1.weight": [0, 1, 2], "1.bias": [0, 1, 2]})
    small = copy.deepcopy(check_equal(model, image(2), masks, [image(2, 1, 9)]).model[1])
    assert (small.in_channels, small.out_channels, small.groups) == (3, 3, 1)
    assert (small.kernel_size, small.stride, small.padding, small.padding_mode) == ((3, 1), (2, 1), (1, 0), "reflect")


# -- nets -----------------------------------------------------------------------------------------------------------


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's kernels, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.b(self.a(x).sigmoid()).relu()
        h = F.conv_transpose2d(h, self.b.weight, padding=1)
        return self.last(F.conv_transpose2d(h, self.a.weight, padding=1))


class Readers(nn.Module):
    """Several readers of one tensor, which ask for different carriers, or for none."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 6, 3, padding=1, groups=3)
        self.unpadded = nn.Conv2d(12, 6, 3, bias=False)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.shared, self.up = nn.Conv2d(6, 4, 3, padding=1), nn.ConvTranspose2d(12, 4, 2, stride=2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = self.a(x).tanh()
        u, v = self.grouped(h).sigmoid(), self.unpadded(h).sigmoid()
        return self.shared(u + F.pad(v, (1, 1, 1, 1))), self.up(self.depthwise(h)), self.shared(u)


@pytest.mark.parametrize("net", [TiedAutoencoder, Readers])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.* is masked whole")
def test_random_masks_of_nets(net: type[nn.Module], kind: str) -> None:
    model = randomize(net())
    check_equal(model, image(2), random_masks(model, len(kind), kind, share=0.4), [image(2, 1, 8)])


@pytest.mark.parametrize("groups", [1, 3])
def test_a_model_that_is_a_conv(groups: int) -> None:
    """Its outputs keep their size, its inputs come as they are."""
    model = randomize(nn.Conv2d(3, 6, 3, padding=1, groups=groups))
    result = check_equal(model, image(2), mask_indices(model, {"weight": [0, 1, 4]}), [image(2, 1, 9)])
    assert isinstance(result.model, nn.Conv2d)
    assert result.kept == 1.0


def test_constants_of_another_group_than_the_outputs_that_are_constant() -> None:
    """Group 0 reads zeros alone, so that its outputs are constant; what is not 0 is in group 1."""
    net = randomize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2, bias=False), nn.Conv2d(4, 2, 1)))
    masks = mask_indices(net, {"0.weight": [0, 1, 2], "0.bias": [0, 1]})
    result = check_equal(net, image(2), masks, [image(2, 3, 7)])
    assert result.shape("0.weight")[0] == 1
    assert result.shape("1.weight") == (2, 1, 1, 1)
