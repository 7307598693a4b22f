"""The laws of inference hold in random networks, and every family shows what ``speedup.testing.RuleTests`` asks."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from speedup.testing import check_laws
from tests.graphs import random_case

ROOT = Path(__file__).parents[1]


def test_every_family_has_a_conformance_test() -> None:
    installed = {entry.name for entry in importlib.metadata.entry_points(group="speedup.plugins")}
    families = {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")}
    assert families <= installed
    for family in families:
        text = (ROOT / f"plugins/{family}/tests/test_{family}_conformance.py").read_text()
        assert f'class TestConformance(RuleTests):\n    plugins = ("{family}",)' in text


@pytest.mark.parametrize("seed", range(2000, 2016))
def test_rules_obey_the_laws_in_random_networks(seed: int) -> None:
    case = random_case(seed, steps=5)
    check_laws(case.model(), case.inputs, case.masks, seed=seed, rounds=3)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(3000, 3400, 20))
def test_rules_obey_the_laws_in_many_random_networks(first: int) -> None:
    for seed in range(first, first + 20):
        case = random_case(seed)
        check_laws(case.model(), case.inputs, case.masks, seed=seed)
