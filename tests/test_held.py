"""Parameters that modules hold a second time, in lists, dicts and optimizers: masked, cut and saved all the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.testing import check_equal, mask_indices, random_masks, randomize

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Two(nn.Module):
    """Two layers, and nothing that holds their parameters besides."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.hold()

    def hold(self) -> None: ...

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu())


class Listed(Two):
    """They are read from the module, though a list holds them."""

    def hold(self) -> None:
        self.all = list(self.parameters())


class Agent(Two):
    def hold(self) -> None:
        self.optimizer = torch.optim.Adam(self.parameters())


class Read(Two):
    def hold(self) -> None:
        self.weights = [{"a": (self.a.weight, self.a.bias)}, self.b.weight]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x, *self.weights[0]["a"]).relu(), self.weights[1], self.b.bias)


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.v, self.w = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(3, 8))
        self.layers = [self.v, self.w]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight in self.layers:
            x = F.linear(x, weight)
        return x


class Reader(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.tensors = {"weight": layer.weight, "bias": layer.bias}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, **self.tensors)


class Elsewhere(Two):
    def hold(self) -> None:
        self.reader = Reader(self.a)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.reader(x).relu())


class Compiled(Two):
    """A compiled layer has a function with the attributes of the layer."""

    def hold(self) -> None:
        self.a = torch.compile(self.a, backend="eager")


KINDS = [Listed, Agent, Read, Raw, Elsewhere, Compiled]


@pytest.mark.parametrize("kind", KINDS)
def test_masks_count_and_rows_go(kind: type[nn.Module]) -> None:
    model = randomize(kind())
    name = {Raw: "v", Compiled: "a._orig_mod.weight"}.get(kind, "a.weight")
    result = check_equal(model, X, mask_indices(model, {name: [0, 3, 5]}), [X[:1]])
    assert result.shape(name)[0] == 5
    for masks in ("fine", "mixed"):
        check_equal(model, X, random_masks(model, 1, masks), [X[:1]])


@pytest.mark.parametrize("kind", [Listed, Read, Raw, Elsewhere])
def test_saved_copied_and_put_back(kind: type[nn.Module], tmp_path: Path) -> None:
    model = randomize(kind()).double().eval()
    before = model(X)
    masks = mask_indices(model, {"v" if kind is Raw else "a.weight": [0, 3, 5]})
    with pytest.raises(speedup.InputError):
        speedup.plan(model, X, masks).apply(optimizer="adam")
    assert torch.equal(model(X), before)
    small = speedup.plan(model, X, masks).apply()
    speedup.save(small, tmp_path / "small")
    loaded = speedup.load(kind().double().eval(), tmp_path / "small")
    for other in (copy.deepcopy(small), loaded):
        assert torch.equal(other(X), small(X))
    held = {id(t) for t in loaded.parameters()}
    assert all(id(t) in held for t in _tensors(vars(getattr(loaded, "reader", loaded))))


def _tensors(attributes: dict[str, Any]) -> list[torch.Tensor]:
    return [t for name in ("all", "layers", "weights") for t in attributes.get(name, ()) if isinstance(t, torch.Tensor)]


class Closed(Two):
    """A function with a parameter of its own can be given no other."""

    def hold(self) -> None:
        weight = self.a.weight
        self.first = lambda x: F.linear(x, weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.first(x).relu())


def test_out_of_reach_is_refused() -> None:
    """The check used to take what the call gives for a decision that rounding had tipped."""
    model = randomize(Closed()).double().eval()
    with pytest.raises(speedup.CheckError, match=r"a\.weight is held by 'first' too, .* read it from its module"):
        speedup.plan(model, X, mask_indices(model, {"a.weight": [0, 3, 5]}))


class View(Two):
    """A tensor of its own in the memory of a parameter."""

    def hold(self) -> None:
        self.register_buffer("view", self.a.weight.detach()[:4])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + F.linear(x, self.view)[:, :3]


class SameMemory(Two):
    def hold(self) -> None:
        self.c = nn.Linear(4, 8, dtype=self.a.weight.dtype)
        self.c.weight = nn.Parameter(self.a.weight.data)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.b(self.c(x))


@pytest.mark.parametrize(("kind", "other"), [(View, "view"), (SameMemory, r"c\.weight")])
def test_masked_entries_that_another_tensor_holds_are_refused(kind: type[Two], other: str) -> None:
    """The view kept what the mask drops, and gave it out."""
    model = kind().double().eval()
    model.hold()
    with pytest.raises(speedup.InputError, match=rf"'{other}' is in the memory of 'a\.weight'.* hold a copy \(clone\)"):
        speedup.plan(model, X, mask_indices(model, {"a.weight": [0, 5]}))
    if kind is View:  # which reads nothing there
        assert speedup.plan(model, X, mask_indices(model, {"a.weight": [5, 6]})).apply().a.out_features == 6
    else:
        masks = mask_indices(model, {"a.weight": [0, 5], "c.weight": [0, 5]})
        speedup.plan(model, X, masks).apply(verify=True)


class OneMemory(Two):
    """All parameters in one piece of memory, as optimizers and devices like it."""

    def hold(self) -> None:
        whole, at = torch.cat([p.detach().flatten() for p in self.parameters()]), 0
        for parameter in self.parameters():
            parameter.data = whole[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()


def test_parameters_side_by_side_are_no_views() -> None:
    model = randomize(OneMemory()).double().eval()
    model.hold()
    small = speedup.plan(model, X, mask_indices(model, {"a.weight": [0, 3]})).apply(verify=True)
    assert small.a.out_features == 6


class WithNothing(Two):
    """As of an option that is off: parameters and buffers that hold no entries."""

    def __init__(self, use: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.use = use
        self.wide, self.tall = nn.Parameter(torch.empty(0, 8)), nn.Parameter(torch.empty(8, 0))
        self.register_buffer("line", torch.empty(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.b(self.use(self, self.a(x)))
        return made


NOTHING: tuple[Callable[[Any, torch.Tensor], torch.Tensor], ...] = (
    lambda m, y: y + m.wide.sum(0),
    lambda m, y: y + (m.tall @ m.wide)[0],
    lambda m, y: y + (m.tall * m.line).sum(1),
    lambda m, y: torch.cat([y, m.line.expand(len(y), 0)], 1),
    lambda m, y: torch.cat([y, (m.line * 2 + 1).unsqueeze(0).repeat(len(y), 1)], 1),
    lambda m, y: torch.cat([y, y[:, :0] * m.line + m.line], 1),
)


@pytest.mark.parametrize("use", NOTHING)
@pytest.mark.parametrize("masked", [True, False])
def test_tensors_without_entries_say_nothing(use: Callable[[Any, torch.Tensor], torch.Tensor], masked: bool) -> None:
    model = randomize(WithNothing(use).double(), seed=0)
    masks = mask_indices(model, {"a.weight": (1, 2, 5), "a.bias": (1, 2, 5)})
    if masked:
        masks[""] = {"wide": torch.ones(0, 8), "tall": torch.zeros(8, 0)}
    result = check_equal(model, X, masks)
    assert result.shape("a.weight") == (5, 4) and result.shape("b.weight") == (3, 5)
