"""``round_to``: multiples, what devices prefer, and widths by measured time, with a table in place of the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

import speedup
from speedup.errors import InputError
from speedup.pruning.widths import Measured, in_turn
from speedup.testing import check_equal, randomize


def net() -> nn.Module:
    """Widths 40 and 24; a depthwise layer in between."""
    layers = [nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 40, 3, groups=40), nn.Conv2d(40, 24, 1)]
    return randomize(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 5))).eval()


X = torch.randn(2, 3, 9, 9)


def widths(round_to: Any, sparsity: float, **options: Any) -> tuple[int, int]:
    model = net()
    masks = speedup.prune_masks(model, X, "l1", sparsity, round_to=round_to, **options)
    if not masks:
        return 40, 24
    result = check_equal(model, X, masks)
    return result.shape("0.weight")[0], result.shape("4.weight")[0]


class Table:
    """A clock that reads the widths off the tensors that a layer would be run on."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.seconds = seconds
        self.asked: list[list[int]] = []

    def __call__(self, runs: Sequence[Callable[[], Any]]) -> list[float]:
        shapes = [tuple(run().shape) for run in runs]
        first = [shape[1] for shape in shapes]
        if len(set(first)) == 1:  # a layer that reads the channels: its input tells
            first = [next(iter(run.__self__._shapes.values()))[1] for run in runs]  # type: ignore[attr-defined]
        self.asked.append(first)
        return [self.seconds(width) for width in first]


def test_a_number_and_what_devices_prefer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert widths(1, 0.4) == (24, 15)
    assert widths(7, 0.4) == (28, 21)
    assert widths("cuda", 0.4) == (24, 16)
    for capability, expected in (("AVX512", (32, 16)), ("AVX2", (24, 16)), ("DEFAULT", (24, 16))):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        assert widths("cpu", 0.4) == expected


def test_the_fastest_width_near_and_never_a_smaller_one() -> None:
    table = Table(lambda width: 1.0 if width % 16 == 0 else 2.0)
    assert widths(Measured(clock=table), 0.35) == (32, 16)  # 26 and 16 were asked for
    assert all(min(asked) >= 15 for asked in table.asked)


def test_where_the_smaller_width_is_as_fast_it_is_taken() -> None:
    assert widths(Measured(clock=Table(lambda width: 1.0 - 1e-4 * width)), 0.35) == (26, 16)
    assert widths(Measured(clock=Table(lambda width: 1.0 - 1e-4 * width), margin=0.0), 0.35) == (32, 16)


def test_nothing_goes_where_that_is_fastest() -> None:
    assert widths(Measured(clock=Table(lambda width: 1.0 if width in (40, 24) else 9.0)), 0.1) == (40, 24)


def test_the_same_table_gives_the_same_masks_and_each_layer_is_timed_once() -> None:
    made = []
    for _ in range(2):
        table = Table(lambda width: 1.0 if width % 8 == 0 else 1.5)
        made.append(widths(Measured(clock=table), 0.3))
        assert len(table.asked) == 5, "the filters, the depthwise layer, the two behind it, one of them twice"
    assert made[0] == made[1] == (32, 24)


def test_aligned_masks_and_global_choices_too() -> None:
    table = Table(lambda width: 1.0 if width % 16 == 0 else 2.0)
    model = net()
    mask = torch.ones(40, 3, 3, 3)
    mask[:9] = 0
    masks = speedup.align(model, X, {"0.weight": mask}, round_to=Measured(clock=table))
    assert int(masks["0.weight"].flatten(1).any(1).sum()) == 32
    assert widths(Measured(clock=table), 0.3, scope="global")[0] % 16 == 0


def test_real_clocks_measure_something() -> None:
    first, second = widths("measured", 0.4)
    assert first >= 24 and second >= 15
    slow, fast = in_turn([lambda: sum(range(20_000)), lambda: None], 5)
    assert slow > fast > 0


@pytest.mark.parametrize("wrong", [0, -8, 2.5, True, "gpu", None])
def test_wrong_numbers(wrong: Any) -> None:
    for call in (
        lambda: speedup.prune_masks(net(), X, round_to=wrong),
        lambda: speedup.align(net(), X, {}, round_to=wrong),
    ):
        with pytest.raises(InputError, match="a whole number from 1 on, 'cpu', 'cuda' or 'measured'"):
            call()
