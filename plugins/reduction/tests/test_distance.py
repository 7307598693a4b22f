"""Distances and angles: channels go where both vectors are 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedup.testing import check_equal, mask_indices, randomize

GONE = [1, 3, 4]


class Net(nn.Module):
    """Features, compared with prototypes."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.body = nn.Linear(4, 8), body
        self.p = nn.Parameter(torch.randn(6, 8))
        randomize(self)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(self.a(x), self.p)
        return result


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, 4, generator=torch.Generator().manual_seed(shape[0]))


BODIES: dict[str, Callable[..., Tensor]] = {
    "cdist": lambda y, p: torch.cdist(y, p),
    "cdist of other norms": lambda y, p: torch.cdist(p, y.flatten(0, 1), p=1.0).mT,
    "cosine_similarity": lambda y, p: F.cosine_similarity(y.unsqueeze(-2), p, dim=-1),
    "cosine_similarity along another axis": lambda y, p: torch.cosine_similarity(y.mT[..., None], p.mT[:, None]),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_what_is_zero_in_both_goes(body: Callable[..., Tensor]) -> None:
    model = Net(body)
    masks = mask_indices(model, {"a.weight": GONE, "a.bias": GONE})
    masks.setdefault("", {})["p"] = mask_indices(model, {"p": GONE}, axis=1)[""]["p"]
    result = check_equal(model, tokens(2, 3), masks, [tokens(5, 2)])
    assert result.shape("a.weight") == (5, 4) and result.shape("p") == (6, 5)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("missing", ["a.bias", "p"])
def test_what_is_not_zero_in_one_stays(body: Callable[..., Tensor], missing: str) -> None:
    model = Net(body)
    masks = mask_indices(model, {name: GONE for name in ("a.weight", "a.bias") if name != missing})
    if missing != "p":
        masks.setdefault("", {})["p"] = mask_indices(model, {"p": GONE}, axis=1)[""]["p"]
    result = check_equal(model, tokens(2, 3), masks, [tokens(5, 2)])
    assert result.shape("a.weight") == (8, 4) and result.shape("p") == (6, 8)


def test_rows_that_nobody_compares_may_go() -> None:
    """A column of zeros behind a distance takes its prototype with it."""

    class Classes(Net):
        def __init__(self) -> None:
            super().__init__(BODIES["cdist"])
            self.o = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.o(super().forward(x))
            return result

    model = Classes()
    result = check_equal(model, tokens(2, 3), mask_indices(model, {"o.weight": [0, 5]}, axis=1), [tokens(5, 2)])
    assert result.shape("p") == (4, 8)


class Two(nn.Module):
    """Two layers of 8 units and what is made of them."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.body = nn.Linear(3, 8), nn.Linear(3, 8), body
        randomize(self)
        with torch.no_grad():
            self.a.bias[[0, 3, 5]] = 0
            self.b.bias[[0, 3, 6]] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.a(x), self.b(x))


@pytest.mark.parametrize(
    "body",
    [
        lambda a, b: F.cosine_similarity(a, b, dim=-1),
        lambda a, b: torch.cosine_similarity(a[:, None], x2=b[None], dim=2),
    ],
)
def test_what_is_zero_in_one_layer_counts_in_the_other(body: Callable[..., Tensor]) -> None:
    """What is 0 in one of them counts in the length of the other."""
    model = Two(body)
    masks = mask_indices(model, {"a.weight": [0, 3, 5], "b.weight": [0, 3, 6]})
    result = check_equal(model, torch.randn(4, 3), masks, [torch.randn(7, 3)])
    assert (result.shape("a.weight")[0], result.shape("b.weight")[0]) == (6, 6)
