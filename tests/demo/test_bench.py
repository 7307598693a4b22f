"""Costs of a model: groups of passes, multiply-accumulates, sizes."""

import pytest
import torch
from torch import nn

from demo import bench


def test_groups_are_whole_disjoint_and_successive() -> None:
    times = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert bench._sums(times, 1) == times
    assert bench._sums(times, 2) == [3.0, 7.0]
    assert bench._sums(times, 5) == [15.0]
    assert bench._sums(times, 6) == []


def test_every_count_is_measured() -> None:
    rows = bench.latencies(nn.Linear(2, 2), nn.Linear(2, 2), torch.ones(1, 2), (1, 2, 40), budget=0.0)
    assert [row.times for row in rows] == [1, 2, 40]
    assert [row.rounds for row in rows] == [40, 20, 1]
    assert all(row.mask > 0 and row.small > 0 for row in rows)
    more = bench.latencies(nn.Linear(2, 2), nn.Linear(2, 2), torch.ones(1, 2), (1, 2), budget=10.0)
    assert [row.rounds for row in more] == [10, 5]
    assert rows[0].ratio == pytest.approx(rows[0].mask / rows[0].small)


def test_macs_parameters_and_file() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 5))
    size = bench.size(model, torch.ones(1, 1, 4, 4))
    assert size.macs == 2 * 9 * 16 + 32 * 5
    assert size.parameters == 20 + 4 + 165
    assert size.file_bytes > 4 * size.parameters
    assert model.training
