"""Layers with a pattern and named lengths, as einops has them, lose whole parts and entries of all parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from speedup.testing import check_equal, randomize


class Rearrange(nn.Module):
    """The layer of einops for one pattern, of which it has the attributes."""

    def __init__(self, pattern: str, **axes_lengths: int) -> None:
        super().__init__()
        assert pattern in ("b n (h d) -> b h n d", "b ... (h d) -> b h ... d")
        self.pattern, self.axes_lengths = pattern, axes_lengths
        self._axes_lengths = tuple(axes_lengths.items())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lengths = dict(self._axes_lengths)
        return x.unflatten(-1, (lengths.get("h", -1), lengths.get("d", -1))).transpose(1, 2)


def layer(library: str) -> Any:
    if library == "alike":
        return Rearrange
    return pytest.importorskip("einops.layers.torch", reason="einops is no dependency: pip install einops").Rearrange


class Heads(nn.Module):
    def __init__(self, split: nn.Module) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, 24) for _ in range(3))
        self.split, self.out = split, nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        mixed = (q @ k.mT).softmax(-1) @ v
        made: torch.Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return made


@pytest.mark.parametrize("lengths", [{"h": 4}, {"d": 6}, {"h": 4, "d": 6}], ids=["h", "d", "h and d"])
@pytest.mark.parametrize("pattern", ["b n (h d) -> b h n d", "b ... (h d) -> b h ... d"])
@pytest.mark.parametrize("library", ["alike", "einops"])
@pytest.mark.parametrize(("gone", "left"), [((1, slice(None)), 18), ((slice(None), [0, 3]), 16)], ids=["head", "dims"])
def test_named_lengths_are_those_of_what_is_left(
    lengths: dict[str, int], gone: Any, left: int, library: str, pattern: str
) -> None:
    model = randomize(Heads(layer(library)(pattern, **lengths)))
    keep = torch.ones(4, 6)
    keep[gone] = 0
    keep = keep.flatten()
    masks = {name: {"weight": keep[:, None].expand(24, 5), "bias": keep} for name in "qkv"}
    result = check_equal(model, torch.randn(2, 7, 5), masks, [torch.randn(3, 4, 5)])
    assert [result.shape(f"{name}.weight")[0] for name in "qkv"] == [left] * 3
    assert result.shape("out.weight") == (3, left)
