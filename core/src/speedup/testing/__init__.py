"""For the tests of rules: models with random contents, random masks, and the check that the small model answers alike.

    def test_scale_follows_its_input() -> None:
        model = randomize(nn.Sequential(nn.Linear(4, 6), Scale(6), nn.Linear(6, 3)), seed=0)
        masks = random_masks(model, seed=0)
        result = check_equal(model, torch.randn(2, 4), masks, other_inputs=[torch.randn(5, 4)])
        assert result.shape("1.scale") == (3,)

``check_equal`` alone would accept a rule that keeps everything: assert ``shape`` or ``kept`` too. ``check_laws`` asks
every rule of a model about facts that the model itself may never show.

``RuleTests`` is the conformance kit: subclass it, name the plugin under test and give models, and pytest runs all of
this and more. ``check_rules`` is the same in one call. Beside what is wrong, which fails, it reports what a rule could
have said and did not. ``registry_of`` gives a registry of the plugins under test alone; the pytest fixture
``only_plugins`` of ``speedup.testing.fixtures`` makes them the only ones for a whole test.
"""

from __future__ import annotations

from speedup.testing.around import around, chain
from speedup.testing.case import Case
from speedup.testing.conformance import Findings, MissingInference, RuleTests, check_rules
from speedup.testing.contents import randomize
from speedup.testing.equal import Result, check_equal
from speedup.testing.laws import check_laws
from speedup.testing.masks import KINDS, Masks, mask_indices, masked_copy, random_masks
from speedup.testing.registries import registry_of

__all__ = [
    "KINDS",
    "Case",
    "Findings",
    "Masks",
    "MissingInference",
    "Result",
    "RuleTests",
    "around",
    "chain",
    "check_equal",
    "check_laws",
    "check_rules",
    "mask_indices",
    "masked_copy",
    "random_masks",
    "randomize",
    "registry_of",
]
