"""Norms that a forward calls as functions, with parameters of a module that does other things too."""

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
from speedup.testing import check_equal, mask_indices, masked_copy, randomize

GONE = (0, 2, 5, 7, 9, 11)
ZEROS = {"a.weight": GONE, "a.bias": GONE}
CONSTANTS = {"a.weight": GONE}
ALL = {**ZEROS, "w": GONE, "b": GONE}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shape, self.eps = (12,), 1e-6
        self.a, self.d = nn.Linear(6, 12), nn.Linear(12, 4)
        self.w, self.b = nn.Parameter(torch.ones(12)), nn.Parameter(torch.zeros(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.d(self.norm(self.a(x)))
        return y

    def norm(self, h: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(h, (12,), self.w, self.b)


class ByShape(Tokens):
    def norm(self, h: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(h, h.shape[-1:], weight=self.w, bias=self.b, eps=self.eps)


class ByAttribute(Tokens):
    def norm(self, h: torch.Tensor) -> torch.Tensor:
        return torch.layer_norm(h, self.shape, self.w, self.b, 1e-5, False)


class Plain(Tokens):
    def norm(self, h: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(h, [h.size(-1)])


class Offset(Tokens):
    def norm(self, h: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(h, (12,), 1 + self.w, self.b)


def helper(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(h, (12,), weight, bias)


class InHelper(Tokens):
    def norm(self, h: torch.Tensor) -> torch.Tensor:
        return helper(h, self.w, self.b)


class InClosure(Tokens):
    def norm(self, h: torch.Tensor) -> torch.Tensor:
        def inner() -> torch.Tensor:
            return F.layer_norm(h, (12,), self.w, self.b)

        return inner()


class RMS(Tokens):
    def norm(self, h: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(h, (12,), self.w, self.eps)


class RMSDefault(Tokens):
    def norm(self, h: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(h, h.shape[-1:], weight=self.w)


class RMSPlain(Tokens):
    def norm(self, h: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(h, (12,), eps=1e-3)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.groups = 1
        self.a, self.d = nn.Conv2d(6, 12, 1), nn.Conv2d(12, 4, 1)
        self.w, self.b = nn.Parameter(torch.ones(12)), nn.Parameter(torch.zeros(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.d(self.norm(self.a(x)))
        return y

    def norm(self, h: torch.Tensor) -> torch.Tensor:
        return F.group_norm(h, self.groups, self.w, self.b, eps=1e-6)


class Groups(Images):
    def norm(self, h: torch.Tensor) -> torch.Tensor:
        return F.group_norm(h, 3, self.w, self.b)


def inputs(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(model, Images):
        return torch.randn(2, 6, 8, 8), torch.randn(3, 6, 5, 9)
    return torch.randn(2, 5, 6), torch.randn(4, 3, 7, 6)[:, 0]


LAYERS = [Tokens, ByShape, ByAttribute, Plain, Offset, InHelper, InClosure, Images]


@pytest.mark.parametrize("kind", [*LAYERS, RMS, RMSDefault, RMSPlain])
def test_constants_go(kind: Callable[[], nn.Module]) -> None:
    model = randomize(kind())
    x, other = inputs(model)
    carriers = 0 if isinstance(model, RMS | RMSDefault | RMSPlain) else 1
    result = check_equal(model, x, mask_indices(model, ZEROS), [other])
    assert result.shape("a.weight")[0] == 6 + carriers
    result = check_equal(model, x, mask_indices(model, CONSTANTS), [other])
    assert result.shape("a.weight")[0] == 7 + carriers


@pytest.mark.parametrize("kind", [Tokens, RMS, Images, Groups])
def test_what_is_not_scaled_needs_no_carrier(kind: Callable[[], nn.Module]) -> None:
    model = randomize(kind())
    x, other = inputs(model)
    result = check_equal(model, x, mask_indices(model, ALL), [other])
    assert result.shape("a.weight")[0] == result.shape("d.weight")[1] == 6 and result.shape("w") == (6,)


def test_a_group_of_zeros_goes_as_a_whole() -> None:
    model = randomize(Groups())
    whole = {name: (4, 5, 6, 7) for name in ALL}
    result = check_equal(model, inputs(model)[0], mask_indices(model, whole), [inputs(model)[1]])
    assert result.shape("a.weight")[0] == 8


def test_constants_of_several_groups_stay() -> None:
    """One number is told to the function for all groups."""
    model = randomize(Groups())
    scaled = {name: GONE for name in ("a.weight", "w", "b")}
    result = check_equal(model, inputs(model)[0], mask_indices(model, scaled), [inputs(model)[1]])
    assert result.shape("a.weight")[0] == 12


class Dynamic(Tokens):
    """The weight is made of the input: behind the norm nothing is known of what was constant."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Linear(6, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.d(F.layer_norm(self.a(x), (12,), self.e(x.mean((0, 1))), self.b))
        return y


def test_a_weight_made_of_the_input() -> None:
    model = randomize(Dynamic())
    result = check_equal(model, inputs(model)[0], mask_indices(model, ZEROS))
    assert result.shape("a.weight")[0] == 12
    gone = mask_indices(model, {**ZEROS, "e.weight": GONE, "e.bias": GONE, "b": GONE})
    assert check_equal(model, inputs(model)[0], gone).shape("a.weight")[0] == 6


@pytest.mark.parametrize("kind", [Tokens, ByAttribute, RMS, Images])
def test_rounds(kind: Callable[[], nn.Module]) -> None:
    model: Any = randomize(kind())
    x, other = inputs(model)
    left = 12
    for count, names in enumerate([("a.weight", "a.bias"), ("a.weight",), ("a.weight", "a.bias", "w", "b")]):
        masks = mask_indices(model, {name: (0, 3) for name in names})
        model = check_equal(model, x, masks, [other]).model
        assert model.a.weight.shape[0] <= left - (count != 1)
        left = model.a.weight.shape[0]
    assert left <= 9


def small_of(kind: Callable[[], nn.Module], masks: Any) -> tuple[Any, nn.Module]:
    model = randomize(kind()).double().eval()
    given = mask_indices(model, masks)
    small = speedup.plan(copy.deepcopy(model), inputs(model)[0].double(), given).apply()
    return small, masked_copy(model, given)


@pytest.mark.parametrize("kind", [ByShape, InHelper, RMS, Images])
def test_copies_pickles_and_training(kind: Callable[[], nn.Module]) -> None:
    small, masked = small_of(kind, CONSTANTS)
    _, x = (t.double() for t in inputs(masked))
    wanted = masked(x)
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(other(x), small(x)) and type(other) is type(small)
        torch.testing.assert_close(other.train()(x), wanted)
    assert isinstance(small, kind)  # type: ignore[arg-type]
    y = x.clone().requires_grad_()
    z = x.clone().requires_grad_()
    small(y).square().sum().backward()
    masked(z).square().sum().backward()
    torch.testing.assert_close(y.grad, z.grad)


@pytest.mark.parametrize("kind", [ByShape, InHelper, RMS, Images])
def test_it_is_saved_and_loaded(kind: Callable[[], nn.Module], tmp_path: object) -> None:
    pytest.importorskip("safetensors")
    small, masked = small_of(kind, CONSTANTS)
    speedup.save(small, f"{tmp_path}/small")
    loaded = speedup.load(randomize(kind()).double().eval(), f"{tmp_path}/small")
    _, x = (t.double() for t in inputs(masked))
    torch.testing.assert_close(loaded(x), masked(x))
    assert type(loaded) is type(small)


@pytest.mark.parametrize("kind", [ByShape, RMS, Images])
def test_it_is_compiled(kind: Callable[[], nn.Module]) -> None:
    small, masked = small_of(kind, CONSTANTS)
    _, x = (t.double() for t in inputs(masked))
    compiled: Any = torch.compile(small, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), masked(x))


@pytest.mark.parametrize("kind", [ByShape, RMS, Images])
def test_half_precision(kind: Callable[[], nn.Module]) -> None:
    model = randomize(kind()).eval()
    masks = mask_indices(model, ZEROS)
    x, other = (t.bfloat16() for t in inputs(model))
    model.bfloat16()
    small = speedup.plan(copy.deepcopy(model), x, masks).apply()
    assert small.a.weight.shape[0] < 8
    got, wanted = small(other), masked_copy(model, masks)(other)
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted, rtol=0.1, atol=0.1)


class Alias(Tokens):
    function = staticmethod(F.layer_norm)

    def norm(self, h: torch.Tensor) -> torch.Tensor:
        return self.function(h, h.shape[-1:], self.w, self.b)


class Twice(Tokens):
    """One call in the source, which would have to be told other numbers when it is made for ``c``."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(6, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.d(self.norm(self.a(x)) + self.norm(self.c(x)))
        return y


@pytest.mark.parametrize("kind", [Alias, Twice])
def test_what_cannot_be_told_stays(kind: Callable[[], nn.Module]) -> None:
    model = randomize(kind())
    x, other = inputs(model)
    gone = {**CONSTANTS, "c.weight": GONE} if kind is Twice else CONSTANTS
    masks = mask_indices(model, gone)
    assert check_equal(model, x, masks, [other]).shape("a.weight")[0] == 12
    assert "function" in speedup.plan(model, x, masks).explain("a")


def test_a_call_that_is_made_twice_counts_zeros() -> None:
    model = randomize(Twice())
    x, other = inputs(model)
    masks = mask_indices(model, {**ZEROS, "c.weight": GONE, "c.bias": GONE})
    assert check_equal(model, x, masks, [other]).shape("a.weight")[0] == 7


def test_the_report_says_what_is_called() -> None:
    model = randomize(ByShape())
    plan = speedup.plan(model, inputs(model)[0], mask_indices(model, ZEROS))
    assert [r.what for r in plan.report.repaired] == [
        "torch.nn.functional.layer_norm: -> speedup_plugin_norm.calls.layer_norm",
        "torch.nn.functional.layer_norm: total=12",
    ]


def test_without_contents() -> None:
    model = Tokens().eval()
    masks = mask_indices(model, ALL)
    plan = speedup.plan(model.to("meta"), torch.empty(2, 5, 6, device="meta"), masks)
    assert plan.report.headline.startswith("parameters 160 -> 82")


class Shifted(nn.Module):
    """A norm over groups of two, of which one or both are constants."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 2, 1)
        self.shift, self.w, self.b = (nn.Parameter(torch.ones(4)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.c(F.group_norm(self.a(x) + self.shift.view(-1, 1, 1), 2, self.w, self.b))
        return y


@pytest.mark.parametrize(("gone", "left"), [([0, 1], 2), ([2, 3], 2), ([0, 1, 3], 2), ([1, 2, 3], 2), ([0, 2], 4)])
def test_a_group_of_constants_goes_and_is_counted_no_more(gone: list[int], left: int) -> None:
    """Two groups of one channel have the shape of one group of two."""
    model = randomize(Shifted())
    model.shift.data = torch.tensor([0.5, -1.0, 2.0, 0.25])
    result = check_equal(
        model, torch.randn(2, 3, 6, 6), mask_indices(model, {"a.weight": gone}), [torch.randn(1, 3, 5, 7)]
    )
    assert result.shape("a.weight")[0] == result.shape("c.weight")[1] == left
