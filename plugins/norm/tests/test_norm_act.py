"""Norms of libraries that call an activation themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.testing import KINDS, check_equal, mask_indices, masked_copy, random_masks, randomize
from speedup_plugin_norm.custom import form_of


class GroupNormAct(nn.GroupNorm):
    """As in timm: a norm whose forward calls its children last."""

    def __init__(self, groups: int, width: int, act: nn.Module) -> None:
        super().__init__(groups, width)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        y: torch.Tensor = self.act(self.drop(x))
        return y


class LayerNormAct(nn.LayerNorm):
    """The same over the channels of an image."""

    def __init__(self, width: int, act: nn.Module) -> None:
        super().__init__(width)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        y: torch.Tensor = self.act(x.permute(0, 3, 1, 2))
        return y


class RMSNormAct(nn.Module):
    """The same without a mean."""

    def __init__(self, width: int, act: nn.Module) -> None:
        super().__init__()
        self.weight, self.eps, self.act = nn.Parameter(torch.ones(width)), 1e-6, act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.act(x * torch.rsqrt(x.pow(2).mean(1, True) + self.eps) * self.weight.view(1, -1, 1, 1))
        return y


NORMS: dict[str, Any] = {
    "group": lambda: GroupNormAct(3, 12, nn.SiLU()),
    "one group": lambda: GroupNormAct(1, 12, nn.ReLU(inplace=True)),
    "layer": lambda: LayerNormAct(12, nn.Sigmoid()),
    "rms": lambda: RMSNormAct(12, nn.GELU()),
}


def net(norm: nn.Module, padding: int = 0) -> nn.Module:
    return randomize(nn.Sequential(nn.Conv2d(3, 12, 1), norm, nn.Conv2d(12, 4, 3, padding=padding)))


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# Two, one and one of each four channels.
GONE = [0, 1, 5, 9]


@pytest.mark.parametrize("name", NORMS)
def test_channels_go_that_the_norm_scales_by_zero(name: str) -> None:
    """What is left of them is the activation of the shift, which the next layer takes up."""
    masks = {k: GONE for k in ("0.weight", "0.bias", "1.weight")}
    model = net(NORMS[name]())
    result = check_equal(model, image(2, 3, 6, 6), mask_indices(model, masks), [image(3, 3, 5, 7)])
    assert result.shape("2.weight")[1] == (9 if name == "group" else 8)
    assert isinstance(result.model[1], type(NORMS[name]()))


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_masks_stay_equal(name: str, kind: str) -> None:
    for seed in range(3):
        model = net(NORMS[name](), padding=1)
        check_equal(model, image(2, 3, 6, 6), random_masks(model, seed, kind), [image(1, 3, 5, 7)])


@pytest.mark.parametrize("name", NORMS)
def test_rounds(name: str) -> None:
    model: Any = net(NORMS[name]()).double().eval()
    for gone, width in (([0, 4, 8], 9), ([1, 5, 8], 6)):
        masks = mask_indices(model, {k: gone for k, _ in model.named_parameters() if k[0] in "01"})
        masked, x = masked_copy(model, masks), image(2, 3, 6, 6)
        speedup.plan(model, x, masks).apply(verify=True)
        with torch.no_grad():
            assert torch.allclose(model(x), masked(x), rtol=1e-9, atol=1e-12)
        assert model[0].out_channels == width


def test_an_activation_that_is_left_out_leaves_all_that_is_known() -> None:
    """Nothing stands between the norm and what can fold its unknowns."""
    model = net(GroupNormAct(1, 12, nn.Identity()))
    result = check_equal(model, image(2, 3, 6, 6), mask_indices(model, {"0.weight": GONE, "0.bias": GONE}))
    assert result.shape("2.weight")[1] == 9


class BareLayerNorm(nn.LayerNorm):
    """Without scale and shift, and with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, eps=self.eps).permute(0, 3, 1, 2)


class BareGroupNorm(nn.GroupNorm):
    """The same over all positions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, self.num_groups, eps=self.eps)


@pytest.mark.parametrize(
    "norm", [BareLayerNorm(12, elementwise_affine=False), BareGroupNorm(1, 12, affine=False)], ids=["layer", "group"]
)
def test_norms_without_parameters(norm: nn.Module) -> None:
    model = net(norm)
    result = check_equal(model, image(2, 3, 6, 6), mask_indices(model, {"0.weight": GONE, "0.bias": GONE}))
    assert result.shape("2.weight")[1] == 9


@pytest.mark.parametrize("act", [nn.Softmax(1), nn.PReLU(), nn.BatchNorm2d(12)], ids=["softmax", "prelu", "norm"])
def test_other_children_are_not_taken_for_activations(act: nn.Module) -> None:
    assert form_of(GroupNormAct(3, 12, act)) is None
    model = net(GroupNormAct(3, 12, act))
    check_equal(model, image(2, 3, 6, 6), mask_indices(model, {k: GONE for k in ("0.weight", "0.bias", "1.weight")}))


class Holding(nn.Module):
    """A norm with a child that it does not call, and that cannot be called."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


def test_children_that_cannot_be_called() -> None:
    model = randomize(nn.Sequential(nn.Linear(3, 12), Holding(12), nn.Linear(12, 4)), 0)
    masks = mask_indices(model, {"0.weight": GONE, "0.bias": GONE})
    assert check_equal(model, torch.randn(2, 3), masks).shape("2.weight") == (4, 9)
