"""Calls of modules are sent elsewhere for a while, whoever has put what in the place of ``nn.Module.__call__``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from speedup.trace.redirect import redirected

Original = Callable[..., Any]


def state() -> tuple[Any, ...]:
    called: Any = nn.Module.__call__
    return called, called.__code__, called.__kwdefaults__


def passing(log: list[str], name: str) -> Callable[..., Any]:
    def to(original: Original, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        log.append(f"{name} {type(module).__name__}")
        return original(module, *args, **kwargs)

    return to


class Above(nn.Module):
    """One that has its own idea of a call, on top of the usual one, and arguments by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return -super().__call__(*args, **kwargs)

    def forward(self, x: torch.Tensor, *, factor: float) -> torch.Tensor:
        result: torch.Tensor = self.inner(x) * factor
        return result


@pytest.fixture(params=["torch's own", "a closure"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "a closure":
        original = nn.Module.__call__
        monkeypatch.setattr(nn.Module, "__call__", lambda self, *args, **kwargs: original(self, *args, **kwargs))


@pytest.mark.usefixtures("by")
def test_it_sees_every_call_inside_one_another_and_then_no_more() -> None:
    model, x, log = Above(), torch.randn(3, 2), list[str]()
    wanted, before = model(x, factor=2.0), state()
    with redirected(passing(log, "outer")):
        assert torch.equal(model(x, factor=2.0), wanted)
        assert log == ["outer Above", "outer Linear"]
        with redirected(passing(log, "inner")):
            model.inner(x)
        model.inner(x)
    assert log[2:] == ["inner Linear", "outer Linear", "outer Linear"]
    assert state() == before
    model(x, factor=2.0)
    assert len(log) == 5


@pytest.mark.usefixtures("by")
def test_after_an_error_it_is_over() -> None:
    before = state()
    with pytest.raises(KeyError), redirected(passing([], "")):
        raise KeyError
    assert state() == before
