"""Parts by number or place, and arguments by name, in whatever order: equal, and what can go goes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speedup.testing import check_equal, mask_indices, randomize


class Parts(nn.Module):
    """A layer whose 12 units are divided among three others."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.a = nn.Linear(3, 12)
        self.outs = nn.ModuleList(nn.Linear(size, 2) for size in sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(out(part) for out, part in zip(self.outs, self.parts(x, self.a(x)), strict=True))


class At(Parts):
    def parts(self, x, h):
        return h.tensor_split([4, 7], dim=-1)


class AtByName(Parts):
    def parts(self, x, h):
        return torch.tensor_split(h, indices=(4, 7), dim=1)


class AtAcross(Parts):
    def parts(self, x, h):
        return torch.hsplit(h, (4, 7))


class Sections(Parts):
    def parts(self, x, h):
        return torch.split(dim=-1, split_size_or_sections=[4, 3, 5], tensor=h)


@pytest.mark.parametrize("kind", [At, AtByName, AtAcross, Sections])
def test_parts_by_their_places_lose_any_number(kind: type[Parts]) -> None:
    model = randomize(kind(4, 3, 5))
    result = check_equal(model, torch.randn(2, 3), mask_indices(model, {"a.weight": [0, 1, 4, 8]}), [torch.randn(5, 3)])
    assert [result.shape(f"outs.{i}.weight")[1] for i in range(3)] == [2, 2, 4]


class Across(Parts):
    def parts(self, x, h):
        return h.hsplit(3)


class Down(Parts):
    def parts(self, x, h):
        return [part.T for part in h.T.vsplit(3)]


class Deep(Parts):
    def parts(self, x, h):
        return [part[0] for part in torch.dsplit(h[None], 3)]


class Equal(Parts):
    def parts(self, x, h):
        return torch.tensor_split(h, 3, 1)


class SplitSize(Parts):
    def parts(self, x, h):
        return h.split(dim=-1, split_size=4)


class View(Parts):
    def parts(self, x, h):
        return h.view(size=(-1, 3, 4)).unbind(dim=1)


class Reshape(Parts):
    def parts(self, x, h):
        return torch.reshape(shape=(x.shape[0], 3, 4), input=h).unbind(1)


class Expand(Parts):
    def parts(self, x, h):
        return (h * x[:, :1].expand(size=(-1, 12))).unflatten(dim=1, sizes=(3, 4)).unbind(1)


@pytest.mark.parametrize("kind", [Across, Down, Deep, Equal, SplitSize, View, Reshape, Expand])
def test_equal_parts_keep_equal_counts(kind: type[Parts]) -> None:
    model = randomize(kind(4, 4, 4))
    drop = [0, 1, 4, 6, 9, 10, 11]  # one more in the last part
    result = check_equal(
        model, torch.randn(2, 3), mask_indices(model, {"a.weight": drop, "a.bias": drop}), [torch.randn(5, 3)]
    )
    assert [result.shape(f"outs.{i}.weight")[1] for i in range(3)] == [2, 2, 2]


class Held(nn.Module):
    """Sizes that the layer holds, given by name to functions of torch that hand them on by place."""

    def __init__(self) -> None:
        super().__init__()
        self.half = 6
        self.a, self.b = nn.Linear(3, 12), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.parts(self.a(x))
        return self.b(value * torch.sigmoid(gate))


class HeldSizes(Held):
    def parts(self, h):
        return h.split(split_size=[self.half, self.half], dim=-1)


class HeldSize(Held):
    def parts(self, h):
        return torch.split(tensor=h, split_size_or_sections=self.half, dim=-1)


class HeldAxes(Held):
    def parts(self, h):
        return h.unflatten(dim=-1, sizes=(2, self.half)).unbind(-2)


@pytest.mark.parametrize("kind", [HeldSizes, HeldSize, HeldAxes])
def test_sizes_that_a_layer_holds_are_found_by_name(kind: type[Held]) -> None:
    model = randomize(kind())
    masks = mask_indices(model, {"a.weight": [0, 1, 6, 7], "a.bias": [0, 1, 6, 7]})
    assert check_equal(model, torch.randn(2, 3), masks, [torch.randn(5, 3)]).shape("b.weight") == (2, 4)
