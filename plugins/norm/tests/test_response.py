"""Global response normalisation as three libraries write it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import KINDS, check_equal, mask_indices, random_masks, randomize

GONE = [0, 3, 4]


class Last(nn.Module):
    """Channels last, eps in an attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.weight, self.bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        g = x.norm(p=2, dim=(1, 2), keepdim=True)
        g = g / (g.mean(dim=-1, keepdim=True) + self.eps)
        return x + torch.addcmul(self.bias.view(1, 1, 1, -1), self.weight.view(1, 1, 1, -1), x * g)


class First(Last):
    """Channels first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Literal(nn.Module):
    """Parameters of four axes, eps in the code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.zeros(1, 1, 1, width)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        g = torch.linalg.vector_norm(x, ord=2, dim=(1, 2), keepdim=True)
        g = g / (g.mean(dim=-1, keepdim=True) + 1e-6)
        return self.weight * (x * g) + self.bias + x


class Block(nn.Module):
    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.last = norm is not First
        self.a, self.n, self.b = nn.Linear(5, 12), norm(12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(self.a(x))
        y = self.n(y) if self.last else self.n(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.b(y)


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, 5, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("norm", [Last, First, Literal])
def test_channels_that_are_zero_go(norm: type[nn.Module]) -> None:
    """Their biases are constants behind the norm."""
    model = randomize(Block(norm), 0)
    masks = mask_indices(model, {"a.weight": GONE, "a.bias": GONE})
    result = check_equal(model, image(2, 4, 4), masks, [image(1, 3, 7)])
    assert result.shape("a.weight") == (9, 5) and result.shape("b.weight") == (5, 9)
    assert result.model.n.weight.numel() == 9 and isinstance(result.model.n, norm)
    again = copy.deepcopy(result.model)
    assert torch.equal(again(image(1, 2, 2).double()), result.model(image(1, 2, 2).double()))


def test_other_constants_stay() -> None:
    """How large they are together depends on the number of positions."""
    model = randomize(Block(Last), 0)
    result = check_equal(model, image(2, 4, 4), mask_indices(model, {"a.weight": GONE}), [image(1, 3, 7)])
    assert result.shape("a.weight") == (12, 5)


@pytest.mark.parametrize("norm", [Last, First, Literal])
@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_masks_stay_equal(norm: type[nn.Module], kind: str) -> None:
    model = randomize(Block(norm), 1)
    check_equal(model, image(2, 4, 4), random_masks(model, 1, kind), [image(1, 3, 7)])


def test_another_formula_is_not_taken_for_it() -> None:
    """Its call is taken as it stands: zeros go, and its mean is multiplied by the share that is left."""

    class Other(Last):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            g = x.norm(p=1, dim=(1, 2), keepdim=True)
            return x + self.weight * (x * (g / (g.mean(-1, keepdim=True) + self.eps))) + self.bias

    model = randomize(Block(Other), 0)
    masks = mask_indices(model, {"a.weight": GONE, "a.bias": GONE})
    result = check_equal(model, image(2, 4, 4), masks, [image(1, 3, 7)])
    assert result.shape("a.weight") == (9, 5) and [r.module for r in result.plan.report.repaired] == ["n"]
