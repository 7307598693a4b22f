"""Norms without weight and shift that another layer scales and shifts for each sample: diffusion transformers, FiLM."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import check_equal, mask_indices, randomize

GONE = [1, 4, 5, 9, 10]


class Modulated(nn.Module):
    """A stream of 12 channels, normalised, scaled and shifted by what a second input says, and read."""

    def __init__(self, norm: nn.Module, join: Callable[..., torch.Tensor], image: bool = False) -> None:
        super().__init__()
        self.a: nn.Module = nn.Conv2d(3, 12, 3, padding=1) if image else nn.Linear(3, 12)
        self.norm, self.join, self.image = norm, join, image
        self.says = nn.Linear(4, 24)
        self.t: nn.Module = nn.Conv2d(12, 5, 3) if image else nn.Linear(12, 5)
        randomize(self)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        said = self.says(condition)
        said = said[:, :, None, None] if self.image else said.unsqueeze(1)
        scale, shift = said.chunk(2, dim=1 if self.image else -1)
        return self.t(self.join(self.norm(self.a(x)), scale, shift))


def inputs(batch: int, *size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    shape = (batch, 3, *size) if len(size) > 1 else (batch, *size, 3)
    return torch.randn(shape, generator=generator), torch.randn(batch, 4, generator=generator)


def kept(model: Modulated, biases: bool = True) -> tuple[int, int, int]:
    """Channels in front, of what is said, and behind."""
    both = [*GONE, *(12 + i for i in GONE)]
    gone = {"a.weight": GONE, "a.bias": GONE, "says.weight": both}
    if biases:
        gone["says.bias"] = both
    size = ((6, 7), (5, 8)) if model.image else ((6,), (7,))
    result = check_equal(model, inputs(2, *size[0]), mask_indices(model, gone), [inputs(3, *size[1])])
    axes = result.shape("a.weight")[0], result.shape("says.weight")[0], result.shape("t.weight")[1]
    assert axes[1] == 2 * axes[0]
    return axes[0], axes[1] // 2, axes[2]


JOINS: dict[str, Callable[..., torch.Tensor]] = {
    "scale and shift": lambda y, scale, shift: y * (1 + scale) + shift,
    "in place": lambda y, scale, shift: y.mul_(scale + 1).add_(shift),
    "addcmul": lambda y, scale, shift: torch.addcmul(shift, y, 1 + scale),
    "minus and divided": lambda y, scale, shift: -(shift - y) / 4,
    "of a sum": lambda y, scale, shift: (y + y) * (1 + scale),
    "and an activation": lambda y, scale, shift: F.gelu(y * (1 + scale) + shift),
    "and a written one": lambda y, scale, shift: torch.sigmoid(y * (1 + scale)) * y,
}


@pytest.mark.parametrize("join", JOINS.values(), ids=JOINS)
def test_channels_go_on_with_one_carrier(join: Callable[..., torch.Tensor]) -> None:
    assert kept(Modulated(nn.LayerNorm(12, elementwise_affine=False), join)) == (8, 8, 8)


def test_an_image_with_one_group_does_as_tokens_do() -> None:
    norm = nn.GroupNorm(1, 12, affine=False)
    assert kept(Modulated(norm, JOINS["and an activation"], image=True)) == (8, 8, 8)


def test_shifts_that_are_no_zeros_are_folded_too() -> None:
    """The unknown and a constant span what goes, as 1 + scale differs: with the constants in the bias one carrier."""
    norm = nn.LayerNorm(12, elementwise_affine=False)
    assert kept(Modulated(norm, JOINS["scale and shift"]), biases=False) == (8, 8, 8)


def test_behind_an_activation_only_what_is_alike_goes() -> None:
    """Every channel has a shift of its own here: no two are alike."""
    norm = nn.LayerNorm(12, elementwise_affine=False)
    assert kept(Modulated(norm, JOINS["and an activation"]), biases=False) == (12, 12, 12)


def test_products_of_two_unknowns_are_not_taken_for_one() -> None:
    """Scale and shift are normalised themselves: channels of both go with one carrier, since all of them are alike."""

    class Both(Modulated):
        def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.a(x))
            return self.t(y * self.norm(self.a(x.flip(1))))

    model = Both(nn.LayerNorm(12, elementwise_affine=False), JOINS["scale and shift"])
    masks = mask_indices(model, {"a.weight": GONE, "a.bias": GONE})
    result = check_equal(model, inputs(2, 6), masks, [inputs(3, 7)])
    assert result.shape("t.weight")[1] == 8


def test_a_gate_of_positions_leaves_constants_one_carrier() -> None:
    """What is constant and alike in front of the gate is alike behind it."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.g, self.t = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 1, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.t(self.a(x) * self.g(x).sigmoid())

    model = randomize(Gated())
    with torch.no_grad():
        model.a.bias[[1, 2, 5]] = 0.75
    result = check_equal(model, inputs(2, 7, 8)[0], mask_indices(model, {"a.weight": [1, 2, 5]}), [inputs(3, 9, 7)[0]])
    assert result.shape("t.weight") == (4, 6, 3, 3)
