"""A plugin for speedup: it hands out the rules of this package."""

from __future__ import annotations

from collections.abc import Iterable

from speedup import Rule, hookimpl

from .rules import RULES

speedup_contract = 1  # the version of the plugin interface that this was written for


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    return RULES
