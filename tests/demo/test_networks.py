"""The networks have the layers, sizes and indices that the examples rely on."""

import pytest
import torch
from torch import nn

from demo import networks
from demo.examples import VGG16_LAYERS


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "parameters", "shape"),
    [
        ("vgg16", 14_987_722, (2, 3, 32, 32)),
        ("vgg19", 20_298_698, (2, 3, 32, 32)),
        ("naive", 431_220, (2, 1, 28, 28)),
    ],
)
def test_parameters_and_output(name: str, parameters: int, shape: tuple[int, ...]) -> None:
    network = networks.build(name, seed=0).eval()
    assert _parameters(network) == parameters
    with torch.inference_mode():
        assert network(torch.zeros(shape)).shape == (2, 10)


def test_pruned_layers_of_vgg16_are_convolutions_with_norm_and_relu() -> None:
    modules = dict(networks.build("vgg16", seed=0).named_modules())
    channels = []
    for name in VGG16_LAYERS:
        index = int(name.partition(".")[2])
        assert isinstance(modules[name], nn.Conv2d)
        assert modules[name].bias is None
        assert isinstance(modules[f"features.{index + 1}"], nn.BatchNorm2d)
        assert isinstance(modules[f"features.{index + 2}"], nn.ReLU)
        channels.append(modules[name].out_channels)
    assert channels == [64, 512, 512, 512, 512, 512]


@pytest.mark.parametrize(("depth", "convs"), [(16, 13), (19, 16)])
def test_number_of_convolutions(depth: int, convs: int) -> None:
    features = networks.VGG(depth).features
    assert sum(isinstance(module, nn.Conv2d) for module in features) == convs
    assert sum(isinstance(module, nn.MaxPool2d) for module in features) == 4


def test_build_is_seeded_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    first, second = (networks.build("naive", seed=3).state_dict() for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["fc1.weight"], networks.build("naive", seed=4).state_dict()["fc1.weight"])


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown network 'vgg11'"):
        networks.build("vgg11", seed=0)
    with pytest.raises(ValueError, match="depth"):
        networks.VGG(11)
