"""Models that compute in a coarser type on the way and cast back."""

from __future__ import annotations

import torch
from torch import nn

from speedup.testing import check_equal, mask_indices, randomize


class Coarse(nn.Module):
    """Normalises in float32, whatever the type of the model; holds a size, so that a repair must be tried."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 256), nn.Linear(256, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).view(-1, 256)
        wide = y.float()
        y = y * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-3).to(y.dtype)
        return self.b(y)


def test_the_coarsest_type_says_what_rounding_is() -> None:
    model = randomize(Coarse(), 0)
    gone = list(range(0, 256, 3))
    masks = mask_indices(model, {"a.weight": gone, "a.bias": gone})
    x, other = (torch.randn(n, 16, generator=torch.Generator().manual_seed(n)) for n in (3, 5))
    result = check_equal(model, x, masks, [other], tolerance=1e-5)
    assert result.shape("b.weight") == (4, 256 - len(gone))
