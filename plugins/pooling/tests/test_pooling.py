"""Pooling, resizing and padding: the small model answers as the masked one, and what can go goes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import Result, check_equal, mask_indices, random_masks, randomize

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# Of the 8 channels of the first layer these filters are masked; what is left of them are constants.
MASKED = {0: 0.75, 3: 0.0, 5: -0.5}
# Channels that the last layer keeps where it pads with zeros, and where it does not.
PASSES = (6, 5)  # every constant passes: one carries them where borders differ, else they go into the bias
ZERO_ONLY = (7, 7)  # only the constant 0 passes
BORDERED = (6, 6)  # constants fade at the border, all by the same factor: one carries them whatever follows
FILLED = (7, 6)  # the same on top of the filler, which goes into the bias or needs a second carrier


class Net(nn.Module):
    """A convolution of 8 channels, what is tested, and a convolution that reads it."""

    def __init__(
        self, body: Callable[..., torch.Tensor], dims: int = 2, width: int = 8, padding: int = 1, **held: Any
    ) -> None:
        super().__init__()
        self.a = CONV[dims](3, 8, 3, padding=1)
        self.t = CONV[dims](width, 5, 3, padding=padding)
        self.body = body
        for name, module in held.items():
            setattr(self, name, module)
        randomize(self, seed=dims)
        with torch.no_grad():
            for index, value in MASKED.items():
                self.a.bias[index] = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return self.t(self.body(self, y) if len(inspect.signature(self.body).parameters) == 2 else self.body(y))


def image(dims: int, batch: int, *sizes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, *(*sizes, *[sizes[-1]] * dims)[:dims], generator=generator)


def checked(net: Net, dims: int = 2, same_size: bool = False) -> Result:
    """Equal at the size of the dummy input, at another batch size, and at other sizes, even and odd."""
    others = [image(dims, 3, 8)] if same_size else [image(dims, 1, 10, 12), image(dims, 3, 11, 9)]
    return check_equal(net, image(dims, 2, 8), mask_indices(net, {"a.weight": list(MASKED)}), others)


def channels(result: Result) -> tuple[int, int]:
    """Channels that the first layer makes, and that the last one reads."""
    return result.shape("a.weight")[0], result.shape("t.weight")[1]


FUNCTIONS = {
    "max_pool2d": (lambda y: F.max_pool2d(y, 2), PASSES),
    "torch.max_pool2d": (lambda y: torch.max_pool2d(y, [2, 2]), PASSES),
    "max_pool2d with padding": (lambda y: F.max_pool2d(y, 3, 2, 1), PASSES),
    "max_pool2d with ceil_mode": (lambda y: F.max_pool2d(y, 3, 2, ceil_mode=True), PASSES),
    "max_pool2d with dilation": (lambda y: F.max_pool2d(y, 3, 2, 1, dilation=2), PASSES),
    "max_pool2d of which the indices are dropped": (lambda y: F.max_pool2d(y, 2, return_indices=True)[0], PASSES),
    "avg_pool2d": (lambda y: F.avg_pool2d(y, 2), PASSES),
    "avg_pool2d of an uneven window": (lambda y: F.avg_pool2d(y, (3, 1), stride=(1, 2)), PASSES),
    "avg_pool2d that counts padding": (lambda y: F.avg_pool2d(y, 3, 2, 1), BORDERED),
    "avg_pool2d that does not": (lambda y: F.avg_pool2d(y, 3, 2, 1, count_include_pad=False), PASSES),
    "avg_pool2d with ceil_mode": (lambda y: F.avg_pool2d(y, 3, 2, ceil_mode=True), PASSES),
    "avg_pool2d with ceil_mode that counts padding": (lambda y: F.avg_pool2d(y, 3, 2, 1, ceil_mode=True), BORDERED),
    "avg_pool2d with ceil_mode that does not": (lambda y: F.avg_pool2d(y, 3, 2, 1, True, False), PASSES),
    "max_pool3d with channels as an axis": (lambda y: F.max_pool3d(y[:, None], (1, 2, 2), (1, 1, 2))[:, 0], PASSES),
    "avg_pool3d with channels as an axis": (
        lambda y: F.avg_pool3d(y[:, None], (1, 3, 3), (1, 2, 2), (0, 1, 1))[:, 0],
        BORDERED,
    ),
    "avg_pool2d of tokens": (
        lambda y: (
            F.avg_pool2d(y.flatten(2).mT[:, None], (2, 1), (2, 1), ceil_mode=True)
            .squeeze(1)
            .mT[..., None]
            .repeat(1, 1, 1, 3)
        ),
        PASSES,
    ),
    "lp_pool3d with channels as an axis": (lambda y: F.lp_pool3d(y[:, None], 2.0, (1, 2, 2), 1)[:, 0], PASSES),
    "avg_pool2d with a divisor": (lambda y: F.avg_pool2d(y, 2, divisor_override=3), PASSES),
    "avg_pool2d with a divisor and cut windows": (
        lambda y: F.avg_pool2d(y, 3, 2, ceil_mode=True, divisor_override=2),
        BORDERED,
    ),
    "avg_pool2d with a divisor and padding": (lambda y: F.avg_pool2d(y, 2, padding=1, divisor_override=3), BORDERED),
    "adaptive_avg_pool2d": (lambda y: F.adaptive_avg_pool2d(y, 3), PASSES),
    "adaptive_avg_pool2d of one axis": (lambda y: F.adaptive_avg_pool2d(y, (None, 5)), PASSES),
    "adaptive_max_pool2d": (lambda y: F.adaptive_max_pool2d(y, (4, 3)), PASSES),
    "adaptive_max_pool2d of which the indices are dropped": (
        lambda y: F.adaptive_max_pool2d(y, 3, return_indices=True)[0],
        PASSES,
    ),
    "lp_pool2d": (lambda y: F.lp_pool2d(y, 2.0, 2), PASSES),
    "lp_pool2d with ceil_mode": (lambda y: F.lp_pool2d(y, 2.0, 3, 2, ceil_mode=True), PASSES),
    "two pools in a row": (lambda y: F.avg_pool2d(F.max_pool2d(y, 3, 1), 2), PASSES),
    "a pool behind an activation": (lambda y: F.max_pool2d(y.relu(), 2), PASSES),
    "interpolate nearest": (lambda y: F.interpolate(y, scale_factor=2), PASSES),
    "interpolate to a size": (lambda y: F.interpolate(y, size=(5, 7)), PASSES),
    "interpolate to a size of the tensor's": (lambda y: F.interpolate(y[..., ::2, ::2], size=y.shape[2:]), PASSES),
    "interpolate nearest-exact": (lambda y: F.interpolate(y, scale_factor=1.5, mode="nearest-exact"), PASSES),
    "interpolate area": (lambda y: F.interpolate(y, size=(5, 3), mode="area"), PASSES),
    "interpolate bilinear": (lambda y: F.interpolate(y, scale_factor=2, mode="bilinear"), PASSES),
    "interpolate bilinear, corners aligned": (
        lambda y: F.interpolate(y, (13, 15), mode="bilinear", align_corners=True),
        PASSES,
    ),
    "interpolate bilinear, antialiased": (
        lambda y: F.interpolate(y, scale_factor=0.5, mode="bilinear", antialias=True),
        PASSES,
    ),
    "interpolate bicubic": (lambda y: F.interpolate(y, scale_factor=2, mode="bicubic"), PASSES),
    "interpolate bicubic, corners aligned": (
        lambda y: F.interpolate(y, (5, 9), mode="bicubic", align_corners=True),
        PASSES,
    ),
    "F.upsample": (lambda y: F.upsample(y, scale_factor=2, mode="nearest"), PASSES),
    "F.pad with zeros": (lambda y: F.pad(y, (1, 2, 0, 1)), BORDERED),
    "F.pad of one axis with zeros": (lambda y: F.pad(y, (1, 2)), BORDERED),
    "F.pad with a masked channel's constant": (lambda y: F.pad(y, (1, 1, 1, 1), value=0.75), FILLED),
    "F.pad by nothing": (lambda y: F.pad(y, (0, 0, 0, 0)), BORDERED),
    "F.pad to whole windows, here by nothing": (lambda y: F.pad(y, (0, -y.shape[3] % 8, 0, -y.shape[2] % 8)), BORDERED),
    "F.pad to whole windows, channels last": (
        lambda y: F.pad(y.movedim(1, 3), (0, 0, 0, -y.shape[3] % 8, 0, -y.shape[2] % 8)).movedim(3, 1),
        BORDERED,
    ),
    "F.pad that crops": (lambda y: F.pad(y, (-1, 0, -2, -1)), PASSES),
    "F.pad that crops and pads": (lambda y: F.pad(y, (-1, -1, -1, 1)), BORDERED),
    "F.pad by what tensors say": (lambda y: F.pad(y, (torch.tensor(1), torch.tensor(2), 0, 1)), BORDERED),
    "F.pad reflect by what tensors say": (
        lambda y: F.pad(y, (torch.tensor(y.shape[3] % 3), 1, torch.tensor(1), 0), mode="reflect")[
            ..., : -torch.tensor(1)
        ],
        PASSES,
    ),
    "F.pad reflect": (lambda y: F.pad(y, (1, 2, 0, 1), mode="reflect"), PASSES),
    "F.pad replicate": (lambda y: F.pad(y, (1, 2, 2, 1), mode="replicate"), PASSES),
    "F.pad circular": (lambda y: F.pad(y, (1, 2, 2, 1), mode="circular"), PASSES),
    "constant_pad_nd": (lambda y: torch.constant_pad_nd(y, (1, 1), 0), BORDERED),
    "grid_sample": (
        lambda y: F.grid_sample(y, y.new_full((y.shape[0], 6, 6, 2), 0.3), align_corners=False),
        ZERO_ONLY,
    ),
}


@pytest.mark.parametrize("padding", [1, 0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_constants_pass_a_function_exactly_as_far_as_they_stay_the_same_everywhere(name: str, padding: int) -> None:
    body, kept = FUNCTIONS[name]
    assert channels(checked(Net(body, padding=padding))) == (kept[1 - padding], kept[1 - padding])


def modules(dims: int) -> dict[str, tuple[nn.Module, tuple[int, int]]]:
    def named(name: str) -> Any:
        return getattr(nn, f"{name}{dims}d")

    return {
        "MaxPool": (named("MaxPool")(3, 2, 1, ceil_mode=True), PASSES),
        "AvgPool": (named("AvgPool")(3, 2, ceil_mode=True), PASSES),
        "AvgPool that counts padding": (named("AvgPool")(3, 2, 1), BORDERED),
        "AvgPool that does not": (named("AvgPool")(3, 2, 1, count_include_pad=False), PASSES),
        "LPPool": (named("LPPool")(2.0, 2, ceil_mode=True), PASSES),
        "AdaptiveAvgPool": (named("AdaptiveAvgPool")(3), PASSES),
        "AdaptiveMaxPool": (named("AdaptiveMaxPool")(4), PASSES),
        "Upsample": (nn.Upsample(scale_factor=2, mode=["linear", "bilinear", "trilinear"][dims - 1]), PASSES),
        "ZeroPad": (named("ZeroPad")(1), BORDERED),
        "ConstantPad": (named("ConstantPad")(1, 0.0), BORDERED),
        "ConstantPad that crops": (named("ConstantPad")(-1, 0.3), PASSES),
        "ReflectionPad": (named("ReflectionPad")(1), PASSES),
        "ReplicationPad": (named("ReplicationPad")(2), PASSES),
        "CircularPad": (named("CircularPad")(1), PASSES),
    }


@pytest.mark.parametrize("name", modules(2))
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_module_passes_constants_as_its_function_does(name: str, dims: int) -> None:
    module, kept = modules(dims)[name]
    for padding in (1, 0):
        net = Net(lambda s, y: s.module(y), dims=dims, padding=padding, module=module)
        assert channels(checked(net, dims)) == (kept[1 - padding],) * 2


@pytest.mark.parametrize("module", [nn.UpsamplingNearest2d(scale_factor=2), nn.UpsamplingBilinear2d(size=(6, 7))])
def test_old_upsampling_modules_pass_constants(module: nn.Module) -> None:
    assert channels(checked(Net(lambda s, y: s.module(y), module=module))) == (6, 6)


@pytest.mark.parametrize("masks", ["filters", "columns", "fine", "whole", "mixed"])
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d that counts padding", "F.pad with zeros"])
def test_all_kinds_of_masks_stay_equal(name: str, masks: str) -> None:
    net = Net(FUNCTIONS[name][0])
    for seed in range(2):
        check_equal(net, image(2, 2, 8), random_masks(net, seed, masks), [image(2, 1, 9, 12)])


# -- indices ----------------------------------------------------------------------------------------------------------


def test_indices_that_are_an_output_keep_every_channel() -> None:
    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return F.max_pool2d(self.a(x), 2, return_indices=True)

    net = randomize(Indexed())
    result = check_equal(net, image(2, 2, 8), mask_indices(net, {"a.weight": [0, 3]}), [image(2, 1, 10)])
    assert result.shape("a.weight")[0] == 8


def test_unpooling_puts_zeros_back_and_drops_channels_that_are_zero() -> None:
    def body(s: Net, y: torch.Tensor) -> torch.Tensor:
        small, indices = s.pool(y.relu())
        return s.back(small, indices, output_size=y.shape[2:])

    net = Net(body, pool=nn.MaxPool2d(2, return_indices=True), back=nn.MaxUnpool2d(2))
    # relu makes 0.75, 0, 0 of the constants; the first one comes back at one place only.
    assert channels(checked(net)) == (6, 6)


def test_unpooling_as_a_function() -> None:
    def body(y: torch.Tensor) -> torch.Tensor:
        return F.max_unpool2d(*F.max_pool2d(y, 2, return_indices=True), 2)

    # Indices count positions of the channel, whatever the size; an odd size cannot be unpooled without saying it.
    net = Net(body)
    result = check_equal(net, image(2, 2, 8), mask_indices(net, {"a.weight": list(MASKED)}), [image(2, 3, 10, 12)])
    assert channels(result) == (7, 7)


# -- padding of channels ----------------------------------------------------------------------------------------------

CHANNEL_PADS = {
    "before and after": (lambda y: F.pad(y, (0, 0, 0, 0, 4, 4)), 16, (6, 14)),
    "after, a constant that is no 0": (lambda y: F.pad(y, (0, 0, 0, 0, 0, 4), value=0.3), 12, (5, 9)),
    "of a strided view": (lambda y: F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0), 16, (6, 14)),
    "constant_pad_nd": (lambda y: torch.constant_pad_nd(y, (0, 0, 0, 0, 2, 2)), 12, (6, 10)),
    "as many as there are": (lambda y: F.pad(y, (0, 0, 0, 0, 0, y.shape[1])), 16, (8, 16)),
    "with positions at once": (lambda y: F.pad(y, (1, 1, 0, 0, 4, 4)), 16, (8, 16)),
}


@pytest.mark.parametrize("name", CHANNEL_PADS)
def test_padded_channels_stay_and_masked_ones_go(name: str) -> None:
    body, width, kept = CHANNEL_PADS[name]
    assert channels(checked(Net(body, width=width))) == kept


def test_a_module_pads_channels() -> None:
    net = Net(lambda s, y: s.module(y), width=14, module=nn.ConstantPad3d((0, 0, 0, 0, 2, 4), 0.0))
    assert channels(checked(net)) == (6, 12)


class OptionA(nn.Module):
    """Two residual blocks of a ResNet for small images: its shortcut pads channels and has no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.stem(x)))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.head(y.mean((2, 3)))


