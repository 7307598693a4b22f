"""Convolutions and transposed convolutions answer exactly as masked, and lose exactly what can go."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from speedup.testing import KINDS, check_equal, mask_indices, random_masks, randomize

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
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(a, b, 3, **arguments), nn.Sigmoid()]
    return randomize(nn.Sequential(*layers[:-1]))


def merged(*masks: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for each in masks:
        for path, own in each.items():
            found.setdefault(path, {}).update(own)
    return found


# -- every form of the layer -----------------------------------------------------------------------------------------

# Filters 0, 2, 3 and 6 of the layer before are masked, and give the constants of its bias; then some of the layer itself.
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
# arguments of the layer, whether a constant comes out the same everywhere, in how many dimensions it is tried
WINDOWS = {
    "kernel 1": (dict(kernel_size=1), True, (2,)),
    "unpadded": (dict(kernel_size=3), True, (1, 2, 3)),
    "valid": (dict(kernel_size=2, padding="valid", dilation=2), True, (2,)),
    "zeros": (dict(kernel_size=3, padding=1), False, (1, 2, 3)),
    "zeros, stride": (dict(kernel_size=3, padding=2, stride=2), False, (2, 3)),
    "zeros, dilation": (dict(kernel_size=2, padding=1, dilation=2), False, (1, 2)),
    "same": (dict(kernel_size=3, padding="same"), False, (2, 3)),
    "same, kernel 1": (dict(kernel_size=1, padding="same"), True, (2,)),
    "reflect": (dict(kernel_size=3, padding=1, padding_mode="reflect"), True, (1, 2, 3)),
    "reflect, same": (dict(kernel_size=3, padding="same", padding_mode="reflect"), True, (2,)),
    "replicate": (dict(kernel_size=3, padding=2, padding_mode="replicate", stride=2), True, (2, 3)),
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
        model, image(d), mask_indices(model, {"0.weight": BEFORE, "1.weight": masked}), [image(d, 1, 7), image(d, 3, 9)]
    )
    layer = result.model[1]
    left = (layer.in_channels, layer.out_channels, layer.groups)
    assert left == (uniform_left if uniform else padded_left)
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
    result = check_equal(model, image(d), masks, [image(d, 1, 7), image(d, 3, 9)])
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
    for seed in range(2):
        check_equal(model, image(d, size=4), random_masks(model, seed, kind), [image(d, 1, 5)])


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

# widths; padding; masked filters and biases -> channels left of every layer
CONSTANTS = {
    "zeros leave no trace": ((3, 8, 5, 2), 1, {"0.weight": [1, 2], "0.bias": [1, 2]}, (7, 5)),
    "unpadded: into the bias": ((3, 8, 5, 2), 0, {"0.weight": [1, 2, 3]}, (5, 5)),
    "padded: one carrier for three": ((3, 8, 5, 2), 1, {"0.weight": [1, 2, 3]}, (6, 5)),
    "padded: a single constant is its own carrier": ((3, 8, 5, 2), 1, {"0.weight": [1]}, (8, 5)),
    "in two layers": ((3, 8, 6, 2), 1, {"0.weight": [1, 2, 3], "2.weight": [0, 1, 5]}, (6, 4)),
    "all but one": ((3, 8, 6, 2), 1, {"0.weight": [0, 1, 2, 3, 4, 5, 6]}, (2, 6)),
    "all: one constant is left": ((3, 8, 6, 2), 1, {"0.weight": range(8)}, (1, 6)),
    "all, unpadded": ((3, 8, 6, 2), 0, {"0.weight": range(8)}, (1, 1)),
    "the output layer keeps its size": ((3, 8, 6, 4), 1, {"4.weight": [0, 1]}, (8, 6)),
    "the output layer whole": ((3, 8, 6, 4), 1, {"4.weight": range(4)}, (1, 1)),
}


@pytest.mark.parametrize("case", CONSTANTS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.filterwarnings("ignore:.* is masked whole")
def test_constants(case: str, bias: bool) -> None:
    """Behind a sigmoid every masked filter is a constant that is not 0, with or without a bias."""
    widths, padding, dropped, left = CONSTANTS[case]
    if not bias:
        dropped = {name: indices for name, indices in dropped.items() if "bias" not in name}
        if case == "zeros leave no trace":
            pytest.skip("without a bias this is another case of the table")
    if case == "zeros leave no trace":
        model = randomize(
            nn.Sequential(
                *[m if not isinstance(m, nn.Sigmoid) else nn.ReLU() for m in small_convs(3, 8, 5, 2, padding=1)]
            )
        )
        left = (6, 5)
    else:
        model = small_convs(*widths, padding=padding, bias=bias)
    result = check_equal(model, image(2, size=8), mask_indices(model, dropped), [image(2, 1, 9), image(2, 3, 13)])
    assert tuple(result.shape(f"{2 * i}.weight")[0] for i in range(len(widths) - 2)) == left
    assert result.shape(f"{2 * len(widths) - 4}.weight")[0] == widths[-1]
