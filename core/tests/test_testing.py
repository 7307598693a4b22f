"""The helpers for tests of rules: contents and masks are what they say, and the check can fail."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from speedup import CheckError, Floats, Kept, MaskError, Node, Registry, Rule
from speedup.masks import normalize_masks
from speedup.testing import KINDS, check_equal, mask_indices, masked_copy, random_masks, randomize

LINEAR = Rule(
    name="linear",
    modules=(nn.Linear,),
    operands=("input", "weight", "bias"),
    axes="* i, o i, o? -> * o",
    sizes={"in_features": "i", "out_features": "o"},
    bias="bias",
)
RELU = Rule(name="relu", modules=(nn.ReLU,), operands=("input",), axes="* -> *")


class Scale(nn.Module):
    """y = x * scale + shift, along the last axis."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + self.shift


class ScaleRule(Rule):
    modules = (Scale,)
    operands = ("input", "scale", "shift")
    axes = "* c, c, c -> * c"
    annihilates = {"scale": ("input",)}  # noqa: RUF012


def scaled() -> nn.Sequential:
    return randomize(nn.Sequential(nn.Linear(5, 8), Scale(8), nn.ReLU(), nn.Linear(8, 3)))


def registry(scale: Rule) -> Registry:
    return Registry.from_rules(LINEAR, RELU, scale)


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


# -- random contents ------------------------------------------------------------------------------------------------


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.slopes = nn.Linear(40, 30), nn.BatchNorm1d(30), nn.PReLU(30)
        self.raw, self.scalar = nn.Parameter(torch.zeros(2, 3, 4)), nn.Parameter(torch.ones(()))
        self.register_buffer("positions", torch.arange(5.0))
        self.register_buffer("index", torch.zeros(4, dtype=torch.long))
        self.register_buffer("nothing", torch.empty(0))


def test_randomize_leaves_nothing_trivial() -> None:
    model = Everything()
    before = copy.deepcopy(model.state_dict())
    assert randomize(model, seed=1) is model
    after = model.state_dict()
    same = {name for name in after if torch.equal(before[name], after[name])}
    assert same == {"positions", "index", "nothing", "norm.num_batches_tracked"}
    for name in ("linear.bias", "norm.weight", "norm.bias", "norm.running_mean", "slopes.weight"):
        assert (after[name] > 0).any() and (after[name] < 0).any(), name
        assert len(after[name].unique()) == 30, name


def test_randomize_keeps_a_model_that_can_be_computed_with() -> None:
    model = randomize(Everything(), seed=1)
    assert (model.norm.running_var > 0.4).all()
    assert (model.norm.weight.abs() > 0.4).all()
    wide = randomize(nn.Sequential(*[layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.ReLU())]))
    assert 0.01 < float(wide(torch.randn(8, 64)).detach().abs().mean()) < 100


def test_randomize_depends_on_its_seed_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = (randomize(Everything(), seed).linear.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.set_rng_state(state)
    expected = torch.rand(3)
    torch.set_rng_state(state)
    model = nn.Identity()
    model.weight = nn.Parameter(torch.zeros(3, 3))
    randomize(model, 5)
    random_masks(model, 5)
    assert torch.equal(torch.rand(3), expected)


# -- random masks ---------------------------------------------------------------------------------------------------


def deep() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.PReLU(), nn.Linear(16, 16, bias=False)
    )


