"""The command line lists criteria."""

import json

import pytest

from speedup.cli import main


def test_criteria_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0
    assert "pruners has the criteria:\n  l1 l2 fpgm slim magnitude random apoz" in capsys.readouterr().out
    assert main(["plugins", "--json"]) == 0
    (pruners,) = (p for p in json.loads(capsys.readouterr().out)["plugins"] if p["name"] == "pruners")
    assert pruners["criteria"][0] == "l1" and pruners["ops"] == []
