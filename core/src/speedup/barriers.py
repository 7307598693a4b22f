"""The ops of a model that have no rule, and what a user can do about each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from speedup.errors import InputError
from speedup.node import Node
from speedup.registry import Registry
from speedup.stub import find_op, registered_by


@dataclass(frozen=True)
class Barrier:
    """An op without a rule.

    Attributes:
        op: its name.
        calls: how often the model calls it.
        where: ``file:line`` of the first call.
        note: why a rule that claims the op does not fit this call; empty where no rule claims it.
        package: a plugin package that is known to have rules for it.
        command: the command that begins a plugin for it; None where no rule can help, since data go to Python here.
    """

    op: str
    calls: int
    where: str
    note: str
    package: str | None
    command: str | None


def find_barriers(nodes: Iterable[Node], registry: Registry | None = None) -> list[Barrier]:
    """Group the calls without a rule by their op, in the order of the first call of each."""
    grouped: dict[tuple[str, str], list[Node]] = {}
    for node in nodes:
        if node.is_barrier:
            grouped.setdefault((node.op_name, node.note), []).append(node)
    return [
        Barrier(
            op,
            len(calls),
            calls[0].where,
            note,
            registry.hint_for(op) if registry is not None else None,
            command_for(calls[0]),
        )
        for (op, note), calls in grouped.items()
    ]


def _public(op: str, name: str) -> str:
    """The name that users know of a function of torch that arrives under an inner one."""
    if "._" in op:
        for prefix, namespace in (("torch", torch), ("torch.nn.functional", torch.nn.functional)):
            if callable(getattr(namespace, name, None)):
                return f"{prefix}.{name}"
    return op


def _owner(op: str) -> str | None:
    try:
        return registered_by(find_op(op))
    except InputError:  # the library that has it was taken out of reach
        return None


def command_for(node: Node) -> str | None:
    """``speedup new-plugin`` for the op of a call without a rule, as it is typed; None where no new rule can help."""
    op = node.op_name
    if node.note or node.op is None or not node.outputs or "<" in op or op.startswith("__main__"):
        return None
    parts = op.split(".")
    name = parts[0]
    extra = ""
    if parts[:2] == ["torch", "ops"]:
        op, name = ".".join(parts[:4]), parts[2]
        owner = _owner(op)
        extra = f" --import {owner}" if owner not in (None, name) else ""
    elif name == "torch":
        op, name = _public(op, parts[-1]), parts[-1]
    return f"speedup new-plugin {name.strip('_').replace('_', '-').lower()} --op {op}{extra}"
