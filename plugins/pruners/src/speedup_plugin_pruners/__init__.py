"""speedup criteria: which channels of a model matter least.

One class per criterion, each with its paper: those that look at weights alone (`weights`), and those that look at
data (`data`). `scores` has their arithmetic, for use elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable

from speedup import Criterion, hookimpl
from speedup_plugin_pruners.data import AverageZeros, MeanActivation, Taylor
from speedup_plugin_pruners.weights import GeometricMedian, Magnitude, Norm, Random, Slim

__all__ = [
    "AverageZeros",
    "GeometricMedian",
    "Magnitude",
    "MeanActivation",
    "Norm",
    "Random",
    "Slim",
    "Taylor",
    "speedup_criteria",
]


@hookimpl
def speedup_criteria() -> Iterable[Criterion]:
    return [
        Norm("l1", 1),
        Norm("l2", 2),
        GeometricMedian(),
        Slim(),
        Magnitude(),
        Random(),
        AverageZeros(),
        MeanActivation(),
        Taylor(),
    ]
