"""Plugins are discovered and loaded; a faulty one is reported and left out, and stops nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import pytest

from speedup.errors import PluginError
from speedup.plugins import PluginInfo, load_plugins

InstallPlugin = Callable[..., str]

HEADER = """
    from torch import nn
    from speedup.hookspecs import hookimpl
    from speedup.rule import Rule
"""

# What is wrong with a plugin: its source, and what the report must say.
FAULTS = {
    "import error": ("import no_such_module_at_all", "cannot be imported: ModuleNotFoundError: No module named"),
    "error while importing": ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
    "syntax error": ("def", "cannot be imported: SyntaxError"),
    "newer contract": ("speedup_contract = 99", "contract version 99, and this speedup has 1: update speedup-core"),
    "older contract": ("speedup_contract = 0", "contract version 0, and this speedup has 1: update the plugin"),
    "contract no number": ("speedup_contract = '1'", "must be a whole number, not '1'"),
    "misspelt hook": (
        HEADER
        + """
    @hookimpl
    def speedup_rule():
        return []
""",
        "no hook called speedup_rule; did you mean speedup_rules?",
    ),
    "misspelt hook beside a right one": (
        HEADER
        + """
    @hookimpl
    def speedup_rules():
        return []

    @hookimpl
    def unheard_of():
        return []
""",
        "no hook called unheard_of; the hooks are speedup_criteria, speedup_hints, speedup_rules",
    ),
    "hook with an unknown argument": (
        HEADER
        + """
    @hookimpl
    def speedup_rules(model):
        return []
""",
        "model",
    ),
    "marker forgotten": ("def speedup_rules():\n    return []", "speedup_rules is not marked with"),
    "no hook": ("", "it implements no hook"),
    "hook raises": (
        HEADER
        + """
    @hookimpl
    def speedup_rules():
        yield Rule(name="fine")
        raise KeyError("oh")
