"""Convolutions whose kernel the forward computes: a constant entry of it stands for every place of the window."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import speedup
from speedup import testing


class OfVector(nn.Module):
    """A depthwise kernel with one number per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.images = nn.Conv2d(3, 8, 1)
        self.kernel = nn.Linear(4, 8)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        kernel = self.kernel(z).view(8, 1, 1, 1).expand(8, 1, 3, 3)
        result: Tensor = self.last(F.conv2d(self.images(x), kernel, groups=8))
        return result


class OfImage(OfVector):
    """As in a tracker: what is looked for is the kernel. The constant that comes out depends on its size."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Conv2d(3, 8, 3)  # type: ignore[assignment]

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        kernel = self.kernel(z)[:1].transpose(0, 1)
        result: Tensor = self.last(F.conv2d(self.images(x), kernel, groups=kernel.shape[0]))
        return result


DROPPED = {"images.weight": (0, 3, 6), "kernel.weight": (0, 3, 6)}


def test_what_is_constant_in_image_and_kernel_goes() -> None:
    model, z = testing.randomize(OfVector()), torch.randn(4)
    masks = testing.mask_indices(model, DROPPED)
    result = testing.check_equal(model, (torch.randn(2, 3, 6, 6), z), masks, [(torch.randn(1, 3, 5, 9), z)])
    assert result.shape("images.weight") == (5, 3, 1, 1)
    assert result.shape("last.weight") == (2, 5, 1, 1)


def test_what_depends_on_the_size_of_the_kernel_stays() -> None:
    model = testing.randomize(OfImage())
    masks = testing.mask_indices(model, DROPPED)
    inputs = [(torch.randn(2, 3, 8, 8), torch.randn(2, 3, size, size)) for size in (6, 5)]
    result = testing.check_equal(model, inputs[0], masks, inputs[1:])
    assert result.shape("last.weight") == (2, 8, 1, 1)


class InGroups(nn.Module):
    """A grouped kernel that is computed of parameters, in a residual stream (the places of wav2vec 2)."""

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        self.images, self.last = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 2, 1)
        self.middle = nn.Conv1d(16, 16, 3, padding=1, groups=4)
        self.gate = None if normalised else nn.Parameter(torch.ones(16, 1, 1))
        if normalised:
            nn.utils.parametrizations.weight_norm(self.middle, dim=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.images(x)
        weight = self.middle.weight if self.gate is None else self.middle.weight * self.gate
        result: Tensor = self.last(x + F.conv1d(x, weight, self.middle.bias, padding=1, groups=4))
        return result


@pytest.mark.parametrize("normalised", [True, False])
def test_each_group_of_a_computed_kernel_loses_rows_and_columns_of_its_own(normalised: bool) -> None:
    model, x = testing.randomize(InGroups(normalised)).double().eval(), torch.randn(2, 3, 7, dtype=torch.float64)
    masks = speedup.prune_masks(model, x, sparsity=0.5)
    result = testing.check_equal(model, x, masks, [torch.randn(1, 3, 9, dtype=torch.float64)])
    weight = "middle.parametrizations.weight.original1" if normalised else "middle.weight"
    assert result.shape("images.weight") == (8, 3, 1)
    assert result.shape(weight) == (8, 2, 3)
