"""Random small networks with random masks, as Python source: what the property tests feed to speedup.

`random_case(seed)` gives a `Case`: the source of a module, inputs, inputs of other sizes, and masks. The source is
ordinary code with one call per line, so a case that fails can be read, cut down by hand and kept.

    case = random_case(17, steps=6)
    print(case.source)      # the network
    check_case(case)        # raises AssertionError or speedup.SpeedupError
    print(case.script())    # shows the case without this package

`./scripts/fuzz N` runs many of them.
"""

from tests.graphs.case import Case, Masks, build, count, masked_copy, randomize, run, tensors
from tests.graphs.check import Result, check_case, difference
from tests.graphs.masks import STYLES, filter_masks, random_masks
from tests.graphs.networks import STEPS, random_case

__all__ = [
    "STEPS",
    "STYLES",
    "Case",
    "Masks",
    "Result",
    "build",
    "check_case",
    "count",
    "difference",
    "filter_masks",
    "masked_copy",
    "random_case",
    "random_masks",
    "randomize",
    "run",
    "tensors",
]
