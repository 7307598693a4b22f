"""The registry finds the rule for an op, and settles conflicts only as the user says."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from speedup.errors import InputError, PluginConflictError, PluginError, RuleError
from speedup.names import variants
from speedup.plugins import check_rule
from speedup.registry import Registry, default_registry
from speedup.rule import Rule

InstallPlugin = Callable[..., str]

CLAIM_RELU = """
    from torch import nn
    from speedup.hookspecs import hookimpl
    from speedup.rule import Rule

    @hookimpl
    def speedup_rules():
        return [Rule(name="{name}", modules=(nn.ReLU,))]
"""


def claim(name: str) -> str:
    return CLAIM_RELU.format(name=name)


class Base(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.helper(x)

    def helper(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @classmethod
    def make(cls) -> Base:
        return cls()


BASE = Rule(name="base", modules=(Base,))


def rule_for(kind: type[nn.Module], *rules: Rule) -> Rule | None:
    return Registry.from_rules(*(rules or (BASE,))).for_module(kind())


# -- functions -------------------------------------------------------------------------------------------------------


def test_a_function_is_found_in_all_its_forms() -> None:
    relu = Rule(name="relu", functions=variants("relu"))
    registry = Registry.from_rules(relu)
    assert registry.for_function(F.relu) is relu
    assert registry.for_function(torch.Tensor.relu_) is relu
    assert registry.for_function(torch.sigmoid) is None


def test_a_property_is_found() -> None:
    rule = Rule(name="transpose", functions=variants("T"))
    assert Registry.from_rules(rule).for_function(torch.Tensor.T.__get__) is rule


def test_an_object_that_cannot_be_hashed_is_nobodys() -> None:
    assert Registry.from_rules(BASE).for_function([]) is None


# -- types -----------------------------------------------------------------------------------------------------------


def test_a_type_is_found() -> None:
    assert rule_for(Base) is BASE
    assert rule_for(nn.Identity) is None


def test_a_subclass_that_adds_is_claimed() -> None:
    class Adds(Base):
        """Documented."""

        __constants__ = ("extra",)
        extra: int

        def __init__(self) -> None:
            super().__init__()
            self.extra = 1

        def extra_repr(self) -> str:
            return "extra"

        def more(self) -> int:
            return self.extra

        @classmethod
        def make(cls) -> Base:
            return cls()

    class AddsAgain(Adds):
        pass

    assert rule_for(Adds) is BASE
    assert rule_for(AddsAgain) is BASE


def test_a_subclass_that_changes_is_not_claimed() -> None:
    class Forward(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    class Helper(Base):
        def helper(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    class Static(Base):
        @staticmethod
        def helper(x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return x + 1

    class Call(Base):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    class Attributes(Base):
        def __getattr__(self, name: str) -> Any:
            return super().__getattr__(name)

    class Property(Base):
        @property
        def weight(self) -> int:
            return 1

    class Below(Helper):
        pass

    for kind in (Forward, Helper, Static, Call, Attributes, Property, Below):
        assert rule_for(kind) is None, kind


def test_a_mixin_counts() -> None:
    class Harmless:
        def more(self) -> int:
            return 1

    class Harmful:
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    class Good(Harmless, Base):
        pass

    class Bad(Harmful, Base):  # type: ignore[misc]
        pass

    assert rule_for(Good) is BASE
    assert rule_for(Bad) is None


def test_the_nearest_claimed_base_wins() -> None:
    class Middle(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    class Leaf(Middle):
        pass

    middle = Rule(name="middle", modules=(Middle,))
    assert rule_for(Leaf, BASE, middle) is middle
    assert rule_for(Leaf, middle, BASE) is middle
    assert rule_for(Base, middle, BASE) is BASE


def test_what_overrides_nothing_of_torch_is_claimed() -> None:
    linear = Rule(name="linear", modules=(nn.Linear,))
    registry = Registry.from_rules(linear)
    assert registry.for_module(nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2)) is linear
    changed = nn.Linear(2, 2)
    parametrize.register_parametrization(changed, "weight", nn.Identity())
    assert registry.for_module(changed) is None


def test_a_forward_on_the_instance_is_nobodys() -> None:
    registry = Registry.from_rules(BASE)
    module = Base()
    module.forward = lambda x: x + 1  # type: ignore[method-assign]
    assert registry.for_module(module) is None
    assert registry.for_module(Base()) is BASE


def test_types_are_not_kept_alive() -> None:
    registry = Registry.from_rules(BASE)

    def ask() -> weakref.ref[type]:
        kind = type("Fleeting", (Base,), {})
        assert registry.for_module(kind()) is BASE
        return weakref.ref(kind)

    reference = ask()
    gc.collect()
    assert reference() is None


# -- custom operators --------------------------------------------------------------------------------------------------


def test_an_operator_is_claimed_by_name() -> None:
    """Whichever overload is called, and whether its library is there when the rule is made or not."""
    rule = Rule(name="late", functions=("torch.ops.speedup_late.op",), axes="* -> *")
    registry = Registry.from_rules(rule)
    library = torch.library.Library("speedup_late", "DEF")
    library.define("op(Tensor x) -> Tensor")
    packet = torch.ops.speedup_late.op
    assert registry.for_function(packet) is rule
    assert registry.for_function(packet.default) is rule
    assert registry.for_function(torch.ops.aten.relu) is None


@pytest.mark.parametrize("name", ["roi_align", "torch.relu", "torch.ops.one", "torch.ops.a.b.c"])
def test_a_text_that_names_no_operator(name: str) -> None:
    with pytest.raises(PluginError, match=r"names no operator: write torch\.ops\.library\.name"):
        check_rule(Rule(name="wrong", functions=(name,), axes="* -> *"))


# -- structure -------------------------------------------------------------------------------------------------------


class Frozen(nn.Module):
    def __init__(self, frozen: bool = True) -> None:
        super().__init__()
        self.frozen = frozen


class ByStructure(Rule):
    def claims(self, module: nn.Module) -> bool:
        return bool(getattr(module, "frozen", False))


def test_a_structure_is_asked_per_module() -> None:
    rule = ByStructure(name="frozen")
    registry = Registry.from_rules(BASE, rule)
    assert registry.for_module(Frozen(True)) is rule
    assert registry.for_module(Frozen(False)) is None
    assert registry.for_module(Frozen(True)) is rule


class Choosy(ByStructure):
    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.asked: list[tuple[str, set[str]]] = []

    def may_claim(self, kind: type[nn.Module], held: frozenset[str]) -> bool:
        self.asked.append((kind.__name__, set(held)))
        return kind is Frozen and "scale" in held


def test_what_a_rule_says_of_a_type_and_the_names_that_it_holds_is_remembered() -> None:
    rule = Choosy(name="frozen")
    registry = Registry.from_rules(rule)
    scaled, given = Frozen(), Frozen()
    scaled.scale = nn.Parameter(torch.ones(1))
    given.register_buffer("scale", None)
    assert [registry.for_module(m) for m in (Frozen(), scaled, given, Frozen(), scaled)] == [
        None, rule, rule, None, rule,
    ]  # fmt: skip
    assert rule.asked == [("Frozen", set()), ("Frozen", {"scale"})]


def test_a_type_claim_goes_before_a_structure() -> None:
    by_type = Rule(name="type", modules=(Frozen,))
    assert rule_for(Frozen, ByStructure(name="frozen"), by_type) is by_type


def test_a_rule_that_fails_when_asked_is_named() -> None:
    class Failing(Rule):
        def claims(self, module: nn.Module) -> bool:
            raise ZeroDivisionError("oh")

    with pytest.raises(RuleError, match=r"rule 'failing' failed .*torch\.nn\.Identity: ZeroDivisionError: oh"):
        rule_for(nn.Identity, Failing(name="failing"))


def test_two_structures_conflict() -> None:
    with pytest.raises(PluginConflictError, match="Frozen"):
        rule_for(Frozen, ByStructure(name="one"), ByStructure(name="two"))


# -- conflicts -------------------------------------------------------------------------------------------------------


def test_a_conflict_names_both_and_the_ways_out(install_plugin: InstallPlugin) -> None:
    install_plugin("one", claim("first"), version="1.2")
    install_plugin("two", claim("second"), version="3.4")
    with pytest.raises(PluginConflictError) as caught:
        Registry.load()
    message = str(caught.value)
    for part in ("torch.nn.ReLU", "'one' (fake-one 1.2)", "'two' (fake-two 3.4)", "'first'", "'second'"):
        assert part in message
    for way in ("prefer=['one']", "prefer=['two']", "disable=", "SPEEDUP_DISABLE_PLUGINS"):
        assert way in message


@pytest.mark.parametrize(
    ("options", "winner"),
    [
        ({"prefer": ["one"]}, "first"),
        ({"prefer": ["fake_two"]}, "second"),
        ({"prefer": ["three", "two", "one"], "disable": ["three"]}, "second"),
        ({"prefer": ["three"]}, "third"),
        ({"disable": ["one", "three"]}, "second"),
        ({"only": ["one"]}, "first"),
    ],
)
def test_the_user_settles_a_conflict(options: dict[str, Any], winner: str, install_plugin: InstallPlugin) -> None:
    for plugin, rule in (("one", "first"), ("two", "second"), ("three", "third")):
        install_plugin(plugin, claim(rule))
    rule = Registry.load(**options).for_module(nn.ReLU())
    assert rule is not None
    assert rule.name == winner


def test_a_preference_for_nobody_is_warned_of(install_plugin: InstallPlugin, caplog: pytest.LogCaptureFixture) -> None:
    install_plugin("one")
    with caplog.at_level(logging.WARNING, logger="speedup"):
        Registry.load(prefer=["oone"])
    assert "did you mean 'one'?" in caplog.text
    with pytest.raises(TypeError, match="not one string"):
        Registry.load(prefer="one")


def test_distributions_tell_plugins_of_one_name_apart(install_plugin: InstallPlugin) -> None:
    install_plugin("same", claim("first"), distribution="fake-left")
    install_plugin("same", claim("second"), distribution="fake-right")
    with pytest.raises(PluginConflictError, match=r"prefer=\['fake-left'\] or prefer=\['fake-right'\]"):
        Registry.load(prefer=["same"])
    rule = Registry.load(prefer=["fake-right"]).for_module(nn.ReLU())
    assert rule is not None
    assert rule.name == "second"


def test_two_rules_of_one_plugin_conflict() -> None:
    with pytest.raises(PluginConflictError, match=r"two rules .* claim torch\.nn\.functional\.relu: 'one' and 'two'"):
        Registry.from_rules(Rule(name="one", functions=(F.relu,)), Rule(name="two", functions=(F.relu,)))


def test_one_rule_may_repeat_itself() -> None:
    rule = Rule(name="relu", functions=(F.relu, F.relu))
    registry = Registry.from_rules(rule, rule)
    assert registry.rules == (rule,)
    assert registry.for_function(F.relu) is rule


def test_from_rules_takes_proper_rules_only() -> None:
    with pytest.raises(PluginError, match="no Rule"):
        Registry.from_rules("relu")  # type: ignore[arg-type]


# -- the whole -------------------------------------------------------------------------------------------------------


def test_the_registry_knows_its_plugins(install_plugin: InstallPlugin) -> None:
    install_plugin("bad", "1 / 0")
    install_plugin("good")
    registry = Registry.load()
    assert [(plugin.name, plugin.status) for plugin in registry.plugins] == [("bad", "failed"), ("good", "loaded")]
    assert [rule.name for rule in registry.rules] == ["Good-rule"]
    assert registry.plugin_of(registry.rules[0]) is registry.plugins[1]
    assert registry.plugin_of(BASE) is None
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        Registry.load(strict=True)


def test_the_default_registry_is_built_once(install_plugin: InstallPlugin) -> None:
    install_plugin("good")
    default_registry.cache_clear()
    try:
        assert default_registry() is default_registry()
        assert [plugin.name for plugin in default_registry().plugins] == ["good"]
    finally:
        default_registry.cache_clear()


def test_a_number_is_no_criterion() -> None:
    with pytest.raises(InputError, match=r"0\.5 is no criterion: .*sparsity=0\.5"):
        default_registry().criterion(0.5)  # type: ignore[arg-type]
