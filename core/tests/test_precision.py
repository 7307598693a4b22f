"""Models that compute in a coarser type on the way and cast back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import speedup
from speedup.testing import check_equal, mask_indices, randomize


class Norm(nn.Module):
    """Normalises in float32, whatever the type of the model, as language models do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Function(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.float().square().sum(-1, keepdim=True) + 1e-3).to(x.dtype)


class Coarse(nn.Module):
    """Holds a size too, so that a repair must be tried."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Linear(16, 256), norm, nn.Linear(256, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.n(self.a(x).view(-1, 256)))


@pytest.mark.parametrize("norm", [Norm(256), Function()], ids=["a module", "calls"])
def test_the_coarsest_type_says_what_rounding_is(norm: nn.Module) -> None:
    model = randomize(Coarse(norm), 0)
    gone = list(range(0, 256, 3))
    masks = mask_indices(model, {"a.weight": gone, "a.bias": gone})
    x, other = (torch.randn(n, 16, generator=torch.Generator().manual_seed(n)) for n in (3, 5))
    result = check_equal(model, x, masks, [other], tolerance=1e-5)
    assert result.shape("b.weight") == (4, 256 - len(gone))


class Spectrum(nn.Module):
    """Gives complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 96), nn.Linear(96, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft(self.b(torch.relu(self.a(x))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_complex_numbers_are_rounded_as_their_parts_are(dtype: torch.dtype) -> None:
    model = randomize(Spectrum(), 0).to(dtype)
    x = torch.randn(4, 64, dtype=dtype, generator=torch.Generator().manual_seed(0))
    masks = mask_indices(model, {"a.weight": list(range(60))})
    small = speedup.plan(copy.deepcopy(model), x, masks).apply()
    assert small.a.weight.shape == (36, 64)
    found = speedup.verify(model, small, x, masks)
    assert found, found
    assert all(0 < c.allowed < 1e-2 for c in found.comparisons)
    small.b.bias.data[0] += 1
    assert not speedup.verify(model, small, x, masks)
