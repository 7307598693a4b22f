"""Convolutions with weight standardisation: the filters go on as they were when input channels go."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.testing import KINDS, check_equal, mask_indices, masked_copy, random_masks, randomize
from speedup_plugin_conv.standardized import Form, form_of


class StdConv(nn.Conv2d):
    """As in BiT."""

    eps_in_code = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.eps = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        eps = 1e-5 if self.eps_in_code else self.eps
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=eps).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StdConvInCode(StdConv):
    """With an eps that no attribute holds."""

    eps_in_code = True


class ScaledConv(nn.Conv2d):
    """As in NFNet, with a gain per filter and a fixed scale; written with plain statistics."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))
        self.scale, self.eps = 0.3, 1e-4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        var, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(var + self.eps) * self.gain * self.scale
        return self._conv_forward(x, weight, self.bias)


class SameConv(StdConv):
    """Padded as in TensorFlow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads = []
        for size, k, s, d in list(zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True))[::-1]:
            wanted = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            pads += [wanted // 2, wanted - wanted // 2]
        return super().forward(F.pad(x, pads))


# Kernel, arguments, and the form that is recognised.
LAYERS: dict[str, tuple[Any, Form]] = {
    "plain": (lambda i, o, **k: StdConv(i, o, 3, padding=1, **k), Form(1e-6)),
    "eps in the code": (lambda i, o, **k: StdConvInCode(i, o, 1, **k), Form(1e-5)),
    "gain": (lambda i, o, **k: ScaledConv(i, o, 3, padding=1, **k), Form(1e-4, 0.3)),
    "same": (lambda i, o, **k: SameConv(i, o, 3, stride=2, **k), Form(1e-6, same=True)),
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> Any:
    return LAYERS[request.param][0]


def net(layer: Any, **arguments: Any) -> Any:
    return randomize(nn.Sequential(nn.Conv2d(3, 8, 1), nn.SiLU(), layer(8, 6, **arguments), nn.Conv2d(6, 2, 1)))


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def every(model: nn.Module, layer: str, gone: list[int]) -> dict[str, list[int]]:
    """These filters of a layer with all that belongs to them."""
    return {name: gone for name, _ in model.named_parameters() if name.startswith(layer)}


@pytest.mark.parametrize("name", LAYERS)
def test_the_form_is_recognised(name: str) -> None:
    make, form = LAYERS[name]
    assert form_of(make(4, 6, groups=2)) == form


def test_other_convolutions_are_not_taken_for_it() -> None:
    class Doubled(StdConv):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    class Unbiased(StdConv):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
            return self._conv_forward(x, (self.weight - mean) / torch.sqrt(var + self.eps), self.bias)

    for made in (Doubled(4, 4, 3), Unbiased(4, 4, 3), nn.Conv2d(4, 4, 3)):
        assert form_of(made) is None
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 1), Unbiased(4, 4, 3)))
    check_equal(model, image(2, 3, 6, 6), mask_indices(model, {"0.weight": [1], "0.bias": [1]}))


@pytest.mark.parametrize("bias", [True, False])
def test_filters_and_input_channels_go(layer: Any, bias: bool) -> None:
    model = net(layer, bias=bias)
    gone = every(model, "0", [0, 3, 4]) | every(model, "2", [1, 5])
    result = check_equal(model, image(2, 3, 7, 8), mask_indices(model, gone), [image(1, 3, 10, 9)])
    assert result.shape("2.weight")[:2] == (4, 5) and result.shape("3.weight")[1] == 4
    assert (result.model[2].in_channels, result.model[2].out_channels) == (5, 4)
    assert type(result.model[2]).__name__ == f"Compensated{type(model[2]).__name__}"


def test_without_lost_inputs_the_class_stays(layer: Any) -> None:
    model = net(layer)
    result = check_equal(model, image(2, 3, 7, 8), mask_indices(model, every(model, "2", [1, 5])))
    assert result.shape("2.weight")[:2] == (4, 8) and type(result.model[2]) is type(model[2])


def test_groups_lose_other_positions(layer: Any) -> None:
    model = net(layer, groups=2)
    gone = every(model, "0", [0, 3, 5]) | every(model, "2", [1, 5])
    result = check_equal(model, image(2, 3, 7, 8), mask_indices(model, gone), [image(1, 3, 10, 9)])
    assert result.shape("2.weight")[:2] == (4, 3)


def test_a_column_that_is_masked_is_read_all_the_same(layer: Any) -> None:
    """Standardised, its entries are minus the mean."""
    model = net(layer)
    masks = {"2": {"weight": torch.ones_like(model[2].weight)}}
    masks["2"]["weight"][:, 3] = 0
    assert check_equal(model, image(2, 3, 7, 8), masks).shape("0.weight")[0] == 8


def test_constants_other_than_zero_stay(layer: Any) -> None:
    model = net(layer)
    result = check_equal(model, image(2, 3, 7, 8), mask_indices(model, {"0.weight": [0, 3, 4]}))
    assert result.shape("0.weight")[0] == 8
    assert "standardized" in result.plan.explain("0")


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_masks_stay_equal(layer: Any, kind: str) -> None:
    for seed in range(2):
        model = net(layer, groups=seed + 1)
        check_equal(model, image(2, 3, 7, 8), random_masks(model, seed, kind), [image(1, 3, 10, 9)])


def test_rounds(layer: Any) -> None:
    model = net(layer).double().eval()
    for inputs, filters, shape in (([0, 3], [1], (5, 6)), ([1], [2], (4, 5)), ([0], [], (4, 4))):
        masks = mask_indices(model, every(model, "0", inputs) | (every(model, "2", filters) if filters else {}))
        masked, x = masked_copy(model, masks), image(2, 3, 7, 8)
        speedup.plan(model, x, masks).apply(verify=True)
        with torch.no_grad():
            assert torch.allclose(model(x), masked(x), rtol=1e-9, atol=1e-12)
        assert model[2].weight.shape[:2] == shape


def test_it_is_saved_copied_and_trained(layer: Any, tmp_path: Path) -> None:
    model = net(layer).double().eval()
    fresh, x = copy.deepcopy(model), image(2, 3, 7, 8)
    speedup.plan(model, x, mask_indices(model, every(model, "0", [0, 3]) | every(model, "2", [1]))).apply()
    again = speedup.load(fresh, speedup.save(model, tmp_path / "small"))
    with torch.no_grad():
        assert torch.equal(again(x), model(x)) and torch.equal(copy.deepcopy(model)(x), model(x))
    model(x).square().mean().backward()
    assert model[2].weight.grad.abs().sum() > 0


class Masked(nn.Conv2d):
    """A convolution with a forward and a buffer of its own, as in PixelCNN."""

    def __init__(self, *given: int) -> None:
        super().__init__(*given)
        self.register_buffer("seen", torch.ones(given[2], given[2]).tril())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight * self.seen, self.bias)


class Scaled(nn.Conv2d):
    """One with a child that has parameters."""

    def __init__(self, *given: int) -> None:
        super().__init__(*given)
        self.norm = nn.BatchNorm2d(given[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(super().forward(x)))


@pytest.mark.parametrize("kind", [Masked, Scaled])
def test_other_convolutions_with_a_forward_of_their_own(kind: type[nn.Conv2d]) -> None:
    """Their buffers and children are looked at, not asked whether they are true."""
    model = randomize(nn.Sequential(kind(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    masks = mask_indices(model, {"0.weight": [1, 5], "0.bias": [1, 5]})
    check_equal(model, torch.randn(2, 3, 8, 8), masks, [torch.randn(1, 3, 6, 7)])
