"""The laws of inference hold in random networks, and every family shows what ``speedup.testing.RuleTests`` asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from speedup import default_registry
from speedup.testing import check_laws
from tests.graphs import random_case

ROOT = Path(__file__).parents[1]


def test_every_family_has_a_conformance_test() -> None:
    ours = {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")}
    families = {plugin.name for plugin in default_registry().plugins if plugin.rules} & ours
    assert len(families) >= 12
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
