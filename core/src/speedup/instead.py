"""Calls of functions in the place of which the small model calls another one, which is told numbers beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from speedup.ask import ask
from speedup.errors import RuleError
from speedup.keep import KeepSets
from speedup.names import op_name
from speedup.node import Node
from speedup.node_keep import NodeKeep
from speedup.rule import Rule


@dataclass(frozen=True)
class Instead:
    """What the small model calls in the place of a function.

    Attributes:
        function: it takes what the other one takes, spelt in the same way, and the numbers. A rule claims it, and
            lists it in ``makes``.
        numbers: further arguments, by keyword.
    """

    function: Callable[..., Any]
    numbers: Mapping[str, int | float] = field(default_factory=dict)


def instead_of(node: Node, keeps: KeepSets) -> Instead | None:
    """What the small model calls in the place of a recorded function; None where it calls the same one as before."""
    rule = node.rule
    if rule is None or node.module is not None or type(rule).instead is Rule.instead:
        return None
    found = ask(node, "instead", NodeKeep(keeps, node))
    if found is not None and found.function not in rule.makes:
        raise RuleError(f"{rule.label}: instead gives {found.function!r}, which is not listed in `makes`")
    return found  # type: ignore[no-any-return]


def stands_for(name: str, node: Node, keeps: KeepSets) -> bool:
    """Whether a call of an op of that name is what the plan makes of a recorded call, its arguments aside."""
    if name == node.op_name:
        return True
    made = instead_of(node, keeps)
    return made is not None and name == op_name(made.function)
