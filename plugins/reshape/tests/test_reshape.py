"""Views, permutations, slices, splits and shuffles: equal, and what can go goes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import Result, check_equal, mask_indices, random_masks, randomize

# Masked filters of the two branches, and the constants that are left of them.
A = {0: 0.75, 3: 0.0, 5: -0.5}
B = {0: 0.5, 3: 0.0, 6: -0.25}


class Net(nn.Module):
    """Two convolutions of 8 channels, what is tested, and a layer that reads it."""

    def __init__(self, body: Callable[..., torch.Tensor], tail: int | nn.Module = 8, **held: Any) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(3, 8, 3, padding=1)
        self.t = nn.Conv2d(tail, 5, 3) if isinstance(tail, int) else tail
        self.body = body
        self.names = tuple(inspect.signature(body).parameters)
        for name, value in held.items():
            if isinstance(value, torch.Tensor):
                self.register_buffer(name, value)
            else:
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


def checked(net: Net, drop: list[int] | None = None) -> Result:
    """Equal on the dummy input, at another batch size and at other image sizes."""
    dropped = {f"{n}.weight": list(drop or at) for n, at in (("a", A), ("b", B)) if n in net.names}
    return check_equal(net, image(2, 6, 6), mask_indices(net, dropped), [image(1, 8, 6), image(3, 8, 10)])


def kept(result: Result) -> tuple[int, int]:
    """Channels that the first layer makes, and that the last one reads."""
    return result.shape("a.weight")[0], result.shape("t.weight")[1]


def unpacked_shuffle(groups: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def shuffle(a: torch.Tensor) -> torch.Tensor:
        B, C, H, W = a.shape
        return a.view(B, groups, C // groups, H, W).transpose(1, 2).reshape(B, C, H, W)

    return shuffle


# -- moves that know no size ------------------------------------------------------------------------------------------

MOVES = {
    "permute there and back": lambda a: a.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    "torch.permute": lambda a: torch.permute(torch.permute(a, (0, 2, 3, 1)), dims=(0, 3, 1, 2)),
    "permute of a list, negative": lambda a: a.permute([0, 2, -1, 1]).permute(0, -1, 1, 2),
    "movedim": lambda a: a.movedim(1, -1).moveaxis(-1, 1),
    "transpose": lambda a: torch.transpose(a, 1, 3).transpose(-1, -3),
    "swapaxes and swapdims": lambda a: torch.swapdims(a.swapaxes(1, 2), 2, 1),
    "mT": lambda a: a.mT.mT,
    "transpose_": lambda a: a.transpose_(1, 2).transpose_(1, 2),
    "unsqueeze and squeeze": lambda a: a.unsqueeze(2).squeeze(2),
    "squeeze of all": lambda a: a[:, :, None, ..., None].squeeze(),
    "unsqueeze_": lambda a: a.unsqueeze_(-1).squeeze_(-1),
    "None and Ellipsis": lambda a: a[None, ..., None][0][..., 0],
    "flip of positions": lambda a: a.flip(2, 3),
    "flip of channels": lambda a: a.flip(1),
    "fliplr": lambda a: torch.fliplr(a),
    "roll of positions": lambda a: torch.roll(a, (1, 2), (2, 3)),
    "rot90": lambda a: a.rot90(1, (2, 3)),
    "rows and columns sliced": lambda a: a[:, :, 1:, ::2],
    "negative slices": lambda a: a[..., -5:-1, :-1],
    "rows by a list": lambda a: a[:, :, [1, 0, 2]],
    "one image kept as an axis": lambda a: a[:1],
    "flatten and unflatten by the shape": lambda a: a.flatten(2).unflatten(2, a.shape[2:]),
    "flatten, view of the shape": lambda a: torch.flatten(a, 2).view(a.shape),
    "view of sizes": lambda a: a.view(a.size(0), a.size(1), -1).view(a.size(0), a.size(1), a.size(2), a.size(3)),
    "view of a Size": lambda a: a.reshape((*a.shape[:2], -1)).reshape(a.shape),
    "view with -1 for the channels": lambda a: a.view(a.shape[0], -1, *a.shape[2:]),
    "view_as": lambda a: a.flatten(2).view_as(a),
    "reshape_as": lambda a: a.permute(0, 1, 3, 2).flatten(2).reshape_as(a),
    "tokens and back": lambda a: a.flatten(2).transpose(1, 2).mT.reshape(a.shape),
    "expand": lambda a: a.unsqueeze(0).expand(2, -1, -1, -1, -1)[1],
    "expand by the shape": lambda a: a.mean(2, keepdim=True).expand(a.shape),
    "expand_as": lambda a: a.mean((2, 3), keepdim=True).expand_as(a),
    "broadcast_to": lambda a: torch.broadcast_to(a.mean(3, keepdim=True), a.shape),
    "repeat of rows": lambda a: a.repeat(1, 1, 2, 1),
    "tile of columns": lambda a: a.tile(2),
    "repeat_interleave of columns": lambda a: a.repeat_interleave(2, 3),
    "unfold of rows": lambda a: a.unfold(2, 2, 2).mean(-1),
    "diagonal": lambda a: a.diagonal(dim1=2, dim2=3)[..., None].repeat(1, 1, 1, 3),
    "contiguous": lambda a: a.mT.contiguous().mT,
    "unbind of rows, stacked again": lambda a: torch.stack(a[:, :, :4].unbind(2), 2),
    "select of a row": lambda a: torch.stack([a.select(2, i) for i in (0, 1, -1)], 2),
    "split of rows": lambda a: torch.cat(a[:, :, :6].split(2, 2)[::-1], 2),
    "chunk of images": lambda a: torch.cat(a.repeat(2, 1, 1, 1).chunk(2, 0), 3),
    "atleast_3d": lambda a: torch.atleast_3d(a),
    "a dict and a list between": lambda a: {"x": [a, a.shape]}["x"][0],
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_take_masked_channels_along(name: str) -> None:
    assert kept(checked(Net(MOVES[name]))) == (5, 5)


def test_what_is_filled_in_makes_constants_differ_from_place_to_place() -> None:
    assert kept(checked(Net(lambda a: a.tril()))) == (7, 7)
    assert kept(checked(Net(lambda a: torch.triu(a.relu(), 1)))) == (6, 6)


# -- parts that the code counts itself --------------------------------------------------------------------------------

# Left of the halves [0:4] and [4:8] are 2 and 3 channels; equal parts take one more back.
EVEN = {
    "chunk": lambda a: torch.cat(a.chunk(2, 1)[::-1], 1),
    "torch.chunk with dim=": lambda a: torch.cat(torch.chunk(a, chunks=2, dim=-3)[::-1], 1),
    "unsafe_chunk": lambda a: torch.cat(a.unsafe_chunk(2, 1)[::-1], 1),
    "a split by half the width": lambda a: torch.cat(a.split(a.shape[1] // 2, 1)[::-1], 1),
    "torch.split by half the width": lambda a: torch.cat(torch.split(a, a.size(1) // 2, dim=1)[::-1], 1),
    "unflatten(1, (2, -1))": lambda a: a.unflatten(1, (2, -1)).flip(1).flatten(1, 2),
    "view(B, 2, C // 2)": lambda a: a.view(a.shape[0], 2, a.shape[1] // 2, *a.shape[2:]).flip(1).flatten(1, 2),
    "unbind of the parts": lambda a: torch.cat(a.unflatten(1, (2, -1)).unbind(1)[::-1], 1),
    "nn.Unflatten": lambda s, a: s.parts(a).flatten(1, 2),
    "heads (B, N, h, d)": lambda a: (a.flatten(2).mT.unflatten(2, (2, -1)) * 2).flatten(2).mT.reshape(a.shape),
}


@pytest.mark.parametrize("name", EVEN)
def test_equal_parts_keep_equal_counts_at_positions_of_their_own(name: str) -> None:
    net = Net(EVEN[name], parts=nn.Unflatten(1, (2, 4)))
    assert kept(checked(net)) == (6, 6)


@pytest.mark.parametrize("name", EVEN)
def test_equal_parts_that_lose_as_many_lose_them_all(name: str) -> None:
    net = Net(EVEN[name], parts=nn.Unflatten(1, (2, 4)))
    assert kept(checked(net, [0, 3, 5, 6])) == (4, 4)


def test_parts_of_shapes_follow_what_is_left_of_each() -> None:
    halves = Net(lambda a: torch.cat([a[:, a.shape[1] // 2 :], a[:, : a.shape[1] // 2]], 1))
    # The code divides what is left in two: 2 and 3 channels would be 2 and 3, but of 4 left they are 2 and 2.
    assert kept(checked(halves, [0, 3, 5, 6])) == (4, 4)


def test_gated_halves_keep_the_same_positions() -> None:
    def gated(a: torch.Tensor) -> torch.Tensor:
        left, right = a.chunk(2, 1)
        return left * torch.sigmoid(right)

    # Where left is 0 (channel 3) its gate is not read; where only a gate is constant, left is.
    assert kept(checked(Net(gated, 4))) == (6, 3)
    assert kept(checked(Net(gated, 4), [1, 2, 5, 6])) == (4, 2)


def test_a_half_that_nobody_reads_goes() -> None:
    result = checked(Net(lambda a: a.chunk(2, 1)[1], 4))
    # The second half keeps 3 channels, the first is there to be as long.
    assert kept(result) == (6, 3)
    assert result.shape("t.weight") == (5, 3, 3, 3)


SHUFFLES = {
    "view, transpose, reshape": lambda s, a: unpacked_shuffle(2)(a),
    "F.channel_shuffle": lambda s, a: F.channel_shuffle(a, 2),
    "torch.channel_shuffle": lambda s, a: torch.channel_shuffle(a, groups=2),
    "native_channel_shuffle": lambda s, a: torch.native_channel_shuffle(a, 2),
    "nn.ChannelShuffle": lambda s, a: s.shuffle(a),
}


@pytest.mark.parametrize("name", SHUFFLES)
@pytest.mark.parametrize(
    ("drop", "expected"),
    [([0, 3, 4, 7], 4), ([1, 5], 6), ([0, 3, 4, 6], 4), ([0, 3, 5], 6), ([0, 1, 2, 3], 4)],
    ids=["the same positions", "one each", "other positions", "uneven", "a whole group"],
)
def test_shuffled_groups_lose_equal_counts_at_any_positions(name: str, drop: list[int], expected: int) -> None:
    net = Net(SHUFFLES[name], shuffle=nn.ChannelShuffle(2))
    result = checked(net, drop)
    if name.startswith("view") and drop == [0, 1, 2, 3]:
        expected = 8  # its view wants two groups
    assert kept(result) == (expected, expected)


# -- sizes and positions that the code holds --------------------------------------------------------------------------

LITERAL = {
    "view(-1, 8, H, W)": lambda a: a.view(-1, 8, *a.shape[2:]),
    "reshape(B, 8, -1)": lambda a: a.reshape(a.shape[0], 8, -1).view(a.shape[0], 8, *a.shape[2:]),
    "expand(B, 8, H, W)": lambda a: a.mean(2, keepdim=True).expand(a.shape[0], 8, *a.shape[2:]),
    "unflatten(1, (2, 4))": lambda a: a.unflatten(1, (2, 4)).flatten(1, 2),
    "split(4)": lambda a: torch.cat(a.split(4, 1)[::-1], 1),
    "split([3, 5])": lambda a: torch.cat(a.split([3, 5], 1)[::-1], 1),
    "torch.split(dim=)": lambda a: torch.cat(torch.split(a, 4, dim=1)[::-1], 1),
    "split_with_sizes": lambda a: torch.cat(a.split_with_sizes([3, 5], 1)[::-1], 1),
    "x[:, 4:] and x[:, :4]": lambda a: torch.cat([a[:, 4:], a[:, :4]], 1),
    "x[:, ::2] and x[:, 1::2]": lambda a: torch.cat([a[:, ::2], a[:, 1::2]], 1),
    "narrow": lambda a: torch.cat([a.narrow(1, 4, 4), torch.narrow(a, 1, 0, 4)], 1),
    "chunk(3)": lambda a: torch.cat(a.chunk(3, 1)[::-1], 1),
    "tensor_split(3)": lambda a: torch.cat(a.tensor_split(3, 1)[::-1], 1),
    "unbind of channels": lambda a: torch.stack(a.unbind(1)[::-1], 1),
    "a list of channels": lambda a: a[:, [7, 6, 5, 4, 3, 2, 1, 0]],
    "a mask that the model holds": lambda s, a: a[:, s.mask],
    "an index computed from the input": lambda a: a[:, a.mean((0, 2, 3)).argsort()],
    "gather": lambda a: a.gather(1, a.argsort(1)),
    "take_along_dim": lambda a: torch.take_along_dim(a, a.argsort(1), 1),
    "as_strided": lambda a: a.as_strided(a.shape, a.stride()),
}


@pytest.mark.parametrize("name", LITERAL)
def test_sizes_that_the_code_holds_keep_every_channel_and_say_why(name: str) -> None:
    result = checked(Net(LITERAL[name], mask=torch.ones(8, dtype=torch.bool)))
    assert kept(result) == (8, 8)
    reasons = [s for s in result.plan.report.stays if s.name.startswith("a.")]
    assert [s.indices for s in reasons if s.name == "a.weight"], "no reason is given for the masked filters that stay"
    assert all(s.why for s in reasons)


# Channels that are left of 8 once the code takes some of them.
TAKEN = {
    "x[:, :4]": (lambda a: a[:, :4], 4, None),
    "x[:, 1:3]": (lambda a: a[:, 1:3], 2, None),
    "x[:, -2:]": (lambda a: a[:, -2:], 2, (2, 2)),
    "x[:, 0]": (lambda a: a[:, 0][:, None], 1, None),
    "x[:, -1]": (lambda a: a[:, -1][:, None], 1, (1, 1)),
    "x[:, 4]": (lambda a: a[:, 4:5] + a[:, 4][:, None], 1, None),
    "select": (lambda a: a.select(1, -1).unsqueeze(1), 1, (1, 1)),
    "narrow": (lambda a: a.narrow(1, 6, 2), 2, None),
    "split, one part dropped": (lambda a: a.split([3, 5], 1)[1], 5, None),
    "every other": (lambda a: a[:, ::2], 4, None),
    "a list": (lambda a: a[:, [1, 2, 4, 6]], 4, None),
    "a held index": (lambda s, a: a[:, s.order], 3, None),
    "a held mask": (lambda s, a: a[:, s.mask], 4, None),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_the_code_takes_is_what_it_gets(name: str) -> None:
    body, width, expected = TAKEN[name]
    held = {"order": torch.tensor([6, 1, 1]), "mask": torch.tensor([0, 1, 1, 0, 1, 1, 0, 0]).bool()}
    result = checked(Net(body, width, **held))
    if expected is not None:
        assert kept(result) == expected


# -- other widths -----------------------------------------------------------------------------------------------------

WIDE = {
    "repeat of channels": (lambda a: a.repeat(1, 2, 1, 1), 16, (5, 10)),
    "tile of channels": (lambda a: torch.tile(a, (1, 2, 1, 1)), 16, (5, 10)),
    "repeat_interleave of channels": (lambda a: a.repeat_interleave(2, 1), 16, (5, 10)),
    "torch.repeat_interleave": (lambda a: torch.repeat_interleave(a, 2, dim=1), 16, (5, 10)),
    "pixel_unshuffle": (lambda a: F.pixel_unshuffle(a, 2), 32, (5, 20)),
    "torch.pixel_unshuffle": (lambda a: torch.pixel_unshuffle(a, downscale_factor=2), 32, (5, 20)),
    "nn.PixelUnshuffle": (lambda s, a: s.unshuffle(a), 32, (5, 20)),
    "slices joined to channels": (
        lambda a: torch.cat([a[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1),
        32,
        (5, 20),
    ),
    "space to depth by views": (
        lambda a: a.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 3, 5, 1, 2, 4).flatten(1, 3),
        32,
        (5, 20),
    ),
    "F.unfold of windows side by side": (
        lambda a: F.unfold(a, 2, stride=2).unflatten(2, (a.shape[2] // 2, -1)),
        32,
        (5, 20),
    ),
    "nn.Unfold": (lambda s, a: s.windows(a).unflatten(2, (a.shape[2] // 2, -1)), 32, (5, 20)),
}


@pytest.mark.parametrize("name", WIDE)
def test_copies_of_a_channel_go_with_it(name: str) -> None:
    body, width, expected = WIDE[name]
    net = Net(body, width, unshuffle=nn.PixelUnshuffle(2), windows=nn.Unfold(2, stride=2))
    assert kept(checked(net)) == expected


@pytest.mark.parametrize(
    "body",
    [
        lambda a: F.fold(F.unfold(a, 3, padding=1), a.shape[-2:], 3, padding=1),
        lambda a: nn.Fold(a.shape[-2:], 3, padding=1)(F.unfold(a, 3, padding=1)),
        lambda a: torch.stack([F.fold(F.unfold(each, 2, stride=2), a.shape[-2:], 2, stride=2) for each in a]),
    ],
    ids=["F.fold", "nn.Fold", "one by one"],
)
def test_fold_adds_up_windows(body: Callable[..., torch.Tensor]) -> None:
    """What constants add up to depends on how many windows meet; zeros stay zeros."""
    net = Net(body)
    with torch.no_grad():
        net.a.bias[:3] = 0
    assert kept(checked(net, [0, 1, 2])) == (5, 5)
    with torch.no_grad():
        net.a.bias[:2] = 1.0
    assert kept(checked(net, [0, 1, 2])) == (7, 7)


@pytest.mark.parametrize(
    "body",
    [lambda s, a: F.pixel_shuffle(a, 2), lambda s, a: torch.pixel_shuffle(a, 2), lambda s, a: s.shuffle(a)],
    ids=["F.pixel_shuffle", "torch.pixel_shuffle", "nn.PixelShuffle"],
)
def test_pixel_shuffle_loses_whole_blocks(body: Callable[..., torch.Tensor]) -> None:
    # Channels 0 to 3 become one channel, 4 to 7 another.
    net = Net(body, 2, shuffle=nn.PixelShuffle(2))
    with torch.no_grad():
        net.a.bias[:4] = 0.25
    assert kept(checked(net, [0, 1, 2, 3])) == (4, 1)
    assert kept(checked(net, [0, 1, 2, 5])) == (8, 2)


# -- into linear layers -----------------------------------------------------------------------------------------------

POOL = 2
LINEAR = {
    "flatten(1)": (lambda a: a.flatten(1), 32, (5, 20)),
    "torch.flatten": (lambda a: torch.flatten(a, 1), 32, (5, 20)),
    "nn.Flatten": (lambda s, a: s.flat(a), 32, (5, 20)),
    "view(B, -1)": (lambda a: a.view(a.size(0), -1), 32, (5, 20)),
    "reshape(len, -1)": (lambda a: a.reshape(len(a), -1), 32, (5, 20)),
    "channels last, flattened": (lambda a: a.permute(0, 2, 3, 1).flatten(1), 32, (5, 20)),
    "view(-1, 32)": (lambda a: a.view(-1, 32), 32, (8, 32)),
    "reshape(-1, 32)": (lambda a: torch.reshape(a, (-1, 32)), 32, (8, 32)),
    "tokens": (lambda a: a.flatten(2).transpose(1, 2), 8, (5, 5)),
    "channels last": (lambda a: a.permute(0, 2, 3, 1), 8, (5, 5)),
    "one position": (lambda a: a[:, :, 0, 1], 8, (5, 5)),
    "squeezed": (lambda a: F.adaptive_avg_pool2d(a, 1).squeeze(-1).squeeze(-1), 8, (5, 5)),
    "squeezed at once": (lambda a: F.adaptive_avg_pool2d(a, 1).squeeze((2, 3)), 8, (5, 5)),
    "rows as features": (lambda a: a.movedim(2, 1).flatten(2), 16, (5, 10)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_flattened_positions_take_their_channel_along(name: str) -> None:
    body, width, expected = LINEAR[name]
    names = list(inspect.signature(body).parameters)

    def pooled(s: Net, a: torch.Tensor) -> torch.Tensor:
        given = {"s": s, "a": F.adaptive_avg_pool2d(a, POOL)}
        return body(**{n: given[n] for n in names})

    result = checked(Net(pooled, nn.Linear(width, 5), flat=nn.Flatten()))
    assert kept(result) == expected


def patches_and_back(a: torch.Tensor) -> torch.Tensor:
    """Patches of 2 x 2, as in MobileViT: rows of all samples and channels are one axis in between."""
    b, c, h, w = a.shape
    a = a.reshape(b * c * (h // 2), 2, w // 2, 2).transpose(1, 2).reshape(b, c, (h // 2) * (w // 2), 4)
    a = a.reshape(b * c * (h // 2), w // 2, 2, 2).transpose(1, 2)
    return a.reshape(b, c, h, w)


def test_rows_of_all_samples_and_channels_lose_channels() -> None:
    """At other sizes there are as many rows in all only by chance, which says nothing of the channels."""
    net = Net(patches_and_back)
    masks = mask_indices(net, {"a.weight": list(A), "a.bias": list(A)})
    result = check_equal(net, image(2, 8, 8), masks, [image(1, 12, 8), image(4, 4, 8), image(3, 8, 12)])
    assert kept(result) == (5, 5)


def test_single_masked_columns_behind_a_flatten_free_no_channel_alone() -> None:
    net = Net(lambda a: F.adaptive_avg_pool2d(a, 2).flatten(1), nn.Linear(32, 5))
    # All four columns of channel 1, and one of channel 2.
    masks = mask_indices(net, {"t.weight": [4, 5, 6, 7, 8]}, axis=1)
    result = check_equal(net, image(2, 6, 6), masks, [image(3, 8, 10)])
    assert kept(result) == (7, 28)


# -- writing in place -------------------------------------------------------------------------------------------------


def written(*lines: str) -> Callable[..., torch.Tensor]:
    """A body that runs these lines and returns ``a``."""
    names = "a, b" if any("b[" in line or "b)" in line or "= b" in line for line in lines) else "a"
    space: dict[str, Any] = {"torch": torch}
    exec("\n    ".join((f"def body({names}):", "a = a + 0", *lines, "return a")), space)
    body: Callable[..., torch.Tensor] = space["body"]
    return body


# The lines, and the channels that stay of a (None where views of memory are not followed: then all of it may stay).
WRITTEN = {
    "a[:, 0] = 1": (["a[:, 0] = 1"], 6),
    "a[:, 0] = 0": (["a[:, 0] = 0"], 6),
    "a[:, 1:3] = 0": (["a[:, 1:3] = 0"], None),
    "a[:, 3:] = 0.5": (["a[:, 3:] = 0.5"], None),
    "a[:, [1, 2]] = 0": (["a[:, [1, 2]] = 0"], None),
    "a[..., 0] = 0": (["a[..., 0] = 0"], 7),
    "a[:, :, 0, 0] = 5": (["a[:, :, 0, 0] = 5.0"], 8),
    "a[:, :, ::2] = 0": (["a[:, :, ::2] = 0"], 7),
    "a[0] = 0": (["a[0] = 0"], 7),
    "a[:] = a.relu()": (["a[:] = a.relu()"], 5),
    "a[:] = 3": (["a[:] = 3"], 1),
    "a[a > 0] = 0": (["a[a > 0] = 0"], 5),
    "a[a < -0.1] = scalar tensor": (["a[a < -0.1] = torch.full((), 0.3, dtype=a.dtype)"], 5),
    "a[a > 0] *= 2": (["a[a > 0] *= 2"], None),
    "a[:] = b": (["a[:] = b"], 5),
    "a[:, :4] = b[:, :4]": (["a[:, :4] = b[:, :4]"], None),
    "a[:, :4] += b[:, :4]": (["a[:, :4] += b[:, :4]"], None),
    "a[:, :4] += 1": (["a[:, :4] += 1"], None),
    "a[:, ::2] *= 2": (["a[:, ::2] *= 2"], None),
    "a[:, :4].relu_()": (["a[:, :4].relu_()"], None),
    "a.view(...).add_": (["v = a.view(a.shape)", "v.add_(1)"], None),
    "a.transpose(...).add_": (["a.transpose(1, 2).add_(1)"], None),
    "both chunks changed": (["p, q = a.chunk(2, 1)", "p.mul_(2)", "q.relu_()"], None),
    "detach().relu_()": (["a.detach().relu_()"], None),
    "a.data.mul_": (["a.data.mul_(2)"], None),
    "an old view read": (["v = a[:, :4]", "a.relu_()", "a = torch.cat([v, a[:, 4:]], 1)"], None),
    "an old value read": (["old = a.relu()", "a.mul_(2)", "a = a + old"], 5),
    "a view written, the whole read": (["v = a[:, 2:6]", "v[:, 1] = 7", "a = a * 1"], None),
    "a[:, :4].copy_(b[:, 4:])": (["a[:, :4].copy_(b[:, 4:])"], None),
    "parts shifted into zeros": (
        ["o = torch.zeros_like(a)", "o[:, :2] = b[:, :2]", "o[:, 2:] = a[:, 2:]", "a = o"],
        None,
    ),
    "parts into an empty tensor": (
        [
            "c = a.shape[1]",
            "o = a.new_empty(len(a), 2 * c, *a.shape[2:])",
            "o[:, :c] = a",
            "o[:, c:] = b",
            "a = o[:, :c]",
        ],
        None,
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_writing_in_place_stays_right(name: str) -> None:
    lines, expected = WRITTEN[name]
    result = checked(Net(written(*lines)))
    if expected is not None:
        assert result.shape("a.weight")[0] == expected


# -- other masks ------------------------------------------------------------------------------------------------------


class Shift(nn.Module):
    """Parts of the channels moved by one row (as temporal shift does along time), between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.t = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        fold = x.shape[1] // 4
        out = torch.zeros_like(x)
        out[:, :fold, :-1] = x[:, :fold, 1:]
        out[:, fold : 2 * fold, 1:] = x[:, fold : 2 * fold, :-1]
        out[:, 2 * fold :] = x[:, 2 * fold :]
        return self.t(self.b(out).relu())


