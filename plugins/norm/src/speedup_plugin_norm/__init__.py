"""speedup rules: Layer, RMS, group and instance normalisation."""

from __future__ import annotations

from collections.abc import Iterable

from speedup import Rule, hookimpl


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    return []
