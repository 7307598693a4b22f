"""Data, training and fine-tuning on a small scale."""

import torch
from torch import nn

from demo import data, networks, train
from demo.train import Recipe


def test_digits_have_the_published_sizes_and_a_fixed_split() -> None:
    large, small = data.load(32, 3), data.load(28, 1)
    assert large.train_images.shape == (1437, 3, 32, 32)
    assert large.test_images.shape == (360, 3, 32, 32)
    assert small.train_images.shape == (1437, 1, 28, 28)
    assert torch.equal(large.train_labels, small.train_labels)
    assert set(small.test_labels.tolist()) == set(range(10))
    assert abs(float(small.train_images.mean())) < 0.05


def test_training_learns_and_is_deterministic() -> None:
    digits = data.load(28, 1)
    recipe = Recipe(images=480, batch=32)
    runs = []
    for _ in range(2):
        network = networks.build("naive", seed=1)
        train.train(network, digits.train_images, digits.train_labels, recipe, seed=1)
        assert not network.training
        runs.append(train.predict(network, digits.test_images))
    assert train.accuracy(runs[0], digits.test_labels) > 0.8
    assert torch.equal(runs[0], runs[1])


def test_the_penalty_brings_scales_to_zero() -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    digits = data.load(8, 1)
    recipe = Recipe(images=640, batch=16, l1=0.66)
    train.train(network, digits.train_images, digits.train_labels, recipe, seed=0)
    assert 0 < int((network[1].weight == 0).sum()) < 8


def test_calibration_measures_the_statistics_of_the_data() -> None:
    norm = nn.BatchNorm1d(3)
    rows = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 2 + 5
    train.calibrate(norm, rows)
    assert torch.allclose(norm.running_mean, rows.mean(0), atol=1e-5)
    assert norm.momentum == 0.1
    assert not norm.training