class Places(nn.Module):
    """A table added in place to another view of all that a layer gives, which is read afterwards or not."""

    def __init__(self, turned: bool, read: bool) -> None:
        super().__init__()
        self.a, self.t = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)
        self.turned, self.read = turned, read
        self.table = nn.Parameter(torch.zeros((1, 1, 8) if turned else (1, 8, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        x = y.flatten(2).mT if self.turned else y.flatten(2)
        if not self.read:
            del y
        x += self.table
        x = x.tanh().mT if self.turned else x.tanh()
        return self.t(y + x.view(y.shape) if self.read else x.unsqueeze(-1))


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_writing_in_place_into_another_view_of_all_of_a_tensor(turned: bool, read: bool) -> None:
    net = randomize(Places(turned, read))
    masks = mask_indices(net, {"a.weight": [1, 6], "a.bias": [1, 6]})
    masks |= mask_indices(net, {"table": [1, 6]}, axis=2 if turned else 1)
    result = check_equal(net, image(2, 6, 6), masks, [image(3, 7, 8)])
    assert result.shape("a.weight")[0] == 6 and result.shape("t.weight")[1] == 6


class Attention(nn.Module):
    """Heads by view(B, N, 3, h, d) and back, over the positions of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.qkv, self.b, self.t = nn.Conv2d(3, 8, 3), nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).flatten(2).mT
        B, N, C = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, 2, -1).permute(2, 0, 3, 1, 4)
        y = ((q @ k.mT) * 0.5).softmax(-1) @ v
        return self.t(x + self.b(y.transpose(1, 2).reshape(B, N, -1)))


@pytest.mark.parametrize("kind", ["filters", "columns", "fine", "whole", "mixed"])
@pytest.mark.parametrize("build", [Shift, Attention])
def test_nets_of_views_are_equal_under_all_kinds_of_masks(build: type[nn.Module], kind: str) -> None:
    for seed in range(2):
        net = randomize(build(), seed)
        check_equal(net, image(2, 6, 6), random_masks(net, seed, kind), [image(3, 7, 8)])


@pytest.mark.parametrize("kind", ["columns", "fine", "mixed"])
@pytest.mark.parametrize(
    "body",
    [EVEN["chunk"], EVEN["heads (B, N, h, d)"], unpacked_shuffle(4), LITERAL["split([3, 5])"]],
    ids=["chunk", "heads", "shuffle", "split"],
)
def test_moves_are_equal_under_other_kinds_of_masks(body: Callable[..., torch.Tensor], kind: str) -> None:
    net = Net(body)
    for seed in range(2):
        check_equal(net, image(2, 6, 6), random_masks(net, seed, kind), [image(3, 8, 10)])


def test_a_shift_between_aligned_masks_shrinks() -> None:
    net = randomize(Shift())
    masks = mask_indices(net, {"a.weight": [0, 2, 4, 5], "a.bias": [0, 2, 4, 5], "b.weight": [1, 6]})
    result = check_equal(net, image(2, 6, 6), masks, [image(3, 7, 8)])
    # One of each quarter, for the code divides by four again what is left.
    assert result.shape("a.weight")[0] == 4
    assert result.shape("b.weight")[:2] == (6, 4)


class Weighted(nn.Module):
    """As in a mean over the tokens that a mask shows: weights of tokens are spread over the channels."""

    def __init__(self, spread: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(4, 8), nn.Linear(8, 3)
        self.spread = spread

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, weights = self.a(x), x.sum(2, keepdim=True).sigmoid()
        spread = weights.expand(-1, -1, 8) if self.spread is None else self.spread(weights, h)
        result: torch.Tensor = self.o((h * spread).sum(1))
        return result


SPREADS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None] = {
    "a number": None,
    "the size of another tensor": lambda w, h: w.expand(h.size()),
    "a new axis": lambda w, h: w[:, None, :, 0].expand(-1, h.shape[2], -1).transpose(1, 2),
    "broadcast_to": lambda w, h: torch.broadcast_to(w, h.shape),
    "repeat": lambda w, h: w.repeat(1, 1, h.shape[2]),
    "repeat of a tuple": lambda w, h: w.repeat((1, 1, h.shape[2])),
    "tile of the last axis": lambda w, h: w.tile(h.shape[2]),
    "torch.tile": lambda w, h: torch.tile(w, (1, 1, h.shape[-1])),
    "repeat_interleave": lambda w, h: w.repeat_interleave(h.shape[-1], dim=-1),
}


class Repeated(Weighted):
    """The number of copies is in the code."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, weights = self.a(x), x.sum(2, keepdim=True).sigmoid()
        h = h * weights.repeat(1, 1, 8)
        h = h * weights.repeat_interleave(8, dim=2)
        result: torch.Tensor = self.o(h.sum(1))
        return result


def test_numbers_of_copies_in_the_code_are_repaired() -> None:
    model = randomize(Repeated(None))
    masks = mask_indices(model, {"a.weight": (0, 2, 5), "a.bias": (0, 2, 5)})
    result = check_equal(model, torch.randn(2, 5, 4), masks, [torch.randn(3, 7, 4)])
    assert result.shape("o.weight") == (3, 5)


@pytest.mark.parametrize("name", SPREADS)
def test_as_many_copies_as_are_read(name: str) -> None:
    model = randomize(Weighted(SPREADS[name]))
    masks = mask_indices(model, {"a.weight": (0, 2, 5), "a.bias": (0, 2, 5)})
    result = check_equal(model, torch.randn(2, 5, 4), masks, [torch.randn(3, 7, 4)])
    assert result.shape("o.weight") == (3, 5)


def test_copies_that_are_read_alike_stay() -> None:
    model = randomize(Weighted(None))
    masks = mask_indices(model, {"a.weight": (0, 2, 5)})  # the bias is a constant times a weight
    result = check_equal(model, torch.randn(2, 5, 4), masks, [torch.randn(3, 7, 4)])
    assert result.shape("o.weight") == (3, 8)
