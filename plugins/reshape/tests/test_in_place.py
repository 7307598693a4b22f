"""Parts of a tensor that are changed in place, x[index] += y, and put back where they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from speedup.testing import KINDS, Result, check_equal, mask_indices, random_masks, randomize

GONE = [1, 4, 6]


class Net(nn.Module):
    """Two layers, what is tested, and a layer that reads the channels."""

    def __init__(self, body: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.o(self.body(self.a(x), self.b(x)))
        return result


def samples(a: Tensor, b: Tensor) -> Tensor:
    a[1:] += b[1:]
    return a


def positions(a: Tensor, b: Tensor) -> Tensor:
    a = a.clone()
    a[:, 1:] *= b[:, :-1]
    return a


def one_of_several(a: Tensor, b: Tensor) -> Tensor:
    both = torch.stack([a, b])
    both[0] += b
    both[1:] -= a
    return both.sum(0)


def last_axis(a: Tensor, b: Tensor) -> Tensor:
    both = torch.stack([a, b], -1)
    both[..., 1:] += b.unsqueeze(-1)
    return both.sum(-1)


def of_a_view(a: Tensor, b: Tensor) -> Tensor:
    both = torch.stack([a, b])
    seen = both.permute(1, 2, 0, 3)
    seen[:, :, 1:] += b.unsqueeze(2)
    return both.sum(0) + seen.mean(2)


def again_and_again(a: Tensor, b: Tensor) -> Tensor:
    for step in range(1, 3):
        a[:, step:] += b[:, step:]
        a[:, :step] *= 0.5
    return a


def channels(a: Tensor, b: Tensor) -> Tensor:
    a[..., 2:] += b[..., 2:]
    return a


def others_of_itself(a: Tensor, b: Tensor) -> Tensor:
    a[:, 2:4] = a[:, 1:3]  # no copy is made before: what is assigned changes
    return a + b


def changed_before(a: Tensor, b: Tensor) -> Tensor:
    part = a[:, 1:]
    part += b[:, 1:]
    a[:, :-1] = part
    return a


def checked(body: Callable[[Tensor, Tensor], Tensor], seed: int | None = None, kind: str = "") -> Result:
    model = randomize(Net(body), seed or 0)
    same = {f"{layer}.{name}": GONE for layer in "ab" for name in ("weight", "bias")}
    masks = mask_indices(model, same) if seed is None else random_masks(model, seed, kind)
    return check_equal(model, torch.randn(3, 5, 4), masks, [torch.randn(4, 7, 4)])


BODIES = [samples, positions, one_of_several, last_axis, of_a_view, again_and_again]
MORE = [*BODIES, channels, others_of_itself, changed_before]


@pytest.mark.parametrize("body", BODIES)
def test_channels_go(body: Callable[[Tensor, Tensor], Tensor]) -> None:
    result = checked(body)
    assert result.shape("o.weight") == (3, 5)
    assert not result.plan.report.barriers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", MORE)
def test_all_masks_stay_exact(body: Callable[[Tensor, Tensor], Tensor], kind: str) -> None:
    checked(body, 1, kind)


@pytest.mark.parametrize("body", [others_of_itself, changed_before])
def test_other_parts_of_itself_stay_whole(body: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert checked(body).shape("o.weight") == (3, 8)
