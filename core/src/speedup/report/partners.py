"""Which layers would have to be masked alike: those that make an entry, where another layer's mask says it can go."""

from __future__ import annotations

from speedup.arrays import Bools
from speedup.keep import KeepSets
from speedup.node import Node, Value

_MOST = 50


def partners(keeps: KeepSets, value: Value, entries: Bools) -> tuple[str, ...]:
    """The layers whose masks would have to hold these entries of a value too, nearest first.

    From the value backward to calls with a weight of their own, along operands that are not constant at the entries;
    behind a change of shape, along all operands.
    """
    found: dict[str, None] = {}
    queue: list[tuple[Value, Bools | None]] = [(value, entries)]
    seen = {value}
    while queue and len(found) < _MOST:
        at, meant = queue.pop(0)
        node = at.producer
        if node is None or node.rule is None:
            continue
        if weighs(node):
            found[_name(node)] = None
            continue
        for before in node.operands:
            if before is None or before.is_source or before in seen:
                continue
            same = at_other(meant, before)
            if same is None or (same & ~keeps.facts.known(before)).any():
                seen.add(before)
                queue.append((before, same))
    return tuple(found)


def at_other(entries: Bools | None, value: Value) -> Bools | None:
    """The same entries of another value that is joined with theirs; None where they cannot be told."""
    if entries is None or entries.ndim != value.ndim:
        return None
    fits = all(size in (1, full) for size, full in zip(entries.shape, value.shape, strict=True))
    return entries if fits else None


def _name(node: Node) -> str:
    if node.module is not None:
        return node.path
    return next(v.names[0] for v in node.operands if v is not None and v.is_source and v.ndim > 1)


def weighs(node: Node) -> bool:
    """Whether a call mixes entries by a weight, so that a mask on it makes entries constant."""
    return any(v is not None and v.is_source and v.ndim > 1 for v in node.operands)
