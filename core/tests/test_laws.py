"""check_laws passes good rules, and finds each kind of bad one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from speedup import Affine, Constant, Fact, Movement, Node, NodeFacts, Registry, Rule, RuleError, Unused
from speedup.testing import check_laws, mask_indices, randomize

LINEAR = Rule(
    name="linear",
    modules=(nn.Linear,),
    operands=("input", "weight", "bias"),
    axes="* i, o i, o? -> * o",
    sizes={"in_features": "i", "out_features": "o"},
    bias="bias",
)
RELU = Rule(name="relu", modules=(nn.ReLU,), operands=("input",), axes="* -> *")
FLIP = Movement(name="flip", functions=(torch.flip, torch.Tensor.flip))


class Scale(nn.Module):
    """y = x * scale, along the last axis."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.scale, self.relu, self.two = nn.Linear(5, 6), Scale(6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.two(self.relu(self.scale(self.one(x))).flip(-1))
        return result


class ScaleRule(Rule):
    name = "scale"
    modules = (Scale,)
    operands = ("input", "scale")
    axes = "* c, c -> * c"
    annihilates = {"input": ("scale",), "scale": ("input",)}  # noqa: RUF012


def laws(rule: Rule, **options: Any) -> frozenset[str]:
    model = randomize(Net())
    masks = mask_indices(model, {"one.weight": [0, 1], "one.bias": [0], "scale.scale": [3]})
    registry = Registry.from_rules(LINEAR, RELU, FLIP, rule)
    return check_laws(model, torch.randn(4, 5), masks, registry=registry, **options)


@pytest.mark.parametrize("seed", range(3))
def test_good_rules_pass_and_are_named(seed: int) -> None:
    assert laws(ScaleRule(), seed=seed) == {"linear", "relu", "flip", "scale"}


def test_barriers_are_not_asked() -> None:
    assert laws(Rule(name="other", axes="* -> *")) == {"linear", "relu", "flip"}


class Squares(Scale):
    """Claimed by the rule for scales, and none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x * self.scale


def test_what_is_said_to_scale_scales() -> None:
    assert laws(ScaleRule(scales=True)) == {"linear", "relu", "flip", "scale"}
    net = randomize(Net())
    net.scale = randomize(Squares(6))
    rule = ScaleRule(modules=(Squares,), scales=True)
    masks = mask_indices(net, {"one.weight": [0]})
    with pytest.raises(AssertionError, match=r"scales is not true.*no scaled and shifted entry"):
        check_laws(net, torch.randn(4, 5), masks, registry=Registry.from_rules(LINEAR, RELU, FLIP, rule))


class Forgets(ScaleRule):
    """Knows constants only as long as not everything is constant."""

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {} if facts.mask(0).mean() > 0.4 else super().infer_from_input(node, facts)


class ForgetsUnused(ScaleRule):
    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        few = facts.unused(2).mean() < 0.5
        return super().infer_from_output(node, facts) if few else {}


class Changes(ScaleRule):
    """Takes 0 for a constant when it knows more."""

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        found = super().infer_from_input(node, facts).get("output")
        if not isinstance(found, Constant):
            return {}
        value = found.value if found.mask.mean() < 0.5 else found.value * 0
        return {"output": Constant(found.mask, value)}


class Writes(ScaleRule):
    """Changes the facts that it is given."""

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        facts.unused(2)[...] = True
        return super().infer_from_output(node, facts)


class Touches(ScaleRule):
    """Changes a weight."""

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        facts.value(1)[0] += 1
        return super().infer_from_weight(node, facts)


class Alternates(ScaleRule):
    """Says something every other time."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        self.count += 1
        return super().infer_from_output(node, facts) if self.count % 2 else {}


class WrongConstant(ScaleRule):
    """Forgets to multiply."""

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        mask, value = np.broadcast_arrays(facts.mask(0), facts.value(0))
        return {"output": Constant(mask, value)} if mask.any() else {}


