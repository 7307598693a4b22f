"""Asking a rule: whatever it raises becomes an error that names the rule, its plugin, the call and its line."""

from __future__ import annotations

from logging import DEBUG
from typing import Any

from speedup import rule_log, walk
from speedup.errors import RuleError, SignatureError, SpeedupError
from speedup.node import Node

_PURE = frozenset(("infer_from_weight", "infer_from_input", "infer_from_output", "replace"))


def culprit(node: Node) -> str:
    """The rule with its plugin, and the call, for messages."""
    label = node.rule.label if node.rule is not None else "no rule"
    return f"{label} at {node.label} ({node.where})"


def ask(node: Node, method: str, *args: Any) -> Any:
    """Call ``node.rule.method(node, *args)``.

    Raises:
        RuleError: the rule raised anything that is no error of ours, or changed a tensor of the model in place.
    """
    loud = rule_log.log.isEnabledFor(DEBUG)
    before = rule_log.state(method, args) if loud else None
    held = [v.tensor for v in node.tensors if v.tensor is not None] if method in _PURE else []
    versions = walk.versions_of(held) if held else []
    try:
        answer = getattr(node.rule, method)(node, *args)
    except SignatureError as error:
        raise RuleError(f"{culprit(node)} raised in {method}: {error}") from error
    except SpeedupError:
        raise
    except Exception as error:
        hint = ". What a rule is shown is read-only: make new arrays" if "read-only" in str(error) else ""
        raise RuleError(f"{culprit(node)} raised in {method}: {error!r}{hint}") from error
    if held and (now := walk.versions_of(held)) != versions:
        labels = (v.label for v in node.tensors if v.tensor is not None)
        (name, *_) = (n for n, old, new in zip(labels, versions, now, strict=True) if old != new)
        raise RuleError(
            f"{culprit(node)} writes into {name} in {method}: a rule changes no tensor of the model. "
            f"What it has written there cannot be undone: load the model's weights again"
        )
    if loud:
        rule_log.said(node, method, args, before, answer)
    return answer
