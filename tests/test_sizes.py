"""Programs that do something else at another size: pad to whole windows, read more of a table, crop less."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import check_equal, mask_indices, randomize


class Windows(nn.Module):
    """Tokens padded to a window of 8, a position bias from a small network over a table, cropped again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(4, 8), nn.Linear(8, 3)
        self.inner, self.outer = nn.Linear(2, 16), nn.Linear(16, 8, bias=False)
        self.register_buffer("places", torch.linspace(-2, 2, 16).reshape(8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        x = F.pad(self.a(x), (0, 0, 0, 8 - length))
        x = (x + self.outer(F.relu(self.inner(self.places)))) * torch.sigmoid(x)
        result: torch.Tensor = self.out(x[:, :length])
        return result


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randn(batch, length, 4, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("length", [1, 3, 8])
def test_a_table_of_which_a_longer_input_reads_more(length: int) -> None:
    net = randomize(Windows())
    with torch.no_grad():
        # Unit 2 never fires, 3 at some of the places, 4 at all of them; 6 is a constant and 7 is 0.
        net.inner.bias[[2, 3, 4, 6]] = torch.tensor([-100.0, 0.0, 100.0, 1.0])
    masks = mask_indices(net, {"inner.weight": [6, 7], "inner.bias": [7]})
    result = check_equal(net, tokens(2, length), masks, [tokens(3, n) for n in (1, 4, 5, 8)])
    # What is made of parameters alone goes where it is 0 at all places, also at those that nobody reads here.
    assert result.shape("inner.weight") == (14, 2)
