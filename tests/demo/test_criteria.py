"""The mask makers on small networks whose right masks can be worked out by hand."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from demo import criteria


def _filters(rows: list[list[float]], bias: bool = False) -> nn.Conv2d:
    """A 1x1 convolution with these filters."""
    weight = torch.tensor(rows)
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias)
    with torch.no_grad():
        conv.weight.copy_(weight[:, :, None, None])
    return conv


def _norm(scales: list[float]) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(scales))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(scales))
    return norm


def _kept(mask: Tensor | None) -> list[float]:
    """The mask of each filter; every filter is masked whole or not at all."""
    assert mask is not None
    assert mask.dtype == torch.float32
    by_filter = mask.flatten(1) if mask.dim() > 1 else mask[:, None]
    assert bool((by_filter == by_filter[:, :1]).all())
    return by_filter[:, 0].tolist()


class TestSlim:
    def test_one_threshold_for_all_layers(self) -> None:
        model = nn.Sequential(_norm([0.9, -0.8, 0.1, 0.2]), nn.ReLU(), _norm([0.3, -0.05, 0.04, 0.5, 0.0, 0.6]))
        masks = criteria.slim(model, 0.7)
        # The three largest of the ten scales are 0.9, 0.8 and 0.6, whatever layer they are in.
        assert set(masks) == {"0", "2"}
        assert _kept(masks["0"]["weight"]) == _kept(masks["0"]["bias"]) == [1, 1, 0, 0]
        assert _kept(masks["2"]["weight"]) == _kept(masks["2"]["bias"]) == [0, 0, 0, 0, 0, 1]

    def test_a_layer_can_lose_every_channel(self) -> None:
        masks = criteria.slim(nn.Sequential(_norm([1.0, 2.0]), _norm([0.1, 0.2])), 0.5)
        assert _kept(masks["0"]["weight"]) == [1, 1]
        assert _kept(masks["1"]["weight"]) == [0, 0]

    def test_the_share_is_exact_over_many_channels_even_with_equal_scales(self) -> None:
        for model in (nn.Sequential(_norm([0.5] * 60), _norm([0.5] * 40)), nn.Sequential(_norm([0.0] * 100))):
            masks = criteria.slim(model, 0.7)
            assert sum(float(mask["weight"].sum()) for mask in masks.values()) == 30

    def test_only_the_norms_of_convolutions_unless_others_are_named(self) -> None:
        model = nn.Sequential(_norm([1.0, 2.0]), nn.Flatten(), nn.BatchNorm1d(2))
        assert set(criteria.slim(model, 0.5)) == {"0"}
        assert set(criteria.slim(model, 0.5, ["0", "2"])) == {"0", "2"}

    def test_mistakes(self) -> None:
        with pytest.raises(ValueError, match="no BatchNorm2d"):
            criteria.slim(nn.Sequential(nn.ReLU()))
        with pytest.raises(ValueError, match="affine=False"):
            criteria.slim(nn.Sequential(nn.BatchNorm2d(2, affine=False)))
        with pytest.raises(TypeError, match="0 is a ReLU"):
            criteria.slim(nn.Sequential(nn.ReLU()), 0.5, ["0"])


class TestL1Filter:
    def test_smallest_norms_go(self) -> None:
        model = nn.Sequential(_filters([[1.0, -3.0], [0.5, 0.5], [-2.0, 0.0], [4.0, 0.0]]))
        masks = criteria.l1filter(model, ["0"], 0.5)
        assert masks["0"]["weight"].shape == (4, 2, 1, 1)
        assert _kept(masks["0"]["weight"]) == [1, 0, 0, 1]
        assert masks["0"]["bias"] is None

    def test_the_bias_goes_with_its_filter(self) -> None:
        masks = criteria.l1filter(nn.Sequential(_filters([[1.0], [0.5], [2.0]], bias=True)), ["0"], 0.5)
        assert _kept(masks["0"]["weight"]) == _kept(masks["0"]["bias"]) == [1, 0, 1]

    @pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5])
    def test_sparsity_out_of_range(self, sparsity: float) -> None:
        with pytest.raises(ValueError, match="sparsity"):
            criteria.l1filter(nn.Sequential(_filters([[1.0]])), ["0"], sparsity)

    def test_unknown_and_unsuitable_layers(self) -> None:
        model = nn.Sequential(OrderedDict(conv1=_filters([[1.0]]), act=nn.ReLU()))
        with pytest.raises(ValueError, match="did you mean 'conv1'"):
            criteria.l1filter(model, ["conv"], 0.5)
        with pytest.raises(TypeError, match="act is a ReLU"):
            criteria.l1filter(model, ["act"], 0.5)

    def test_weights_that_cannot_be_ranked(self) -> None:
        with pytest.raises(ValueError, match="finite"):
            criteria.l1filter(nn.Sequential(_filters([[float("nan")], [1.0]])), ["0"], 0.5)


class TestApoz:
    def test_filters_that_are_zero_most_often_go(self) -> None:
        # Filter 0 lets positive inputs pass, filter 1 negative ones, filter 2 none, filter 3 both (by way of |x|).
        model = nn.Sequential(_filters([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), nn.ReLU(inplace=True))
        inputs = torch.tensor([1.0, 2.0, 3.0, -1.0]).reshape(4, 1, 1, 1)
        batches = torch.cat([inputs, inputs.abs()], dim=1).split(3)
        masks = criteria.apoz(model, {"0": "1"}, batches, 0.5)
        assert _kept(masks["0"]["weight"]) == [1, 0, 0, 1]
        assert _kept(criteria.apoz(model, {"0": "1"}, batches, 0.25)["0"]["weight"]) == [1, 1, 0, 1]

    def test_the_model_is_left_as_it_was(self) -> None:
        model = nn.Sequential(_filters([[1.0], [2.0]]), _norm([1.0, 1.0]), nn.ReLU())
        model[1].eval()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        criteria.apoz(model, {"0": "2"}, [torch.ones(2, 1, 1, 1)], 0.5)
        assert model.training and not model[1].training and model[2].training
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert not model[2]._forward_hooks

    def test_mistakes(self) -> None:
        model = nn.Sequential(_filters([[1.0], [2.0]]), nn.ReLU(), _filters([[1.0, 1.0]]), nn.ReLU())
        with pytest.raises(ValueError, match="never ran"):
            criteria.apoz(model, {"0": "1"}, [], 0.5)
        with pytest.raises(ValueError, match="1 channels, 0 has 2"):
            criteria.apoz(model, {"0": "3"}, [torch.ones(1, 1, 2, 2)], 0.5)


class TestFpgm:
    def test_filters_nearest_to_all_others_go(self) -> None:
        model = nn.Sequential(_filters([[0.0, 0.0], [10.0, 0.0], [1.0, 0.0], [0.0, 1.0]], bias=True))
        masks = criteria.fpgm(model, sparsity=0.5)
        # Sums of distances: 12, 29.05, 11.41, 12.46: the geometric median is near filters 2 and 0.
        assert _kept(masks["0"]["weight"]) == _kept(masks["0"]["bias"]) == [0, 1, 0, 1]

    def test_large_filters_can_go(self) -> None:
        model = nn.Sequential(_filters([[5.0, 5.0], [5.0, 5.1], [0.0, 0.0], [9.0, 1.0]]))
        assert _kept(criteria.fpgm(model, ["0"], 0.5)["0"]["weight"]) == [0, 0, 1, 1]

    def test_every_convolution_by_default(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.Conv2d(20, 50, 5), nn.Flatten(), nn.Linear(50, 2))
        masks = criteria.fpgm(model)
        assert {name: float(mask["bias"].sum()) for name, mask in masks.items()} == {"0": 10, "2": 25}


def test_counts_are_rounded_down() -> None:
    conv = _filters([[float(value)] for value in range(10)])
    pruned = [
        10 - sum(_kept(criteria.l1filter(nn.Sequential(conv), ["0"], s)["0"]["weight"])) for s in (0.0, 0.55, 0.7)
    ]
    assert pruned == [0, 5, 7]