def test_resnet_option_a_loses_aligned_channels_of_both_branches() -> None:
    net = randomize(OptionA())
    # Channel 1 of the stem arrives as channel 3 of the sum.
    masks = mask_indices(net, {"stem.weight": [1], "bn.weight": [1], "bn.bias": [1], "conv1.weight": [0, 5]})
    masks |= mask_indices(net, {"conv2.weight": [3], "bn2.weight": [3]})
    result = check_equal(net, image(2, 2, 8), masks, [image(2, 3, 10, 12)])
    assert result.shape("stem.weight")[0] == 3
    assert result.shape("conv2.weight")[0] == 7
    assert result.shape("head.weight") == (5, 7)


@pytest.mark.parametrize("seed", range(4))
def test_resnet_option_a_is_equal_under_unaligned_masks(seed: int) -> None:
    net = randomize(OptionA(), seed)
    check_equal(net, image(2, 2, 8), random_masks(net, seed, "mixed"), [image(2, 3, 10, 12)])


# -- other layouts ----------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Padding of the token axis of (batch, tokens, channels), as windows of attention do it."""

    def __init__(self, pad: tuple[int, ...], mode: str) -> None:
        super().__init__()
        self.a, self.t, self.pad, self.mode = nn.Linear(3, 8), nn.Linear(8, 5), pad, mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.t(F.pad(self.a(x).relu(), self.pad, self.mode))


