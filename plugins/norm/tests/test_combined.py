"""Channels that are no constants but combinations of others at every position: a few that are left count for them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.testing import Masks, check_equal, mask_indices, masked_copy, randomize

GONE = [1, 2, 5]
TOKENS, CHANNELS = 5, 8


class Mixer(nn.Module):
    """As in an MLP-Mixer: what mixes the tokens has a bias for each, which all channels get that are 0 in front."""

    def __init__(self, norms: tuple[nn.Module, ...] = (), blocks: int = 1) -> None:
        super().__init__()
        norms = norms or tuple(nn.LayerNorm(CHANNELS) for _ in range(2 * blocks + 1))
        self.stem, self.norms, self.head = nn.Linear(3, CHANNELS), nn.ModuleList(norms), nn.Linear(CHANNELS, 2)
        self.mix = nn.ModuleList(nn.Linear(TOKENS, 7) for _ in range(blocks))
        self.back = nn.ModuleList(nn.Linear(7, TOKENS) for _ in range(blocks))
        self.up = nn.ModuleList(nn.Linear(CHANNELS, 9) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(9, CHANNELS) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block, (mix, back, up, down) in enumerate(zip(self.mix, self.back, self.up, self.down, strict=True)):
            y = self.norms[2 * block](x).transpose(1, 2)
            x = x + back(F.gelu(mix(y))).transpose(1, 2)
            x = x + down(F.gelu(up(self.norms[2 * block + 1](x))))
        result: torch.Tensor = self.head(self.norms[-1](x))
        return result


def gone(net: Mixer, which: list[int] = GONE) -> Masks:
    """The channels of the stream, and what the norms in front of the mixing of tokens make of them."""
    names = ["stem.weight", "stem.bias"]
    for block in range(len(net.down)):
        names += [f"down.{block}.weight", f"down.{block}.bias"]
        names += [n for n, _ in net.named_parameters() if n.startswith(f"norms.{2 * block}.")]
    return mask_indices(net, dict.fromkeys(names, which))


def tokens(batch: int) -> torch.Tensor:
    return torch.randn(batch, TOKENS, 3, generator=torch.Generator().manual_seed(batch)).double()


@pytest.mark.parametrize("blocks", [1, 3])
def test_one_channel_counts_for_all_that_are_the_same(blocks: int) -> None:
    net = randomize(Mixer(blocks=blocks))
    result = check_equal(net, tokens(2), gone(net), [tokens(3)])
    left = CHANNELS - len(GONE) + 1
    assert result.shape("stem.weight") == (left, 3) and result.shape("head.weight") == (2, left)
    assert {result.shape(f"up.{block}.weight") for block in range(blocks)} == {(9, left)}
    assert {result.shape(f"down.{block}.weight") for block in range(blocks)} == {(left, 9)}


def test_it_stays_where_nobody_else_wants_it() -> None:
    """The columns of all readers are masked: what only the norms count needs no carrier but theirs."""
    net = randomize(Mixer())
    masks = gone(net)
    for name, entry in mask_indices(net, {"up.0.weight": GONE, "head.weight": GONE}, axis=1).items():
        masks[name] = entry
    result = check_equal(net, tokens(2), masks, [tokens(3)])
    assert result.shape("stem.weight") == (CHANNELS - len(GONE) + 1, 3)
    assert "says what channels were that went" in result.plan.explain("stem")


class Written(nn.Module):
    """As people write it, with torch's correction of the deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(CHANNELS)), nn.Parameter(torch.zeros(CHANNELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        away = x - x.mean(-1, keepdim=True)
        return self.gamma * away / (x.std(-1, keepdim=True) + 1e-5) + self.beta


