"""Layer norms as people write them: with names of their own, parameters with axes of size 1, and torch's ``std``."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import speedup
from speedup.testing import check_equal, mask_indices, masked_copy, randomize


class Norm(nn.Module):
    """As in many a repository; ``beta`` is a buffer, as where a norm has no shift of its own."""

    def __init__(self, names: tuple[str, ...], shape: tuple[int, ...], axis: int, spread: str) -> None:
        super().__init__()
        self.names, self.axis, self.spread, self.eps = names, axis, spread, 1e-5
        setattr(self, names[0], nn.Parameter(torch.ones(shape)))
        if names[1:] == ("beta",):
            self.register_buffer("beta", torch.zeros(shape))
        elif names[1:]:
            setattr(self, names[1], nn.Parameter(torch.zeros(shape)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(self.axis, keepdim=True)
        one = self.spread.endswith("1")
        if self.spread.startswith("std"):
            deviation = x.std(self.axis, unbiased=one, keepdim=True) + self.eps
        else:
            deviation = (x.var(self.axis, unbiased=one, keepdim=True) + self.eps).sqrt()
        y = (x - mean) / deviation * getattr(self, self.names[0])
        return y + getattr(self, self.names[1]) if self.names[1:] else y


def net(names: tuple[str, ...], shape: tuple[int, ...], axis: int, spread: str) -> nn.Module:
    norm = Norm(names, shape, axis, spread)
    layers = (
        (nn.Conv2d(3, 12, 1), norm, nn.Conv2d(12, 5, 1)) if axis == 1 else (nn.Linear(3, 12), norm, nn.Linear(12, 5))
    )
    return randomize(nn.Sequential(*layers))


@pytest.mark.parametrize("spread", ["var", "var1", "std", "std1"])
@pytest.mark.parametrize(("shape", "axis"), [((12,), -1), ((1, 1, 12), -1), ((12, 1, 1), 1), ((1, 12, 1, 1), 1)])
@pytest.mark.parametrize("names", [("a_2", "b_2"), ("g", "b"), ("gamma",), ("gamma", "beta"), ("weight", "bias")])
def test_written_out_norms_lose_channels(
    names: tuple[str, ...], shape: tuple[int, ...], axis: int, spread: str
) -> None:
    model = net(names, shape, axis, spread)
    x, other = ((2, 3, 4, 5), (3, 3, 2, 6)) if axis == 1 else ((2, 4, 3), (3, 7, 3))
    zeros = mask_indices(model, {"0.weight": (1, 4, 7), "0.bias": (1, 4, 7)})
    result = check_equal(model, torch.randn(x), zeros, [torch.randn(other)])
    assert result.shape("0.weight")[0] == 10  # one channel carries -mean / deviation for all three
    assert result.shape(f"1.{names[0]}") == tuple(10 if s > 1 else 1 for s in shape)
    constants = mask_indices(model, {"0.weight": (1, 4, 7)})
    result = check_equal(model, torch.randn(x), constants, [torch.randn(other)])
    assert result.shape("0.weight")[0] == 11  # and another 1 / deviation

    again = mask_indices(result.model, {"0.weight": (0, 2), "0.bias": (0, 2)})
    last = check_equal(result.model, torch.randn(x), again, [torch.randn(other)])
    assert last.shape("0.weight")[0] < 11


@pytest.mark.parametrize("spread", ["var", "std1"])
def test_it_is_saved_and_loaded(spread: str, tmp_path: object) -> None:
    pytest.importorskip("safetensors")
    model = net(("a_2", "b_2"), (12,), -1, spread).eval()
    masks = mask_indices(model, {"0.weight": (1, 4, 7)})
    x = torch.randn(2, 4, 3)
    masked = masked_copy(model, masks)
    speedup.save(speedup.plan(model, x, masks).apply(copy.deepcopy(model)), f"{tmp_path}/small")
    loaded = speedup.load(net(("a_2", "b_2"), (12,), -1, spread).eval(), f"{tmp_path}/small")
    torch.testing.assert_close(loaded(x), masked(x))


def test_what_scales_and_what_shifts_is_not_told_by_names_alone() -> None:
    """A new norm has 1 and 0 in it, whatever they do."""

    class Odd(Norm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) - self.b + self.b * self.g * 3

    model = nn.Sequential(nn.Linear(3, 12), Odd(("g", "b"), (12,), -1, "var"), nn.Linear(12, 5))
    masks = mask_indices(model, {"0.weight": (1, 4), "0.bias": (1, 4)})
    small = speedup.plan(model.eval(), torch.randn(2, 4, 3), masks).apply(copy.deepcopy(model))
    with torch.no_grad():
        for each in (model, small):
            each[1].b += 1.0
    x = torch.randn(3, 3)
    torch.testing.assert_close(small(x), masked_copy(model, masks)(x))


@pytest.mark.parametrize(
    ("spread", "eps"), [("var", 1e-6), ("var", 1e-5), ("std", 1e-5), ("std", 1e-6), ("var1", 1e-8)]
)
def test_an_eps_in_the_code_is_told_apart(spread: str, eps: float) -> None:
    """Of numbers around 0.05, std + 1e-5 is sqrt(var + 1e-6)."""

    class Hidden(Norm):
        @property
        def eps(self) -> float:
            return eps

        @eps.setter
        def eps(self, value: float) -> None:
            pass

    model = randomize(nn.Sequential(nn.Linear(3, 12), Hidden(("g", "b"), (12,), -1, spread), nn.Linear(12, 5)))
    masks = mask_indices(model, {"0.weight": (1, 4, 7), "0.bias": (1, 4, 7)})
    small = [torch.randn(2, 4, 3) * size for size in (1e-3, 1e-2, 1.0)]
    assert check_equal(model, small[0], masks, small[1:]).shape("0.weight")[0] == 10


def test_it_is_recognised_without_contents() -> None:
    """What a removed channel would give is made of numbers that are not there, so all stays, but not for a barrier."""
    model = net(("g", "b"), (12,), -1, "var").to("meta")
    masks = {"0.weight": torch.ones(12, 3), "0.bias": torch.ones(12)}
    for mask in masks.values():
        mask[[1, 4, 7]] = 0
    plan = speedup.plan(model, torch.zeros(2, 4, 3), masks)
    assert not plan.report.barriers and "were 1.g and 1.b not on the meta device" in plan.explain("0")


class Either(nn.LayerNorm):
    """Over the channels of images and of tokens alike, as in the SegFormer of segmentation_models_pytorch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 4:
            return nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        n, c, h, w = x.shape
        x = x.view(n, c, -1).transpose(1, 2)
        x = nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.transpose(1, 2).view(n, c, h, w)


@pytest.mark.parametrize("images", [False, True])
def test_a_norm_that_takes_its_channels_from_either_axis(images: bool) -> None:
    layers = (nn.Conv2d(3, 12, 1), nn.Conv2d(12, 5, 1)) if images else (nn.Linear(3, 12), nn.Linear(12, 5))
    model = randomize(nn.Sequential(layers[0], Either(12), layers[1]))
    masks = mask_indices(model, {f"{m}.{p}": [1, 4, 7] for m in "01" for p in ("weight", "bias")})
    inputs, others = (
        (torch.randn(2, 3, 4, 4), torch.randn(1, 3, 5, 6)) if images else (torch.randn(2, 3), torch.randn(4, 3))
    )
    result = check_equal(model, inputs, masks, [others])
    assert result.shape("0.weight")[0] < 12 and result.shape("2.weight")[1] < 12
