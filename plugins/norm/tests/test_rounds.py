"""Norms that lost channels in one round of pruning lose more in the next."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import speedup
from speedup.testing import check_equal, mask_indices, masked_copy, randomize


class Tokens(nn.Module):
    """Channels last, as in a transformer."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.a = nn.Linear(5, 12)
        self.norm = norm
        self.b = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(self.norm(self.a(x)))
        return y


class Images(nn.Module):
    """Channels second."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 1)
        self.norm = nn.GroupNorm(groups, 12)
        self.b = nn.Conv2d(12, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(self.norm(self.a(x)))
        return y


# The net, the shape of its input, the rounds, and what is left of 12 channels when constants go, and when zeros go: a
# carrier stays for zeros, two for constants. A carrier of an earlier round is one more channel for the next.
NETS: dict[str, Any] = {
    "RMS without weight": (
        lambda: Tokens(nn.RMSNorm(12, elementwise_affine=False)),
        (4, 5),
        [[0, 1, 2], [0, 3], [1]],
        [10, 9, 9],
        [9, 7, 6],
    ),
    "layer": (lambda: Tokens(nn.LayerNorm(12)), (4, 5), [[0, 1, 2], [0, 3], [1]], [11, 11, 11], [10, 9, 9]),
    "one group": (lambda: Images(1), (3, 4, 5), [[0, 1, 2], [0, 3], [1]], [11, 11, 11], [10, 9, 9]),
    # Behind several groups a constant is no multiple of one unknown: only what the norm scales by 0 goes.
    "two groups": (lambda: Images(2), (3, 4, 5), [[0, 6], [1, 5]], [10, 8], [10, 8]),
}


@pytest.mark.parametrize("zeros", [False, True], ids=["constants", "zeros"])
@pytest.mark.parametrize("name", NETS)
def test_rounds(name: str, zeros: bool) -> None:
    build, shape, rounds, *widths = NETS[name]
    model: Any = randomize(build(), seed=3).double().eval()
    x = torch.randn(2, *shape).double()
    for dropped, width in zip(rounds, widths[zeros], strict=True):
        parameters = ["a.weight", *(["a.bias"] if zeros else []), *(["norm.weight"] if name == "two groups" else [])]
        masks = mask_indices(model, dict.fromkeys(parameters, dropped))
        check_equal(model, x, masks, [torch.randn(3, *shape).double()])
        masked = masked_copy(model, masks)
        speedup.plan(model, x, masks).apply()
        with torch.no_grad():
            assert torch.allclose(model(x), masked(x), rtol=1e-9, atol=1e-12)
        assert len(model.a.weight) == width
        assert type(model.norm).__name__.startswith("Compensated")


def test_what_an_earlier_round_took_counts_where_all_that_is_left_is_constant() -> None:
    model: Any = randomize(Tokens(nn.LayerNorm(12)), seed=3).double().eval()
    x = torch.randn(2, 4, 5).double()
    speedup.plan(model, x, mask_indices(model, {"a.weight": [0, 1, 2]})).apply()
    everything = mask_indices(model, {"a.weight": list(range(len(model.a.weight)))})
    with pytest.warns(UserWarning, match="masked whole"):
        check_equal(model, x, everything, [torch.randn(3, 4, 5).double()])