NORMS = {
    "without bias": lambda: nn.LayerNorm(CHANNELS, bias=False),
    "without anything": lambda: nn.LayerNorm(CHANNELS, elementwise_affine=False),
    "written": Written,
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_norms_of_other_forms(norm: Callable[[], nn.Module]) -> None:
    net = randomize(Mixer((nn.LayerNorm(CHANNELS), norm(), norm())))
    result = check_equal(net, tokens(2), gone(net), [tokens(3)])
    assert result.shape("stem.weight") == (CHANNELS - len(GONE) + 1, 3)


def test_two_sets_and_constants() -> None:
    """Channels 1, 2, 5 get what the tokens' biases make; 3 and 4 half of it, by a scale; 6 is a constant everywhere."""

    class Scaled(Mixer):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor([1, 1, 1, 0.5, 0.5, 1, 0, 1]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norms[0](self.stem(x)).transpose(1, 2)
            y = self.stem(x) + self.back[0](F.gelu(self.mix[0](y))).transpose(1, 2) * self.scale
            result: torch.Tensor = self.head(self.norms[2](y))
            return result

    which = [1, 2, 3, 4, 5, 6]
    net = randomize(Scaled())
    masks = mask_indices(net, dict.fromkeys(["stem.weight", "stem.bias", "norms.0.weight", "norms.0.bias"], which))
    result = check_equal(net, tokens(2), masks, [tokens(3)])
    # All are multiples of what 1 is: it stays, and carriers of what the last norm makes of the constant.
    assert result.shape("stem.weight")[0] <= 2 + 1 + 2


class Stem(nn.Module):
    """Tokens behind a BatchNorm: what is masked in front is a constant other than 0, and is joined with 0."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.token = how, nn.Parameter(torch.randn(1, 1, CHANNELS))
        self.conv, self.bn = nn.Conv1d(3, CHANNELS, 1), nn.BatchNorm1d(CHANNELS)
        self.one, self.two, self.head = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(x.transpose(1, 2))).transpose(1, 2)
        if self.how == "padded":
            x = F.pad(x, (0, 0, 0, -x.shape[1] % 4)).reshape(-1, 4, CHANNELS)
        else:
            x = torch.cat((self.token.expand(len(x), -1, -1), x), 1)
        result: torch.Tensor = self.head(self.two(x + torch.relu(self.one(x))))
        return result


@pytest.mark.parametrize("how", ["padded", "with a token"])
@pytest.mark.parametrize("masked", [True, False])
def test_constants_that_meet_zeros(how: str, masked: bool) -> None:
    """Inside they are what the shifts say, beyond the border 0, and the token has numbers of its own."""
    gone = [1, 2, 4, 5, 6]
    net = randomize(Stem(how))
    masks = mask_indices(net, dict.fromkeys(["conv.weight", "one.weight", "one.bias"], gone))
    masks |= mask_indices(net, {"token": gone}, axis=2) if masked else {}
    others = [torch.randn(3, n, 3, generator=torch.Generator().manual_seed(n)).double() for n in (3, 4, 8)]
    result = check_equal(net, tokens(2), masks, others)
    # The norm needs as many as there are unknowns, and what reads it carriers of these, of 1 and of the mean.
    unknowns = 1 if masked or how == "padded" else 2
    assert result.shape("conv.weight")[0] <= CHANNELS - len(gone) + unknowns + 1


def test_what_stayed_goes_on_in_a_later_round() -> None:
    """The channel that says what went stays, whatever is masked then; others go beside it."""
    net = randomize(Mixer()).double().eval()
    first = speedup.plan(net, tokens(2), gone(net)).apply()
    assert first.norms[-1].removed == len(GONE) - 1
    left = CHANNELS - len(GONE) + 1
    masks = mask_indices(first, {"back.0.bias": range(TOKENS), "back.0.weight": range(TOKENS)})
    assert check_equal(first, tokens(2), masks, [tokens(3)]).shape("stem.weight")[0] == left
    for which in ([left - 2, left - 1], [1, left - 1]):
        result = check_equal(first, tokens(2), gone(first, which), [tokens(3)])
        assert result.shape("stem.weight")[0] == left - 1
    second = speedup.plan(first, tokens(2), gone(first, [left - 2, left - 1])).apply()
    assert second.norms[-1].removed == len(GONE)
    third = speedup.plan(second, tokens(2), gone(second, [2, 3])).apply()
    assert torch.allclose(third(tokens(3)), masked_copy(second, gone(second, [2, 3]))(tokens(3)), rtol=1e-10)


def test_saved_copied_and_in_another_type(tmp_path: Path) -> None:
    net = randomize(Mixer()).double().eval()
    masked = masked_copy(net, gone(net))
    small = speedup.plan(net, tokens(2), gone(net)).apply()
    speedup.save(small, tmp_path / "small")
    loaded = speedup.load(randomize(Mixer()).double(), tmp_path / "small").eval()
    for model in (small, loaded, copy.deepcopy(small)):
        assert torch.allclose(model(tokens(3)), masked(tokens(3)), rtol=1e-10)
    half = small.bfloat16()(tokens(3).bfloat16())
    assert torch.allclose(half.double(), masked(tokens(3)), rtol=0.1, atol=0.1)
