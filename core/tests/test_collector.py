"""What becomes of Python's cyclic garbage collector while a plan is made, or something else that takes long."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import speedup
from speedup.errors import SpeedupError

_MASKS = {"layers.3.weight": torch.tensor([0.0, 1, 1, 1])[:, None].repeat(1, 4)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(20)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    threshold, enabled = gc.get_threshold(), gc.isenabled()
    yield
    gc.set_threshold(*threshold)
    (gc.enable if enabled else gc.disable)()


def _collections(job: Callable[[], object]) -> list[int]:
    found: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            found.append(info["generation"])

    gc.callbacks.append(note)
    try:
        job()
    finally:
        gc.callbacks.remove(note)
    return found


def test_objects_that_stay_are_not_looked_through_again_and_again() -> None:
    gc.set_threshold(50, 2, 2)
    job = speedup.ModelSpeedup(Net(), torch.randn(2, 4), _MASKS)

    assert len(_collections(job.speedup_model)) < 10
    assert gc.get_threshold() == (50, 2, 2)


def test_other_long_jobs_are_left_alone_too(tmp_path: Path) -> None:
    net, x = Net(), torch.randn(2, 4)
    small = speedup.plan(Net(), x, _MASKS).apply()
    gc.set_threshold(50, 2, 2)

    assert len(_collections(lambda: speedup.channel_groups(net, x))) < 10
    assert len(_collections(lambda: speedup.save(small, tmp_path / "small"))) < 10
    assert len(_collections(lambda: speedup.load(net, tmp_path / "small"))) < 10


def test_after_an_error_the_collector_is_as_it_was() -> None:
    gc.set_threshold(50, 2, 2)

    with pytest.raises(SpeedupError):
        speedup.plan(Net(), torch.randn(2, 5), _MASKS)

    assert gc.get_threshold() == (50, 2, 2)


@pytest.mark.parametrize("own", [(0, 10, 10), (100_000, 5, 5)])
def test_who_has_it_come_less_often_is_left_alone(own: tuple[int, int, int]) -> None:
    gc.set_threshold(*own)
    seen: list[tuple[int, int, int]] = []
    model = Net()
    model.register_forward_hook(lambda *_: seen.append(gc.get_threshold()))

    speedup.plan(model, torch.randn(2, 4), _MASKS)

    assert set(seen) == {own}
    assert gc.get_threshold() == own


def test_who_has_disabled_it_keeps_it_disabled() -> None:
    gc.disable()

    speedup.plan(Net(), torch.randn(2, 4), _MASKS)

    assert not gc.isenabled()