def lines(mask: torch.Tensor, axis: int) -> set[int]:
    """The indices along an axis that are masked whole; asserts that nothing else is."""
    other = tuple(a for a in range(mask.ndim) if a != axis)
    gone = (mask == 0).all(dim=other) if other else mask == 0
    assert int((mask == 0).sum()) == int(gone.sum()) * (mask.numel() // mask.shape[axis])
    return set(torch.nonzero(gone).flatten().tolist())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_masks_of_every_kind_are_masks(kind: str, seed: int) -> None:
    model = deep()
    keeps = normalize_masks(model, random_masks(model, seed, kind))
    assert any(not keep.all() for keep in keeps.values())
    if kind != "whole":
        assert all(keep.any() for keep in keeps.values())


@pytest.mark.parametrize(("kind", "axis"), [("filters", 0), ("filters+biases", 0), ("columns", 1)])
def test_whole_lines_are_masked_unaligned(kind: str, axis: int) -> None:
    masks = random_masks(deep(), 3, kind)
    assert set(masks) == {"0", "2", "4"}
    masked = [lines(masks[path]["weight"], axis) for path in ("0", "2", "4")]
    assert all(2 <= len(gone) <= 14 for gone in masked)
    assert masked[0] != masked[1] != masked[2] != masked[0]


def test_biases_of_masked_filters() -> None:
    both = random_masks(deep(), 0, "filters+biases")
    assert all(lines(both[path]["bias"], 0) == lines(both[path]["weight"], 0) for path in ("0", "2"))
    some = ["bias" in random_masks(deep(), seed, "filters")["0"] for seed in range(20)]
    assert 3 < sum(some) < 17
    assert not any("bias" in own for own in random_masks(deep(), 0, "columns").values())


def test_masks_of_biases_alone() -> None:
    alike = []
    for seed in range(20):
        masks = random_masks(deep(), seed, "biases")
        assert {path: set(own) for path, own in masks.items()} == {
            "0": {"bias"},
            "1": {"weight", "bias"},
            "2": {"bias"},
            "3": {"weight"},
        }
        alike.append(torch.equal(masks["1"]["weight"], masks["1"]["bias"]))
    assert 3 < sum(alike) < 17


def test_masks_of_single_entries() -> None:
    mask = random_masks(deep(), 0, "fine", share=0.75)["2"]["weight"]
    assert 0.15 < float(mask.mean()) < 0.35
    assert not (mask == 0).all(dim=1).any()


def test_one_layer_masked_whole() -> None:
    seen = set()
    for seed in range(20):
        ((path, own),) = random_masks(deep(), seed, "whole").items()
        assert not any(mask.any() for mask in own.values())
        seen.add((path, len(own)))
    assert seen == {("0", 1), ("0", 2), ("2", 1), ("2", 2), ("4", 1)}


def test_mixed_masks_vary() -> None:
    shapes = {tuple(sorted((p, *own) for p, own in random_masks(deep(), seed, "mixed").items())) for seed in range(20)}
    assert len(shapes) > 10


def test_masks_depend_on_their_seed_alone() -> None:
    one, same, other = (random_masks(deep(), seed, "mixed") for seed in (1, 1, 2))
    assert {p: set(own) for p, own in one.items()} == {p: set(own) for p, own in same.items()}
    assert all(torch.equal(one[p][n], same[p][n]) for p in one for n in one[p])
    assert str(one) != str(other)


def test_masks_that_cannot_be_made() -> None:
    with pytest.raises(ValueError, match=r"no kind of masks 'filter'; kinds: filters, filters\+biases"):
        random_masks(deep(), 0, "filter")
    with pytest.raises(ValueError, match="no parameter for masks of kind 'columns'"):
        random_masks(nn.BatchNorm1d(3), 0, "columns")
    assert set(random_masks(nn.BatchNorm1d(3), 0, "biases")) == {""}


def test_mask_indices() -> None:
    masks = mask_indices(deep(), {"0.weight": [1, 2], "0.bias": [0]})
    assert set(masks) == {"0"}
    assert lines(masks["0"]["weight"], 0) == {1, 2}
    assert lines(masks["0"]["bias"], 0) == {0}
    assert lines(mask_indices(deep(), {"2.weight": [15]}, axis=1)["2"]["weight"], 1) == {15}


def test_masked_copy() -> None:
    model = randomize(deep())
    before = copy.deepcopy(model.state_dict())
    masked = masked_copy(model, mask_indices(model, {"0.weight": [1], "1.bias": [2, 3]}))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    after = masked.state_dict()
    assert not after["0.weight"][1].any() and not after["1.bias"][2:4].any()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"0.weight", "1.bias"}
    with pytest.raises(MaskError):
        masked_copy(model, {"0": {"weight": torch.ones(3)}})


# -- the check ------------------------------------------------------------------------------------------------------


def test_what_is_found_of_a_good_rule() -> None:
    model = scaled().train()
    before = copy.deepcopy(model.state_dict())
    masks = mask_indices(model, {"0.weight": [0, 1], "1.scale": [2]})
    result = check_equal(model, rows(4), masks, [rows(1), rows(7)[0]], registry(ScaleRule()))
    assert [result.shape(name) for name in ("0.weight", "1.scale", "3.weight")] == [(5, 5), (5,), (3, 5)]
    assert result.kept == pytest.approx((5 * 5 + 5 + 5 + 5 + 3 * 5 + 3) / (8 * 5 + 8 + 8 + 8 + 3 * 8 + 3))
    assert result.error < 1e-14
    assert result.plan.report.parameters[1] == sum(p.numel() for p in result.model.parameters())
    assert all(module.training for module in result.model.modules())
    assert all(p.grad is None for p in result.model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model[0].weight.dtype == torch.float32


def test_a_barrier_keeps_everything_and_is_fine() -> None:
    model = scaled()
    masks = mask_indices(model, {"0.weight": [0, 1]})
    result = check_equal(model, rows(4), masks, registry=Registry.from_rules(LINEAR))
    assert result.kept == 1.0


class ForgetsTheShift(ScaleRule):
    """Takes a constant 0 for the output where the scale is 0."""

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats]:
        x, scale, _ = (np.zeros(1) if a is None else a for a in arrays)
        return [x * scale]


def test_a_rule_that_is_wrong_on_the_dummy_input() -> None:
    model = scaled()
    with pytest.raises(CheckError, match="Scale"):
        check_equal(model, rows(4), mask_indices(model, {"1.scale": [0, 1]}), registry=registry(ForgetsTheShift()))