""",
        "speedup_rules() failed: KeyError: 'oh'",
    ),
    "signature with a fault": (
        HEADER + "\n    @hookimpl\n    def speedup_rules():\n        return [Rule(name='r', axes='* i, o i * o')]",
        "speedup_rules() failed: SignatureError: a signature has exactly one '->'",
    ),
    "field that no rule has": (
        HEADER + "\n    @hookimpl\n    def speedup_rules():\n        return [Rule(name='r', axis='* -> *')]",
        "speedup_rules() failed: TypeError: Rule has no field 'axis'",
    ),
    "not iterable": (HEADER + "\n    @hookimpl\n    def speedup_rules():\n        return 3", "failed: TypeError"),
    "no rule": (
        HEADER + "\n    @hookimpl\n    def speedup_rules():\n        return ['conv']",
        "'conv', which is no Rule",
    ),
    "class of a rule": (
        HEADER + "\n    @hookimpl\n    def speedup_rules():\n        return [Rule]",
        "return Rule(), not the class",
    ),
    "claims no module type": (
        HEADER + "\n    @hookimpl\n    def speedup_rules():\n        return [Rule(name='r', modules=(int,))]",
        "rule 'r': modules holds <class 'int'>",
    ),
    "claims no function": (
        HEADER + "\n    @hookimpl\n    def speedup_rules():\n        return [Rule(name='r', functions=('relu',))]",
        "rule 'r': functions holds 'relu'",
    ),
}


def by_name(plugins: tuple[PluginInfo, ...]) -> dict[str, PluginInfo]:
    return {plugin.name: plugin for plugin in plugins}


def statuses(**options: object) -> dict[str, str]:
    return {plugin.name: plugin.status for plugin in load_plugins(**options)}  # type: ignore[arg-type]


def test_a_plugin_is_discovered(install_plugin: InstallPlugin) -> None:
    module = install_plugin("alpha", version="3.1")
    (plugin,) = load_plugins()
    assert (plugin.name, plugin.distribution, plugin.version, plugin.module) == ("alpha", "fake-alpha", "3.1", module)
    assert (plugin.status, plugin.contract, plugin.error, plugin.disabled) == ("loaded", 1, None, False)
    assert [rule.name for rule in plugin.rules] == ["Alpha-rule"]


def test_rules_may_come_from_a_generator_or_not_at_all(install_plugin: InstallPlugin) -> None:
    install_plugin("empty", HEADER + "\n    @hookimpl\n    def speedup_rules():\n        return []")
    install_plugin("lazy", HEADER + "\n    @hookimpl\n    def speedup_rules():\n        yield Rule(name='r')")
    plugins = by_name(load_plugins(strict=True))
    assert plugins["empty"].rules == ()
    assert [rule.name for rule in plugins["lazy"].rules] == ["r"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_plugin_is_reported_and_left_out(
    fault: str, install_plugin: InstallPlugin, caplog: pytest.LogCaptureFixture
) -> None:
    source, message = FAULTS[fault]
    install_plugin("bad", source, version="0.7")
    install_plugin("good")
    with caplog.at_level(logging.WARNING, logger="speedup"):
        plugins = by_name(load_plugins())
    assert plugins["good"].status == "loaded"
    assert plugins["bad"].status == "failed"
    assert plugins["bad"].rules == ()
    assert message in (plugins["bad"].error or "")
    (record,) = caplog.records
    assert "plugin 'bad' (fake-bad 0.7)" in record.getMessage()
    assert message in record.getMessage()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_plugin_is_an_error_in_strict_mode(
    fault: str, install_plugin: InstallPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, message = FAULTS[fault]
    install_plugin("bad", source)
    with pytest.raises(PluginError) as caught:
        load_plugins(strict=True)
    assert message in str(caught.value)
    monkeypatch.setenv("SPEEDUP_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError):
        load_plugins()
    assert load_plugins(strict=False)[0].status == "failed"


@pytest.mark.parametrize("name", ["two_words", "TWO-words", "fake-two_words", "Fake_Two_Words"])
def test_disable_by_name(name: str, install_plugin: InstallPlugin, monkeypatch: pytest.MonkeyPatch) -> None:
    module = install_plugin("two_words", "1 / 0")
    install_plugin("other")
    assert statuses(disable=[name], strict=True) == {"other": "loaded", "two_words": "disabled"}
    monkeypatch.setenv("SPEEDUP_DISABLE_PLUGINS", f" {name} ,")
    assert statuses(strict=True) == {"other": "loaded", "two_words": "disabled"}
    assert module not in sys.modules


def test_disable_all(install_plugin: InstallPlugin, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin("alpha")
    install_plugin("beta")
    off = {"alpha": "disabled", "beta": "disabled"}
    assert statuses(disable=["all"]) == off
    monkeypatch.setenv("SPEEDUP_DISABLE_PLUGINS", "all")
    assert statuses() == off


def test_allow_list(install_plugin: InstallPlugin, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("alpha", "beta", "gamma"):
        install_plugin(name)
    assert statuses(only=["alpha"]) == {"alpha": "loaded", "beta": "disabled", "gamma": "disabled"}
    assert set(statuses(only=[]).values()) == {"disabled"}
    monkeypatch.setenv("SPEEDUP_ONLY_PLUGINS", "fake-alpha,beta")
    assert statuses() == {"alpha": "loaded", "beta": "loaded", "gamma": "disabled"}
    # Code cannot widen what the environment allows.
    assert statuses(only=["beta", "gamma"]) == {"alpha": "disabled", "beta": "loaded", "gamma": "disabled"}
    assert statuses(disable=["alpha"]) == {"alpha": "disabled", "beta": "loaded", "gamma": "disabled"}
    monkeypatch.setenv("SPEEDUP_ONLY_PLUGINS", "")
    assert set(statuses().values()) == {"loaded"}


@pytest.mark.parametrize("option", ["disable", "only"])
def test_a_name_that_means_nothing_is_warned_of(
    option: str, install_plugin: InstallPlugin, caplog: pytest.LogCaptureFixture
) -> None:
    install_plugin("alpha")
    load_plugins(**{option: ["alpah"]})  # type: ignore[arg-type]
    assert "no plugin is called 'alpah'; did you mean 'alpha'?" in caplog.text
    with pytest.raises(TypeError, match="not one string"):
        load_plugins(**{option: "alpha"})  # type: ignore[arg-type]


def test_plugins_of_one_name_from_two_distributions(install_plugin: InstallPlugin) -> None:
    install_plugin("alpha")
    install_plugin("alpha", distribution="fake-other")
    assert [plugin.distribution for plugin in load_plugins()] == ["fake-alpha", "fake-other"]
    loaded = [plugin for plugin in load_plugins(disable=["fake-other"]) if not plugin.disabled]
    assert [plugin.distribution for plugin in loaded] == ["fake-alpha"]
    assert all(plugin.disabled for plugin in load_plugins(disable=["alpha"]))
