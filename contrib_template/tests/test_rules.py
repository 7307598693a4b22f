"""The rule removes what the masks allow, and the small model answers as the masked one does."""

from __future__ import annotations

import torch
from speedup import Registry
from speedup.testing import KINDS, check_equal, mask_indices, random_masks, randomize
from torch import nn

from speedup_plugin_example import speedup_rules
from speedup_plugin_example.layers import ChannelGain

# The rules of this plugin beside those of all others, whether this plugin is installed or not.
REGISTRY = Registry.from_rules(*Registry.load(disable=["example"]).rules, *speedup_rules())
INPUT = torch.randn(2, 3, 8, 8)
OTHER_SIZES = [torch.randn(1, 3, 5, 11)]


def network() -> nn.Module:
    return randomize(nn.Sequential(nn.Conv2d(3, 6, 3), ChannelGain(6), nn.Conv2d(6, 4, 3)), seed=0)


def test_the_gain_shrinks_with_the_layer_before_it() -> None:
    model = network()
    result = check_equal(model, INPUT, mask_indices(model, {"0.weight": [1, 4]}), OTHER_SIZES, REGISTRY)
    assert result.shape("0.weight") == (4, 3, 3, 3)
    assert result.shape("1.gain") == (4,)
    assert result.shape("2.weight") == (4, 4, 3, 3)
    assert result.model.get_submodule("1").channels == 4


def test_a_masked_gain_removes_its_channel() -> None:
    model = network()
    result = check_equal(model, INPUT, mask_indices(model, {"1.gain": [0, 2, 5]}), OTHER_SIZES, REGISTRY)
    assert result.shape("0.weight") == (3, 3, 3, 3)
    assert result.shape("1.gain") == (3,)


def test_equal_for_random_masks_of_every_kind() -> None:
    for kind in KINDS:
        for seed in range(2):
            model = network()
            check_equal(model, INPUT, random_masks(model, seed, kind), OTHER_SIZES, REGISTRY)


def test_speedup_finds_the_installed_plugin() -> None:
    (plugin,) = (each for each in Registry.load(only=["example"]).plugins if each.name == "example")
    assert plugin.status == "loaded", plugin.error
    assert [rule.name for rule in plugin.rules] == ["channel_gain"]
