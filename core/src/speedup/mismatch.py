"""Where a run of the small model differs from the plan: in sizes, in the entries and numbers of calls, in what it
returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch.utils import _pytree as pytree

from speedup.ask import ask
from speedup.decisions import is_decision
from speedup.errors import CheckError
from speedup.graph import Graph
from speedup.instead import stands_for
from speedup.keep import KeepSets, Lock
from speedup.locking import (
    lock_before,
    lock_call,
    lock_counted,
    lock_for_missing,
    lock_read,
    lock_scope,
    stale_axes,
    why_stale,
)
from speedup.node import Node
from speedup.order import same_orders
from speedup.repair.stale import same_number, stale_function, stale_numbers, wanted_factor
from speedup.rounding import plain_differences


@dataclass(frozen=True, eq=False)
class Mismatch:
    """The first call at which the small model differs from the plan.

    Attributes:
        node: the call as it was.
        stage: 0 while sizes differ, 1 when only entries or numbers in arguments do, 2 when only a number does that the
            model returns.
        args, kwargs: of the call as the small model makes it; None when it never came to it.
        numbers: whether numbers differ that are no sizes, but may be made of them.
        nodes: the calls that the small model made.
        locks: what to keep whole when nothing else helps.
        tipped: whether it may come of a decision that rounding tips.
        raised: where Python code raised: modules and the names of their methods, the innermost first.
        others: further calls that differ: of the same run, where it came to its end; else some that cannot be repaired.
    """

    node: Node
    stage: int
    args: tuple[Any, ...] | None
    kwargs: dict[str, Any] | None
    numbers: bool
    nodes: Sequence[Node]
    locks: Callable[[], list[Lock]]
    tipped: bool = False
    raised: Sequence[tuple[str, str]] = ()
    others: Sequence[Mismatch] = ()

    @property
    def progress(self) -> tuple[int, int]:
        """Larger when the model agrees with the plan further."""
        return self.stage, self.node.index


def size_mismatch(graph: Graph, keeps: KeepSets, nodes: Sequence[Node]) -> Mismatch | None:
    for old, new in zip(graph.nodes, nodes, strict=False):
        if not stands_for(new.op_name, old, keeps) or len(old.outputs) != len(new.outputs) or _reads_others(old, new):
            why = "the small model takes another path from here"
            lock = partial(lock_call, old, graph, keeps, None, why)
            # The same function with another number of outputs: a split into parts of a stale size.
            args, kwargs = (new.args, new.kwargs) if old.op_name == new.op_name else (None, None)
            return Mismatch(old, 0, args, kwargs, False, nodes, lock, _decided(graph, old))
        for number, (a, b) in enumerate(zip(old.outputs, new.outputs, strict=True)):
            planned = keeps.shape(a)
            if planned != b.shape and not (0 in planned and 0 in b.shape):
                at = number, stale_axes(a.shape, planned, b.shape)
                sizes = frozenset(zip(planned, b.shape, strict=False))
                lock = partial(lock_call, old, graph, keeps, at, why_stale(a.shape, planned, b.shape), sizes)
                tipped = planned == a.shape and _decided(graph, old)
                return Mismatch(old, 0, new.args, new.kwargs, False, nodes, lock, tipped)
    return None


def _reads_others(old: Node, new: Node) -> bool:
    """Whether a function is given what other calls have made (``y + (x if alike else 0)``)."""
    if old.module is not None or new.module is not None or old.op_name != new.op_name:
        return False
    made, others = (
        [(v.producer.index, v.producer.outputs.index(v)) for v in n.tensors if v.producer is not None]
        for n in (old, new)
    )
    return made != others


def _decided(graph: Graph, node: Node) -> bool:
    """Whether a call, or one before it, makes whole numbers or truth values of the input."""
    return any(is_decision(n) and n.outputs[0] in graph.from_input for n in graph.nodes[: node.index + 1])


def argument_mismatch(graph: Graph, keeps: KeepSets, nodes: Sequence[Node]) -> Mismatch | None:
    """The first call whose own arguments give other entries than planned, though as many (a literal slice), or whose
    numbers came from a size that is smaller now (``x.shape[-1] ** -0.5``)."""
    found: list[Mismatch] = []

    def mismatch(old: Node, new: Node, numbers: bool, locks: Callable[[], list[Lock]]) -> Mismatch:
        return Mismatch(old, 1, new.args, new.kwargs, numbers, nodes, locks)

    for old, new in zip(graph.nodes, nodes, strict=False):
        if not same_number(new.factor, wanted_factor(old, keeps)):
            found.append(mismatch(old, new, True, partial(lock_counted, old)))
            continue
        if stale_function(old, keeps, new):
            found.append(mismatch(old, new, True, partial(lock_read, old, keeps)))
            continue
        changed = _changed_numbers(old, new) if old.module is None and not (old.rule and old.rule.moves) else []
        if changed and stale_numbers(old, keeps, new.args, new.kwargs, new):
            why = f"a number in the call is made of a size: {', '.join(f'{a} -> {b}' for a, b in changed)}"
            found.append(mismatch(old, new, True, partial(lock_scope, old, graph, keeps, why)))
            continue
        if old.rule is None or old.module is not None:
            continue
        orders = keeps.orders_of(old)
        if (all(keeps.whole(v) for v in old.values if v is not None) and not any(orders)) or new.claimed().rule is None:
            continue
        sets = keeps.of(old.values)  # those of weights are not written out unless they are asked for
        found_orders = ask(
            old, "arrange", sets, orders[: len(sets) - len(old.outputs)] + [{} for _ in old.outputs], new
        )
        if found_orders is None or not all(map(same_orders, found_orders, orders)):
            why = "the code of the call holds a position: it would take other entries"
            lock = lock_for_missing(old, keeps) or partial(lock_call, old, graph, keeps, None, why)
            found.append(mismatch(old, new, False, lock))
    if not found:
        return None
    return replace(found[0], locks=lambda: [lock for each in found for lock in each.locks()], others=found[1:])


def taken_mismatch(graph: Graph, keeps: KeepSets, nodes: Sequence[Node], taken: Sequence[Node]) -> Mismatch | None:
    """The first call whose results were taken from the masked run (``speedup.decisions``) though the small model gives
    it other numbers: a size that is stale makes it differ then, and no rounding. Its tensors may all be whole."""
    for old in taken:
        new = nodes[old.index]
        if stale_numbers(old, keeps, new.args, new.kwargs, new):
            why = "the code of the call holds a size that is another one now"
            return Mismatch(
                old, 1, new.args, new.kwargs, False, nodes, partial(lock_call, old, graph, keeps, None, why)
            )
    return None


def returned_mismatch(graph: Graph, keeps: KeepSets, again: Graph, effects: Sequence[float]) -> Mismatch | None:
    """A number that the model returns beside its tensors, and that is made of a size that is smaller now."""
    if set(graph.plain) != set(again.plain):
        raise CheckError(f"the small model returns {', '.join(again.plain)}, the masked one {', '.join(graph.plain)}")
    dtypes = [t.dtype for t in graph.reference]
    for name, _, relative, allowed in plain_differences(graph.plain, again.plain, dtypes, effects):
        if relative <= allowed:
            continue
        old, new = graph.plain[name], again.plain[name]
        why = f"the model returns a number that is made of a size: {name} is {new} instead of {old}"
        sizes = frozenset({(old, new)}) if isinstance(old, int) and isinstance(new, int) else frozenset()
        last = graph.nodes[-1]
        lock = partial(lock_before, last, graph, keeps, why, sizes)
        return Mismatch(last, 2, None, None, False, again.nodes, lock, _decided(graph, last))
    return None


def _changed_numbers(old: Node, new: Node) -> list[tuple[float, float]]:
    """Numbers of a call that differ by more than rounding."""
    if old.is_given(new):
        return []
    new.claimed()
    return [(a, b) for a, b in zip(_numbers(old), _numbers(new), strict=False) if not same_number(a, b)]


def _numbers(node: Node) -> list[int | float]:
    """The numbers among the arguments of a call, but for those that its rule counts axes with."""
    sizes = node.rule.sizes if node.rule is not None else {}
    tree: Any = (
        {k: v for k, v in node.arguments.items() if k not in sizes} if node.arguments else (node.args, node.kwargs)
    )
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, int | float)]