class Mean(nn.Module):
    """The sum of the rows over four: their mean where there are four."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(0, keepdim=True) / 4 + 0 * x


class MeanRule(Rule):
    modules = (Mean,)
    operands = ("input",)
    axes = "~n c -> ~n c"

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        return None if arrays[0] is None else [arrays[0]]


def test_a_fact_of_the_size_of_the_dummy_input() -> None:
    model = randomize(nn.Sequential(nn.Linear(5, 8), Mean(), nn.Linear(8, 3)))
    masks = mask_indices(model, {"0.weight": [0, 1]})
    rules = Registry.from_rules(LINEAR, MeanRule())
    assert check_equal(model, rows(4), masks, registry=rules).shape("0.weight") == (6, 5)
    with pytest.raises(AssertionError, match=r"on other_inputs\[1\] output 0 differs by .* most at .*"):
        check_equal(model, rows(4), masks, [rows(4, 1), rows(6)], registry=rules)


class Exp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()


class NearlyExp(Rule):
    """Right for four rows; for others its constants are off in the ninth digit."""

    modules = (Exp,)
    operands = ("input",)
    axes = "* -> *"

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        assert arrays[0] is not None
        return [np.exp(arrays[0]) * (1 if node.outputs[0].shape[0] == 4 else 1 + 1e-8)]


def test_the_tolerance_is_finer_than_the_one_of_the_speedup() -> None:
    """A fold that is right to nine digits only passes the speedup's own check, not this one."""
    model = randomize(nn.Sequential(nn.Linear(5, 8), Exp(), nn.Linear(8, 3)))
    masks = mask_indices(model, {"0.weight": [0, 1]})
    rules = Registry.from_rules(LINEAR, NearlyExp())
    assert check_equal(model, rows(4), masks, [rows(6)], rules).error < 1e-12
    with pytest.raises((AssertionError, CheckError), match="differs by"):
        check_equal(model, rows(6), masks, registry=rules, tolerance=1e-12)
    assert 1e-12 < check_equal(model, rows(6), masks, registry=rules, tolerance=1e-6).error < 1e-6


class Grows(ScaleRule):
    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = super().replace(node, keep)
        module.register_parameter("more", nn.Parameter(torch.zeros(1000)))
        return module


class Freezes(ScaleRule):
    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = super().replace(node, keep)
        module.scale.requires_grad_(False)
        return module


class Detaches(ScaleRule):
    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module: Any = Halved(super().replace(node, keep))
        return module


class Halved(nn.Module):
    """Computes with a copy of the scale, so that no gradient reaches the scale itself."""

    def __init__(self, scale: nn.Module) -> None:
        super().__init__()
        self.scale, self.shift = scale.scale, scale.shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale.detach() + self.shift


class Caches(ScaleRule):
    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = super().replace(node, keep)
        with torch.enable_grad():
            module.cache = module.scale * 2
        return module


class Trains(ScaleRule):
    def replace(self, node: Node, keep: Kept) -> nn.Module:
        inner = super().replace(node, keep).train()
        return nn.Sequential(inner)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Grows, "parameters grew from 91 to"),
        (Freezes, "requires_grad changed: 1.scale"),
        (Detaches, "no gradient reaches 1.scale"),
        (Caches, "the small model cannot be copied and its state_dict loaded"),
        (Trains, "training flags differ: 1.0"),
    ],
)
def test_a_replacement_that_is_no_good(rule: type[Rule], message: str) -> None:
    model = scaled().eval()
    masks = mask_indices(model, {"0.weight": [0, 1]})
    assert check_equal(model, rows(4), masks, registry=registry(ScaleRule())).shape("1.scale") == (6,)
    with pytest.raises(AssertionError, match=message):
        check_equal(model, rows(4), masks, registry=registry(rule()))


def test_a_frozen_parameter_needs_no_gradient() -> None:
    model = scaled()
    model[1].scale.requires_grad_(False)
    masks = mask_indices(model, {"0.weight": [0, 1]})
    result = check_equal(model, rows(4), masks, registry=registry(ScaleRule()))
    assert [n for n, p in result.model.named_parameters() if not p.requires_grad] == ["1.scale"]


def test_outputs_in_containers_are_compared_one_by_one() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = scaled(), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor, *, half: bool) -> dict[str, Any]:
            hidden = self.body[1](self.body[0](x))
            return {"name": "several", "out": [self.body[3](hidden), self.head(hidden)], "half": half}

    model = randomize(Several())
    masks = mask_indices(model, {"body.0.weight": [0, 1]})
    inputs = {"x": rows(4), "half": True}
    result = check_equal(model, inputs, masks, [{"x": rows(2), "half": False}], registry(ScaleRule()))
    assert result.shape("head.weight") == (2, 6)
