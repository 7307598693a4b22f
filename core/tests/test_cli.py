"""The command line lists plugins, and reports errors in one line."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from speedup import cli

InstallPlugin = Callable[..., str]


def test_plugins_as_a_table(install_plugin: InstallPlugin, capsys: pytest.CaptureFixture[str]) -> None:
    module = install_plugin("good", version="2.0")
    install_plugin("bad", "1 / 0")
    install_plugin("off")
    assert cli.main(["plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines[:4]}
    assert rows["name"] == ["name", "version", "distribution", "status", "contract", "ops"]
    assert rows["good"] == ["good", "2.0", "fake-good", "loaded", "1", "2"]
    assert rows["bad"] == ["bad", "1.0", "fake-bad", "failed", "-", "0"]
    assert "bad failed: its module cannot be imported: ZeroDivisionError: division by zero" in lines
    assert lines[lines.index("good claims:") + 1] == f"  {module}: Good function"


def test_plugins_as_json(
    install_plugin: InstallPlugin, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_plugin("good", version="2.0")
    install_plugin("bad", "speedup_contract = 99")
    install_plugin("off")
    monkeypatch.setenv("SPEEDUP_DISABLE_PLUGINS", "off")
    assert cli.main(["plugins", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    assert listing["contract_version"] == 1
    assert listing["conflict"] is None
    bad, good, off = listing["plugins"]
    assert good == {
        "name": "good",
        "version": "2.0",
        "distribution": "fake-good",
        "module": module,
        "status": "loaded",
        "contract": 1,
        "error": None,
        "rules": ["Good-rule"],
        "ops": [f"{module}.Good", f"{module}.function"],
        "criteria": [],
    }
    assert (bad["status"], bad["ops"]) == ("failed", [])
    assert "contract version 99" in bad["error"]
    assert (off["status"], off["contract"], off["error"]) == ("disabled", None, None)


def test_strict_makes_a_failure_count(
    install_plugin: InstallPlugin, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plugin("good")
    assert cli.main(["plugins", "--strict"]) == 0
    install_plugin("bad", "1 / 0")
    assert cli.main(["plugins"]) == 0
    assert cli.main(["plugins", "--strict"]) == 1
    monkeypatch.setenv("SPEEDUP_STRICT_PLUGINS", "1")
    assert cli.main(["plugins", "--json"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_a_conflict_is_shown(install_plugin: InstallPlugin, capsys: pytest.CaptureFixture[str]) -> None:
    source = """
        from torch import nn
        from speedup.hookspecs import hookimpl
        from speedup.rule import Rule

        @hookimpl
        def speedup_rules():
            return [Rule(name="r", modules=(nn.ReLU,))]
    """
    install_plugin("one", source)
    install_plugin("two", source)
    assert cli.main(["plugins"]) == 0
    assert "conflict: two plugins claim torch.nn.ReLU" in capsys.readouterr().out
    assert cli.main(["plugins", "--strict", "--json"]) == 1
    assert "fake-two" in json.loads(capsys.readouterr().out)["conflict"]


def test_no_plugins(install_plugin: InstallPlugin, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins"]) == 0
    assert capsys.readouterr().out == "no plugins are installed\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("speedup ")


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_an_error_is_one_line_unless_debugging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: object) -> None:
        raise KeyError("oh")

    monkeypatch.setattr("speedup.cli.plugins.load_plugins", broken)
    assert cli.main(["plugins"]) == 1
    assert capsys.readouterr().err == "speedup: error: KeyError: 'oh'\n"
    with pytest.raises(KeyError):
        cli.main(["plugins", "--debug"])
