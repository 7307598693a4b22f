"""Layers that only training calls go with the rest: the auxiliary heads of GoogLeNet and Inception, in small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.testing import masked_copy, randomize


class Heads(nn.Module):
    """A trunk of two convolutions, a head, and one more that reads the first one in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)
        self.aux = nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.aux_fc = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.relu(self.bn1(self.conv1(x)))
        aux = None
        if self.training:
            aux = self.aux_fc(self.aux(x))
        x = self.fc(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))
        return (x, aux) if aux is not None else x


INPUT = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def made(kind: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model with random numbers, and masks of every second filter of its convolutions."""
    model = kind().double()
    randomize(model, 0)
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            keep = torch.arange(module.out_channels) % 2 == 0
            masks[f"{name}.weight"] = keep.reshape(-1, 1, 1, 1).expand_as(module.weight)
            masks[f"{name}.bias"] = keep
    return model.eval(), masks


def told(model: nn.Module) -> nn.Module:
    """The same, told itself that it trains, while its layers are in eval mode."""
    model.eval().training = True
    return model


def equal(a: Any, b: Any) -> bool:
    pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
    return all(torch.allclose(x, y, rtol=1e-9, atol=1e-9) for x, y in pairs)


def test_heads_that_only_training_calls_become_smaller_and_are_exact() -> None:
    model, masks = made(Heads)
    masked = masked_copy(model, masks)
    plan = speedup.plan(model, INPUT, masks)
    assert plan.report.uncalled == []
    small = plan.apply()
    # a channel may stay to carry the constants of those that went
    assert small.conv1.out_channels in (4, 5) and small.aux[0].in_channels == small.conv1.out_channels
    assert small.aux[0].out_channels == 3 and small.aux_fc.in_features == 3
    assert not any(m.training for m in small.modules())
    with torch.no_grad():
        for x in (INPUT, torch.randn(3, 3, 12, 7, dtype=torch.float64)):
            assert equal(small(x), masked(x))
            assert equal(told(small)(x), told(masked)(x))
            small.eval(), masked.eval()
    small.train()(INPUT)[1].sum().backward()
    assert small.aux_fc.weight.grad.shape == small.aux_fc.weight.shape


def test_arithmetic_of_heads_does_not_count() -> None:
    model, masks = made(Heads)
    alone, _ = made(Heads)
    del alone.aux, alone.aux_fc
    own = {n: m for n, m in masks.items() if not n.startswith("aux")}
    assert speedup.plan(model, INPUT, masks).report.macs == speedup.plan(alone, INPUT, own).report.macs


def test_a_plan_for_heads_goes_with_optimizers_folding_and_files(tmp_path: Any) -> None:
    model, masks = made(Heads)
    masked = masked_copy(model, masks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    told(model)(INPUT)[1].sum().backward()
    optimizer.step()
    small = speedup.plan(model.eval(), INPUT, masks).apply(optimizer=optimizer)
    for p, state in optimizer.state.items():
        assert state["momentum_buffer"] is None or state["momentum_buffer"].shape == p.shape
    speedup.save(small, tmp_path / "small.pt")
    again = speedup.load(made(Heads)[0], tmp_path / "small.pt")
    fused = speedup.plan(made(Heads)[0], INPUT, masks).apply(fuse=True, verify=True)
    with torch.no_grad():
        assert all(equal(m(INPUT), masked(INPUT)) for m in (small, again.eval(), fused.eval()))
        assert equal(told(again)(INPUT), told(masked)(INPUT))


class WithRandom(Heads):
    """What training does besides is random, so that its run is none of eval mode's."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(F.dropout(x, 0.5, self.training))


class WithLabels(Heads):
    """Training wants more than the dummy input has."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        if self.training and labels is None:
            raise ValueError("labels are needed")
        return super().forward(x)


class InItsPlace(Heads):
    """Training goes another way."""

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.relu(self.bn1(self.conv1(x)))
        if self.training:
            return self.aux_fc(self.aux(x))
        return self.fc(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))


class Unused(Heads):
    """Nobody calls them."""

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))


@pytest.mark.parametrize("kind", [WithRandom, WithLabels, InItsPlace, Unused])
def test_what_cannot_be_seen_of_training_stays_as_it_is_and_is_named(kind: type[Heads]) -> None:
    model, masks = made(kind)
    masked = masked_copy(model, masks)
    before = masked.aux.state_dict()
    plan = speedup.plan(model, INPUT, masks)
    assert plan.report.uncalled == ["aux", "aux_fc"]
    assert "not called" in str(plan) and "aux, aux_fc" in plan.explain()
    assert "not called" in plan.explain("aux.0.weight")
    small = plan.apply()
    assert small.fc.in_features < 8 and small.aux_fc.in_features == 6
    assert all(torch.equal(t, before[n]) for n, t in small.aux.state_dict().items())
    with torch.no_grad():
        assert equal(small(INPUT), masked(INPUT))


class Outer(nn.Module):
    """A model with heads inside of one that does not ask whether it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Heads()

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        found = self.inner(x)
        return {"out": found} if isinstance(found, torch.Tensor) else {"aux": found[1], "out": found[0]}


def test_heads_further_inside_and_outputs_in_another_order() -> None:
    model, masks = made(Outer)
    masked = masked_copy(model, masks)
    plan = speedup.plan(model, INPUT, masks, constants="exact")
    small = plan.apply(verify=True)
    assert small.inner.aux_fc.in_features == 3
    with torch.no_grad():
        assert equal(small(INPUT)["out"], masked(INPUT)["out"])
    changed = speedup.plan(made(Outer)[0], INPUT, masks, constants="drop")
    assert len(changed.report.changes) == 1
    assert changed.apply().inner.conv1.out_channels == 4


def test_channel_groups_hold_what_only_training_calls() -> None:
    model, _ = made(Heads)
    groups = speedup.channel_groups(model, INPUT)
    assert any({"conv1.weight", "aux.0.weight"} <= {m.parameter for m in group.members} for group in groups)
    masks = speedup.prune_masks(model, INPUT, "l1", sparsity=0.5)
    small = speedup.plan(model, INPUT, masks).apply(verify=True)
    assert small.aux[0].out_channels == 3 and small.aux_fc.in_features == 3
