"""Asking a rule: whatever it raises becomes an error that names the rule, the call and its line of source."""

from __future__ import annotations

from typing import Any

from speedup.errors import RuleError, SpeedupError
from speedup.graph import Node


def culprit(node: Node) -> str:
    """The rule and the call, for messages."""
    name = node.rule.name if node.rule is not None else ""
    return f"rule {name!r} at {node.label} ({node.where})"


def ask(node: Node, method: str, *args: Any) -> Any:
    """Call ``node.rule.method(node, *args)``.

    Raises:
        RuleError: the rule raised anything that is no error of ours.
    """
    try:
        return getattr(node.rule, method)(node, *args)
    except SpeedupError:
        raise
    except Exception as error:
        raise RuleError(f"{culprit(node)} raised in {method}: {error!r}") from error
