"""The conformance kit: good rules pass, wrong ones fail with advice, shy ones are reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from speedup import Constant, Kept, Node, NodeFacts, Registry, Rule, SpeedupError, Unused, default_registry
from speedup.errors import PluginError
from speedup.testing import Case, MissingInference, RuleTests, around, chain, check_rules, registry_of
from speedup.testing.after import check_again, check_moves

pytest_plugins = ["speedup.testing.fixtures"]


class Scale(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.scale = nn.Parameter(torch.ones(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class ScaleRule(Rule):
    name, modules, operands, axes = "scale", (Scale,), ("input", "scale"), "* c, c -> * c"
    annihilates = {"scale": ("input",), "input": ("scale",)}  # noqa: RUF012
    sizes = {"features": "c"}  # noqa: RUF012


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), Scale(6), nn.Linear(6, 3))


def findings(rule: Rule) -> Any:
    registry = Registry.from_rules(*default_registry().rules, rule)
    return check_rules(network, torch.randn(5, 4), [torch.randn(2, 3, 4)], registry=registry, rules=[rule])


class TestTheKitItself(RuleTests):
    """It is used as third parties use it."""

    rules = (ScaleRule(),)
    missing_ok = False

    def cases(self) -> dict[str, Case]:
        function = around(lambda m, x: m.layers[0](x), (2, 4), [Scale(4)], kinds=["filters"])
        return {"net": Case(network, torch.randn(5, 4)), "function": function, "chain": chain((2, 4), Scale(4))}


def test_a_good_rule_lacks_nothing() -> None:
    found = findings(ScaleRule())
    assert found.missing == []
    assert found.asked == {"linear", "scale"}
    assert found.kept["filters+biases"] < 0.6
    assert "rules asked: linear, scale" in str(found)


class Forgets(ScaleRule):
    annihilates = {}  # noqa: RUF012


class KeepsAll(ScaleRule):
    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("rule", "what"),
    [(Forgets(), "output is constant"), (Forgets(), "operand 'input' is read"), (KeepsAll(), "is read")],
)
def test_what_is_missing_is_reported_and_no_failure(rule: Rule, what: str) -> None:
    missing = findings(rule).missing
    assert any("rule 'scale' at 1 (" in line and what in line for line in missing), missing

    class Kit(RuleTests):
        rules = (rule,)

        def cases(self) -> list[Case]:
            return [Case(network, torch.randn(5, 4))]

    with pytest.warns(MissingInference, match="neither infer_from_weight nor"):
        Kit().test_nothing_is_missing(Kit().cases()[0])
    Kit.missing_ok = False
    with pytest.raises(AssertionError, match="neither infer_from_weight nor"):
        Kit().test_nothing_is_missing(Kit().cases()[0])


class NoTanh(ScaleRule):
    def evaluate(self, node: Node, arrays: Any) -> Any:
        return [arrays[0]]


class Unread(ScaleRule):
    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Any]:
        return {"input": Unused(np.roll(facts.unused(2), 1, axis=-1))}


class Plain(ScaleRule):
    """Holds a tensor that neither moves nor is saved."""

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = super().replace(node, keep)
        module.__dict__["kept"] = torch.ones(3)
        return module


class Retrained(ScaleRule):
    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = super().replace(node, keep)
        return module.train()


class Detached(ScaleRule):
    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = super().replace(node, keep)
        module.scale.requires_grad_(False)
        return module


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (NoTanh(), "not the constant that it is said to be|the rule says that entries are constant"),
        (Unread(), "depends on entries of operand 'input'|takes back an unused entry|does not give the same answers"),
        (Plain(), r"tensors that neither move nor are saved: 1.kept. `replace` put them there"),
        (Detached(), "requires_grad changed: 1.scale; look at `replace`"),
    ],
)
def test_what_is_wrong_fails_and_says_where_to_look(rule: Rule, message: str) -> None:
    with pytest.raises((AssertionError, SpeedupError), match=message) as caught:
        findings(rule)
    text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "random_masks(model, 0, " in text, "how to see it again"


def test_a_model_that_never_calls_the_op_shows_nothing() -> None:
    rule = ScaleRule(name="other")
    registry = Registry.from_rules(*default_registry().rules, rule)
    with pytest.raises(AssertionError, match="no call of the model belongs to the rules other"):
        check_rules(lambda: nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2), registry=registry, rules=[rule])

    class Kit(RuleTests):
        rules = (rule,)

        def cases(self) -> list[Case]:
            return [chain((2, 4), nn.ReLU())]

    with pytest.raises(AssertionError, match="no case has a call for these rules: other"):
        Kit().test_every_rule_has_a_case()
    Kit.unasked = ("other",)
    Kit().test_every_rule_has_a_case()


def test_plugins_under_test_must_be_there() -> None:
    class Kit(RuleTests):
        plugins = ("no-such-plugin",)

        def cases(self) -> list[Case]:
            return [chain((2, 4), nn.ReLU())]

    with pytest.raises(AssertionError, match="no plugin 'no-such-plugin' is installed"):
        Kit().test_every_rule_has_a_case()
    with pytest.raises(NotImplementedError, match=r"must say in cases\(\)"):
        RuleTests().cases()


def test_a_small_model_that_shrinks_again_is_found() -> None:
    class Zeros(Rule):
        """Takes weights that happen to be 0 for masked."""

        name, modules, operands, axes = "scale", (Scale,), ("input", "scale"), "* c, c -> * c"
        sizes = {"features": "c"}  # noqa: RUF012

        def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Any]:
            zero = np.equal(facts.value(1), 0)[None]
            return {"input": Unused(zero), "output": Constant(zero, np.zeros(zero.shape))}

    model = network().double().eval()
    model[1].scale.data[2] = 0.0
    registry = Registry.from_rules(*default_registry().rules, Zeros())
    with pytest.raises(AssertionError, match=r"planned again without masks, more goes: 0.weight.*facts\.zero"):
        check_again(model, torch.randn(2, 4), registry)


def test_a_small_model_of_another_dtype_is_found() -> None:
    masked, small = network().double(), network().double()
    small.register_forward_hook(lambda module, args, output: output.double())
    with pytest.raises(AssertionError, match=r"moved to torch.float32, output 0 of the small model .* torch.float64"):
        check_moves(masked, small, torch.randn(2, 4))


def test_a_registry_of_the_plugins_under_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = registry_of("linear", rules=[ScaleRule()])
    assert {plugin.name for plugin in registry.plugins if plugin.rules} == {"linear", "from_rules"}
    assert registry.for_type(nn.ReLU) is None and registry.for_type(Scale) is not None
    with pytest.raises(PluginError, match="no plugin 'liner' is installed"):
        registry_of("liner")
    monkeypatch.setenv("SPEEDUP_DISABLE_PLUGINS", "linear")
    with pytest.raises(PluginError, match="'linear' is disabled by the environment"):
        registry_of("linear")


def test_the_fixture_makes_plugins_the_only_ones(only_plugins: Any) -> None:
    registry = only_plugins("linear")
    assert default_registry() is registry
    assert {plugin.name for plugin in registry.plugins if plugin.rules} == {"linear"}
    assert registry.for_type(nn.ReLU) is None