@pytest.mark.parametrize(("pad", "mode", "kept"), [((0, 0, 0, 2), "constant", 6), ((0, 0, 1, 1), "replicate", 5)])
def test_padding_tokens_leaves_the_channel_axis_free(pad: tuple[int, ...], mode: str, kept: int) -> None:
    net = randomize(Tokens(pad, mode))
    with torch.no_grad():
        net.a.bias[[0, 3, 5]] = torch.tensor([0.75, 0.0, -0.5])
    masks = mask_indices(net, {"a.weight": [0, 3, 5]})
    result = check_equal(net, torch.randn(2, 6, 3), masks, [torch.randn(3, 9, 3)])
    # Where zeros follow, 0.75 is not the same for all tokens and stays.
    assert channels(result) == (kept, kept)


def test_a_pooled_parameter_is_computed_from_all_of_it() -> None:
    class Position(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.t = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 3)
            self.position = nn.Parameter(torch.randn(1, 8, 4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            y = y + F.interpolate(F.max_pool2d(self.position, 3, 1, 1), y.shape[2:], mode="bilinear")
            return self.t(y * F.pad(self.position, (1, 1, 1, 1)).mean((2, 3), keepdim=True))

    net = randomize(Position())
    masks = mask_indices(net, {"a.weight": [0, 3, 5]}) | mask_indices(net, {"position": [3, 5]}, axis=1)
    result = check_equal(net, image(2, 2, 8), masks, [image(2, 1, 10, 9)])
    # Channels 3 and 5 are 0 in both; channel 0 has a bias and positions of its own.
    assert channels(result) == (6, 6)
    assert result.shape("position") == (1, 6, 4, 4)


@pytest.mark.parametrize(
    "resized",
    [
        lambda t, y: F.interpolate(t, size=y.shape[2:], mode="bicubic"),
        lambda t, y: F.interpolate(t, size=y.shape[2:]),
        lambda t, y: F.adaptive_avg_pool2d(t, 1),
        lambda t, y: F.avg_pool2d(t, 4),
        lambda t, y: F.max_pool2d(t, 2)[:, :, :1, :1],
        lambda t, y: F.pad(t, (1, 1, 1, 1), mode="reflect")[:, :, :1, :1],
    ],
)
def test_a_table_of_positions_is_pooled_or_resized(resized: Callable[[Any, Any], torch.Tensor]) -> None:
    """A parameter is known at every position, and is not the same at all of them; channel 3 of it is masked."""
    net = Net(lambda s, y: (y + resized(s.table, y)).sigmoid())
    net.table = nn.Parameter(torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0)))
    table = torch.ones(1, 8, 4, 4)
    table[:, 3] = 0
    masks = {**mask_indices(net, {"a.weight": list(MASKED)}), "": {"table": table}}
    result = check_equal(net, image(2, 2, 8), masks, [image(2, 1, 10, 12), image(2, 3, 11, 9)])
    assert result.shape("table")[1] == channels(result)[0] == 8, "a constant under zero padding has to be carried"


def test_padding_the_second_of_four_axes_leaves_the_others_free() -> None:
    """Positions and heads: what is put in stays along the padded axis, and goes along the others."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 12)
            self.out = nn.Linear(6, 5)
            randomize(self)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            heads = self.a(x).unflatten(2, (2, 6))
            return self.out(F.pad(heads, (0, 0, 0, 0, 0, -heads.shape[1] % 4)).relu().sum((1, 2)))

    net = Net()
    masks = mask_indices(net, {"a.weight": [0, 3, 4, 6, 9, 10], "a.bias": [0, 3, 4, 6, 9, 10]})
    result = check_equal(net, torch.randn(2, 5, 4), masks, [torch.randn(1, 3, 4), torch.randn(3, 8, 4)])
    assert (result.shape("a.weight"), result.shape("out.weight")) == ((6, 4), (5, 3))