class NoConstant(ScaleRule):
    """Takes an entry for constant because its weight is small."""

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        small = np.abs(facts.value(1)) < 1
        return {"output": Constant(small[None], np.zeros(small[None].shape))}


class WrongUnused(ScaleRule):
    """Takes an operand for unused of which the neighbour is."""

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {"input": Unused(np.roll(facts.unused(2), 1, axis=-1))}


class WrongUnusedWeight(ScaleRule):
    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {"scale": Unused(facts.zero(1))}


class WrongAffine(ScaleRule):
    """Says that all entries are multiples of one number."""

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        ones = np.ones((1, 6))
        return {"output": Affine(1, ones > 0, (facts.value(1)[None],), ones * 0)}


class NoMean(ScaleRule):
    """Takes what it makes for the weights of means."""

    def sums_to_one(self, node: Node) -> int | None:
        return -1


class Misshapen(ScaleRule):
    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {"input": Unused(np.zeros(6, dtype=bool))}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Forgets, r"infer_from_input is not monotone: with more facts, entry \(.*\) of output .* no longer constant"),
        (ForgetsUnused, "infer_from_output is not monotone: .* of operand 'input' is no longer unused"),
        (Changes, "not monotone: with more facts, entry .* is another constant|is not the constant"),
        (Alternates, "infer_from_output is not pure: asked again it says another thing of"),
        (WrongConstant, "entry .* is not the constant that it is said to be|is another constant"),
        (NoConstant, "infer_from_weight is not sound: entry .* is not the constant that it is said to be"),
        (WrongUnused, "infer_from_output is not sound: entry .* depends on entries of operand 'input'"),
        (WrongUnusedWeight, "infer_from_output is not sound: entry .* depends on entries of operand 'scale'"),
        (WrongAffine, "infer_from_weight is not sound: entry .* is not the affine that it is said to be"),
        (NoMean, r"sums_to_one is not sound: row \(0,\) along axis 1 has a negative entry, or does not sum up to 1"),
        (Misshapen, r"infer_from_output is not well-formed: a fact of shape \(6,\)|gave a fact of shape"),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_a_rule_that_breaks_a_law_is_found_and_named(rule: type[Rule], message: str, seed: int) -> None:
    with pytest.raises(AssertionError, match=message) as caught:
        laws(rule(), seed=seed, rounds=25)
    assert "rule 'scale' at scale (" in str(caught.value)


@pytest.mark.parametrize(("rule", "method"), [(Writes, "infer_from_output"), (Touches, "infer_from_weight")])
def test_a_rule_that_writes_into_what_it_is_shown_is_refused(rule: type[Rule], method: str) -> None:
    with pytest.raises(RuleError, match=f"rule 'scale' at scale .* in {method}: .* is read-only: make new arrays"):
        laws(rule())


def test_a_rule_that_depends_on_facts_of_another_direction_is_found() -> None:
    """Constants spread first: what is said of them must not wait for unused entries."""

    class Peeks(ScaleRule):
        def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
            return super().infer_from_input(node, facts) if facts.unused(2).any() else {}

    model = randomize(Net())
    masks = mask_indices(model, {"one.weight": [0, 1], "one.bias": [0]})
    masks.update(mask_indices(model, {"two.weight": [0]}, axis=1))
    registry = Registry.from_rules(LINEAR, RELU, FLIP, Peeks())
    with pytest.raises(
        AssertionError, match=r"infer_from_input is not idempotent: asked again at the end, it says more"
    ):
        check_laws(model, torch.randn(4, 5), masks, registry=registry)


def test_the_model_and_the_random_state_are_left_alone() -> None:
    model = randomize(Net()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    registry = Registry.from_rules(LINEAR, RELU, FLIP, ScaleRule())
    check_laws(model, torch.zeros(4, 5), mask_indices(model, {"one.weight": [0]}), registry=registry)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and model.one.weight.dtype == torch.float32
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
