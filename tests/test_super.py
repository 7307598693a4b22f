"""Subclasses of torch's modules whose forward does something before or after ``super().forward(x)``."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup import Registry, Rule, default_registry
from speedup.testing import check_equal, mask_indices, masked_copy, randomize


class Causal(nn.Conv1d):
    """A convolution of the past alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, (2, 0)))


class Layer(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x * 2)


class TwoArguments(nn.LayerNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.gelu(super(TwoArguments, self).forward(input)) * 2  # noqa: UP008


class Squares(nn.RMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class Groups(nn.GroupNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input - F.relu(super().forward(input))


class Base(nn.Module):
    """A class above that is the user's own; its method has the size in it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 12)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        y: torch.Tensor = self.inner(x).view(*x.shape[:-1], 12) * scale
        return y


class Derived(Base):
    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return super().forward(x, 2 * scale) + x


class Attention(nn.MultiheadAttention):
    """With a residual, and scores that are thrown away."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        y, _ = super().forward(x, x, x)
        return x + y


class Memory(nn.LSTM):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return F.gelu(super().forward(x.flip(1))[0])


class Gated(nn.GRU):
    """Called twice, once with a state."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        y, state = super().forward(x)
        return super().forward(x, state)[0] + y


class Stacked(nn.TransformerEncoderLayer):
    def forward(self, src: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().forward(src, *args, **kwargs) * 2 + src


def net(kind: Callable[[], nn.Module]) -> nn.Module:
    last = not isinstance(kind(), nn.Conv1d | nn.GroupNorm)
    first, third = (nn.Linear(6, 12), nn.Linear(12, 4)) if last else (nn.Conv1d(6, 12, 1), nn.Conv1d(12, 4, 1))
    return randomize(nn.Sequential(first, kind(), third))


def inputs(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(model[0], nn.Linear):
        return torch.randn(2, 5, 6), torch.randn(3, 7, 6)
    return torch.randn(2, 6, 8), torch.randn(3, 6, 11)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "depthwise": lambda: Causal(12, 12, 3, groups=12),
    "circular": lambda: Causal(12, 12, 3, groups=12, padding=1, padding_mode="circular"),
    "layer": lambda: Layer(12),
    "two arguments": lambda: TwoArguments(12, eps=1e-3),
    "rms": lambda: Squares(12),
    "groups": lambda: Groups(3, 12),
    "attention": lambda: Attention(12, 3, batch_first=True),
    "encoder layer": lambda: Stacked(12, 2, 16, dropout=0.0, batch_first=True),
    "lstm": lambda: Memory(12, 12, batch_first=True),
    "gru": lambda: Gated(12, 12, batch_first=True),
    "own": Derived,
}


def masks_of(model: nn.Module) -> Any:
    """Every second index, so that what is divided among heads keeps equal parts."""
    return mask_indices(
        model, {n: tuple(range(1, len(p), 2)) for n, p in model.named_parameters() if not n.startswith("2")}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_channels_go(kind: str) -> None:
    model = net(KINDS[kind])
    x, other = inputs(model)
    result = check_equal(model, x, masks_of(model), [other])
    assert result.shape("0.weight")[0] == result.shape("2.weight")[1] == 6
    every = 2 if kind == "groups" else 3
    less = {n: tuple(range(1, len(p), every)) for n, p in result.model.named_parameters() if n[0] != "2"}
    again = check_equal(result.model, x, mask_indices(result.model, less), [other])
    assert again.shape("0.weight")[0] <= 5


class Gain(nn.Module):
    """It hides what it does behind numpy."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.weight = width, nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.detach().numpy() * self.weight.detach().numpy())


class Doubled(Gain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] == self.width
        return 2 * super().forward(x) + x


class Unlike(Doubled):
    """It changes more than the forward."""

    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args)


GAIN = Rule(modules=(Gain,), operands=("input", "weight"), axes="* c, c -> * c", sizes={"width": "c"})


@pytest.mark.parametrize(("kind", "left"), [(Gain, 6), (Doubled, 6), (Unlike, 12)])
def test_a_rule_of_a_module_speaks_for_what_is_above(kind: Callable[[int], nn.Module], left: int) -> None:
    rules = Registry.from_rules(*default_registry().rules, GAIN)
    model = net(lambda: kind(12))
    forward = Gain.forward
    masks = masks_of(model)
    plan = speedup.plan(copy.deepcopy(model), inputs(model)[0], masks, registry=rules)
    small: Any = plan.apply()
    assert Gain.forward is forward
    assert small[0].weight.shape[0] == left and small[1].width == left
    other = inputs(model)[1]
    torch.testing.assert_close(small(other), masked_copy(model, masks)(other))


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles(kind: str) -> None:
    model = net(KINDS[kind]).eval()
    x, other = inputs(model)
    masks = masks_of(model)
    small = speedup.plan(copy.deepcopy(model), x, masks).apply()
    masked = masked_copy(model, masks)
    for each in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small)).train()):
        torch.testing.assert_close(each(other), masked(other))
        assert isinstance(each[1], type(model[1]))  # type: ignore[index]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_and_loaded(kind: str, tmp_path: object) -> None:
    pytest.importorskip("safetensors")
    model = net(KINDS[kind]).eval()
    x, other = inputs(model)
    small = speedup.plan(copy.deepcopy(model), x, masks_of(model)).apply()
    speedup.save(small, f"{tmp_path}/small")
    assert torch.equal(speedup.load(model, f"{tmp_path}/small")(other), small(other))
