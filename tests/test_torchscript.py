"""Models with parts that are compiled by TorchScript: the parts stay as they are, what is around them shrinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import speedup
from speedup import testing

WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "script": torch.jit.script,
    "trace": lambda part: torch.jit.trace(part, torch.randn(2, 8, 5, 5)),
}


class Net(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.compiled: nn.Module = WAYS[way](nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()).eval())
        self.second = nn.Conv2d(8, 6, 1)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.second(self.compiled(self.first(x))).relu())
        return result


def rows(parameter: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(parameter.shape)
    mask[::2] = 0
    return mask


@pytest.mark.parametrize("way", WAYS)
def test_what_is_around_it_shrinks(way: str) -> None:
    model = Net(way).eval()
    masks = {n: {"weight": rows(model.get_submodule(n).weight)} for n in ("first", "second")}  # type: ignore[arg-type]
    result = testing.check_equal(model, torch.randn(2, 3, 7, 7), masks)
    assert result.shape("last.weight") == (2, 3, 1, 1)
    assert result.shape("first.weight") == (8, 3, 3, 3)


def test_what_is_frozen_has_no_training_flag() -> None:
    model = Net("script").eval()
    model.compiled = torch.jit.freeze(model.compiled)
    assert not hasattr(model.compiled, "training")
    x = torch.randn(2, 3, 7, 7)
    wanted, masks = model(x), {"second": {"weight": torch.ones(6, 8, 1, 1)}}
    torch.testing.assert_close(speedup.plan(model, x, masks).apply()(x), wanted)


def test_masks_of_it_are_refused_in_words() -> None:
    model = Net("script").eval()
    masks = {"compiled.0": {"weight": rows(torch.empty(8, 8, 3, 3))}}
    with pytest.raises(speedup.MaskError, match=r"'compiled.0' is compiled \(torch.jit.script"):
        speedup.plan(model, torch.randn(2, 3, 7, 7), masks)


def test_its_zeros_are_no_masks() -> None:
    model = Net("script").eval()
    for name in ("compiled.0", "second"):
        model.get_submodule(name).weight.data[:3] = 0  # type: ignore[index, union-attr]
    model.second.bias.data[:3] = 0
    assert list(speedup.masks.load(model, "zeros").parameters) == ["second.weight", "second.bias"]
