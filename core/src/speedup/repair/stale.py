"""Which numbers of a call are not what the plan wants: sizes that stayed, and numbers that were made of sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speedup.ask import ask
from speedup.instead import instead_of
from speedup.keep import KeepSets
from speedup.new_sizes import new_size
from speedup.node import Node, Value
from speedup.repair.arguments import Path, numbers

RESULT: Path = ("",)  # the way to a factor of what comes out
CALLEE: Path = ("()",)  # and to the function that is called


@dataclass(frozen=True)
class Stale:
    """A number of a call.

    Attributes:
        path: the way to it in the arguments, see ``locate.numbers``; ``RESULT`` for a factor of what comes out,
            ``CALLEE`` for the function itself.
        now, wanted: what the small model's call has, None where the source has no such argument, and what it should
            have.
    """

    path: Path
    now: int | float | None
    wanted: Any


def stale_numbers(node: Node, keeps: KeepSets, args: Sequence[Any], kwargs: dict[str, Any], ran: Node) -> list[Stale]:
    """Sizes and positions that differ from those of the plan, and other numbers that are not what they were.

    Args:
        args, kwargs: of the call as the small model makes it.
        ran: this call, or the recorded one where it was not made yet: what it multiplies the output with already, and
            which function it calls.
    """
    made = instead_of(node, keeps)
    if made is not None:
        kwargs = {name: v for name, v in kwargs.items() if name not in made.numbers}
    given, wanted = numbers(args, kwargs), wanted_numbers(node, keeps)
    if len(given) != len(wanted):
        return []
    present = dict(given)
    share = wanted_factor(node, keeps)
    found = [] if same_number(ran.factor, share) else [Stale(RESULT, 1.0, share / ran.factor)]
    found += stale_function(node, keeps, ran)
    found += [Stale((n,), None, v) for n, v in missing(node, keeps).items() if present.get((n,)) is None]
    for (path, now), number in zip(given, wanted, strict=True):
        open_end = now == -1 and path[-1] not in ("lower", "upper")  # "what is left", as it was
        if now is not None and number is not None and not open_end and not same_number(now, number):
            found.append(Stale(path, now, number))
    return found


def stale_function(node: Node, keeps: KeepSets, ran: Node) -> list[Stale]:
    """What differs of the function that is called, and of what it is told beside the arguments of the original."""
    made = instead_of(node, keeps)
    if made is None:
        return []
    other = [] if ran.op is made.function else [Stale(CALLEE, None, made.function)]
    told = made.numbers if other else {n: v for n, v in made.numbers.items() if not _is(ran.kwargs.get(n), v)}
    return other + [Stale((name,), None, value) for name, value in told.items()]


def _is(given: Any, number: int | float) -> bool:
    return isinstance(given, int | float) and same_number(given, number)


def wanted_factor(node: Node, keeps: KeepSets) -> float:
    """What the output of the smaller call must be multiplied with: a mean of what is left is divided by too little."""
    rule = node.rule
    if rule is None or node.module is not None or not node.operands or not rule.averaging(node):
        return 1.0
    layout, value = node.layout, node.operands[0]
    if value is None or not layout.contracted or keeps.whole(value):
        return 1.0
    over, kept = counted_axes(node), keeps.shape(value)
    return math.prod(kept[a] for a in over) / math.prod(value.shape[a] for a in over)


def counted_axes(node: Node) -> tuple[int, ...]:
    """The axes of the first operand that a call takes a mean or a sum over."""
    layout = node.layout
    return tuple([a for a, dim in enumerate(layout.operands[0] or ()) if layout.contracted.intersection(dim)])


def same_number(a: int | float, b: int | float) -> bool:
    """Whether two numbers differ by no more than rounding, as one that was read from data may."""
    return a == b or math.isclose(a, b, rel_tol=1e-5) or (a != a and b != b)


def missing(node: Node, keeps: KeepSets, whole: Value | None = None) -> dict[str, int | float]:
    """Numbers that the call as the plan wants it has, and that the recorded call leaves to a default.

    Args:
        whole: an operand that is taken to stay whole.
    """
    if node.rule is None or node.module is not None:
        return {}
    default = {name for name, value in node.arguments.items() if value is None}
    sets = [s | True if v is whole else s for s, v in zip(_sets(node, keeps), node.values, strict=True)]
    changed = ask(node, "resize", sets)
    return {n: v for n, v in changed.items() if n in default and isinstance(v, int | float)}


def wanted_numbers(node: Node, keeps: KeepSets) -> list[Any]:
    """The numbers of the call as the plan wants it, in the order of ``numbers(node.args, node.kwargs)``; without
    those that another function is told in its place."""
    made = instead_of(node, keeps)
    told = made.numbers if made is not None else {}
    old = [n for path, n in numbers(node.args, node.kwargs) if path[0] not in told]
    if node.rule is None or node.module is not None:
        return old
    changed = _resized(node, _sets(node, keeps))
    if changed:
        new = [n for path, n in numbers(*node.rule.rebind(node, changed)) if path[0] not in told]
        return new if len(new) == len(old) else old
    if len(node.outputs) == 1:
        value = node.outputs[0]
        rank = value.ndim
        for start in range(len(old) - rank + 1):
            # Numbers that spell the shape of the output are sizes.
            if rank and tuple(old[start : start + rank]) == value.shape:
                old[start : start + rank] = keeps.shape(value)
                break
    return old


def _sets(node: Node, keeps: KeepSets) -> list[Any]:
    return [keeps.sets[v] if v is not None else np.ones((), dtype=bool) for v in node.values]


def _resized(node: Node, sets: Sequence[Any]) -> dict[str, Any]:
    """Arguments with other sizes, by their names in the rule's ``call``."""
    assert node.rule is not None
    changed = {n: v for n, v in ask(node, "resize", sets).items() if node.arguments.get(n) is not None}
    if changed or node.rule.moves:
        return changed
    named = {name: axes for name, axes in node.rule.sizes.items() if name in node.arguments}
    if not named:
        return {}
    return {name: new_size(node, sets, axes) for name, axes in named.items() if isinstance(node.arguments[name], int)}
