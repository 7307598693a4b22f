"""Chaotic models: rounding that grows on the way is excused, and what is wrong in such a model is still found."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

import speedup
from speedup import Floats, Kept, Node, Registry, Rule, default_registry
from speedup.masking import Masking
from speedup.shaking import Shaken
from speedup.testing import Masks, mask_indices, masked_copy, randomize


class Scale(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class ScaleRule(Rule):
    """Right, but that the new layer is off by a factor."""

    def __init__(self, path: str, error: float) -> None:
        super().__init__(name="scale of the test", modules=(Scale,), operands=("input", "weight"), axes="* c, c -> * c")
        self.path, self.error = path, error

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        x, weight = arrays
        return None if x is None or weight is None else [x * weight]

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = Scale(0)
        module.weight = nn.Parameter(keep.tensors["weight"] * (1 + self.error * (node.path == self.path)))
        return module


class Tower(nn.Module):
    """Each layer makes differences several times as large: 20 layers make 1e-16 about 1e-7."""

    def __init__(self, depth: int = 20, size: int = 16) -> None:
        super().__init__()
        self.start = nn.Linear(6, size)
        self.first = Scale(size)
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(depth))
        self.last = Scale(size)
        self.out = nn.Linear(size, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(self.start(x))
        for layer in self.layers:
            y = self.step(layer, y)
        result: torch.Tensor = self.out(self.last(y))
        return result

    def step(self, layer: nn.Module, y: torch.Tensor) -> torch.Tensor:
        return torch.sin(6 * layer(y))


class InPlace(Tower):
    """Changes its activations in place, and through views."""

    def step(self, layer: nn.Module, y: torch.Tensor) -> torch.Tensor:
        z = layer(y).mul_(6)
        z[:2].neg_()
        z.t().sin_()
        z += 0.1 * y
        return z


class Sin(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin()


class Sized(Tower):
    """Holds a size."""

    def step(self, layer: nn.Module, y: torch.Tensor) -> torch.Tensor:
        return torch.sin(6 * layer(y)).view(-1, 16)


def tower(depth: int = 20, kind: type[Tower] = Tower) -> tuple[Tower, Masks]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        net = randomize(kind(depth)).double().eval()
        with torch.no_grad():
            for layer in net.layers:
                layer.weight.copy_(torch.randn(16, 16, dtype=torch.float64) / 4)
    names = ["start", *(f"layers.{i}" for i in range(depth))]
    gone = {f"{name}.weight": [2, 5, 7] for name in names}
    # Constants that go through changes in place stay.
    gone |= {f"{name}.bias": [2, 5, 7] if kind is InPlace else [2] for name in names}
    return net, mask_indices(net, gone)


def registry(path: str = "", error: float = 0.0) -> Registry:
    return Registry.from_rules(*default_registry().rules, ScaleRule(path, error))


X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize(("kind", "depth"), [(Tower, 20), (InPlace, 20), (Sized, 20)])
def test_a_right_plan_of_a_chaotic_model_is_accepted_and_says_so(kind: type[Tower], depth: int) -> None:
    net, masks = tower(depth, kind)
    wanted = masked_copy(net, masks)(X)
    plan = speedup.plan(net, X, masks, registry=registry())
    (effect,) = plan.report.effects
    assert 1e-10 < effect < 1e-3
    assert "ill-conditioned" in str(plan).replace("\n", " ") and "ill-conditioned" in plan._repr_html_()
    assert plan.to_dict()["effects"] == [effect]
    small = plan.apply()
    assert small.start.weight.shape == (13, 6)  # type: ignore[union-attr]
    assert small.layers[9].weight.shape == (13, 13)  # type: ignore[index, union-attr]
    gap = far(wanted, small(X))
    assert 1e-8 < gap < 1e-3, "the case does not show what it should"


@pytest.mark.parametrize(("path", "error"), [("first", 1e-11), ("first", 1e-4), ("last", 1e-9), ("last", 1e-4)])
def test_a_mistake_cannot_hide_behind_rounding(path: str, error: float) -> None:
    net, masks = tower()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(speedup.CheckError, match=rf"first at {path} .*'scale of the test'.*it differs by"):
        speedup.plan(net, X, masks, registry=registry(path, error))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("dtype", "depth", "say"), [(torch.float32, 20, r"model\.double\(\)"), (torch.float64, 60, "grow")]
)
def test_a_model_of_which_nothing_can_be_seen_is_refused_with_advice(dtype: torch.dtype, depth: int, say: str) -> None:
    net, masks = tower(depth)
    net.to(dtype)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(speedup.CheckError, match=rf"too ill-conditioned.*nothing was changed.*last digit.*{say}"):
        speedup.plan(net, X.to(dtype), masks, registry=registry())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with pytest.raises(speedup.CheckError, match="first at last"):
        speedup.plan(net, X.to(dtype), masks, registry=registry("last", 1e-2))


def test_the_way_that_the_advice_names_works() -> None:
    net, masks = tower()
    net.float()
    small = speedup.ModelSpeedup(net.double(), X, masks, registry=registry()).speedup_model().float()
    assert small.start.weight.shape == (13, 6) and small(X.float()).dtype == torch.float32  # type: ignore[union-attr]


def test_norms_that_take_up_the_constants_of_layers_in_front_are_no_mistakes() -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(5)
        parts: list[nn.Module] = []
        for i in range(14):
            parts += [nn.Conv2d(3 if i == 0 else 16, 16, 1 + 2 * (i % 2), bias=False), nn.BatchNorm2d(16), Sin()]
        net = randomize(nn.Sequential(*parts, nn.Flatten(), nn.Linear(256, 2)).double().eval())
        x = torch.randn(2, 3, 18, 18, dtype=torch.float64)
        with torch.no_grad():
            for norm in net:
                if isinstance(norm, nn.BatchNorm2d):
                    norm.weight.mul_(6)
    masks = mask_indices(net, {f"{3 * i}.weight": [i % 16, (i * 5 + 3) % 16] for i in range(14)})
    plan = speedup.plan(net, x, masks)
    assert plan.report.effects, "the case does not show what it should"
    assert plan.apply()[3].weight.shape == (14, 14, 3, 3)  # type: ignore[index, union-attr]


# -- what is asked only where it must be ------------------------------------------------------------------------------


def unmeasured(*args: Any) -> None:
    raise AssertionError("was measured")


def test_nothing_is_measured_of_other_models_nor_of_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speedup.conditioning.effects", unmeasured)
    net, masks = tower(2)
    assert speedup.plan(net, X, masks, registry=registry()).report.effects == []
    for path in ("first", "last"):
        with pytest.raises(speedup.CheckError, match="scale of the test"):
            speedup.plan(net, X, masks, registry=registry(path, 1e-6))


# -- verify -----------------------------------------------------------------------------------------------------------


def test_verify_excuses_rounding_and_nothing_else() -> None:
    net, masks = tower()
    small = speedup.ModelSpeedup(copy.deepcopy(net), X, masks, registry=registry(), verify=True).speedup_model()
    report = speedup.verify(net, small, X, masks)
    assert report, report
    assert all(1e-8 < c.relative < c.allowed <= 1e-2 and 0 < c.effect < 1e-3 for c in report.comparisons if c.effect)
    assert any(c.effect for c in report.comparisons) and "ill-conditioned" in str(report)
    with torch.no_grad():
        small.out.weight[0, 0] *= 1.1  # type: ignore[index, operator, union-attr]
    assert not speedup.verify(net, small, X, masks)
    assert not speedup.verify(masked_copy(net, masks), small, X)


def test_what_makes_a_small_model_faster_is_excused_too() -> None:
    net, masks = tower()
    plan = speedup.plan(net, X, masks, registry=registry())
    plan.apply(fuse=True, channels_last=True)


# -- other last digits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("whole", [False, True])
def test_shaking_moves_last_digits_and_puts_them_back(dtype: torch.dtype, whole: bool) -> None:
    net = nn.ModuleDict({"a": nn.Linear(50, 40), "b": nn.Linear(40, 3)}).to(dtype)
    net.register_parameter("count", nn.Parameter(torch.arange(4), requires_grad=False))
    mask = torch.rand(40, 50) > 0.3
    before = {n: (p.data_ptr(), p.clone()) for n, p in net.named_parameters()}
    state = torch.random.get_rng_state()
    seen = []
    for number in (0, 0, 1):
        shaken = Shaken(net, Masking(net, {"a.weight": mask}), number, whole=whole)
        with pytest.raises(KeyboardInterrupt), shaken.run():
            shaken.mask(net.parameters())
            seen.append([p.clone() for p in net.parameters()])
            raise KeyboardInterrupt
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True)), "not the same again"
    assert not torch.equal(seen[0][1], seen[2][1]), "always the same"
    for (name, (_, old)), new in zip(before.items(), seen[0], strict=True):
        old = old * mask if name == "a.weight" else old
        if name == "count":
            assert torch.equal(old, new)
            continue
        moved = (new - old).abs() / old.abs().clamp_min(1e-7)
        assert torch.equal(new == 0, old == 0)
        assert float(moved.max()) < 2.1 * torch.finfo(dtype).eps
        assert float((new != old).double().mean()) > (0.5 if name == "a.weight" else 0.9)
    assert torch.equal(state, torch.random.get_rng_state())
    for name, parameter in net.named_parameters():
        assert parameter.data_ptr() == before[name][0] and torch.equal(parameter, before[name][1])
