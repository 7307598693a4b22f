"""The check before anything is committed: the new model runs once and is compared with plan and masked model.

Call by call the sizes, then the numbers of the outputs. A size that differs from the plan means that the forward holds
a size of its own (a literal, an attribute): it is repaired, or those indices are locked and planned again. Numbers that
differ mean a wrong rule: the model is refused, and the first call that differs is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from speedup import walk
from speedup.ask import ask
from speedup.decisions import Decisions, is_decision
from speedup.deferred import Deferred
from speedup.errors import CheckError, SpeedupError
from speedup.graph import Graph, Node, Value
from speedup.instead import stands_for
from speedup.keep import KeepSets, Lock
from speedup.locking import (
    changed_axes,
    lock_before,
    lock_call,
    lock_counted,
    lock_for_missing,
    lock_read,
    lock_scope,
    stale_axes,
    why_stale,
)
from speedup.order import same_orders
from speedup.registry import Registry
from speedup.repair.stale import same_number, stale_function, stale_numbers, wanted_factor
from speedup.rounding import difference, plain_differences
from speedup.trace.replay import Given, replay
from speedup.trace.run import trace


class AnswersError(CheckError):
    """The small model's outputs differ from the masked one's.

    Attributes:
        again: the run that gave them.
    """

    def __init__(self, message: str, again: Graph) -> None:
        super().__init__(message)
        self.again = again


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

    @property
    def progress(self) -> tuple[int, int]:
        """Larger when the model agrees with the plan further."""
        return self.stage, self.node.index


@dataclass(frozen=True, eq=False)
class Run:
    """A run of the small model that came to its end.

    Attributes:
        nodes: its calls with the numbers that they were given; the sizes of what they made are those of the plan.
        plain: the numbers that it returned.
    """

    nodes: Sequence[Node]
    plain: Mapping[str, Any]


def check(
    model: nn.Module,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    graph: Graph,
    keeps: KeepSets,
    registry: Registry,
    substitutes: Mapping[int, type[nn.Module]],
    decisions: Decisions | None = None,
    runs: list[Run] | None = None,
    deferred: Deferred | None = None,
) -> Mismatch | None:
    """Run the changed model; where it differs from the plan, None when it agrees.

    Where constants were dropped, its numbers may be others. With ``decisions``, those that rounding tips are taken as
    the masked model takes them.

    Args:
        runs: filled with the run, if it comes to its end.
        deferred: what gets its numbers on the way.

    Raises:
        AnswersError: the outputs differ.
        CheckError: it raises, or returns something else.
    """
    try:
        again = trace(
            model,
            *inputs,
            registry,
            substitutes=substitutes,
            watch=decisions,
            answers=graph.answers,
            compared=graph,
            deferred=deferred,
        )
    except SpeedupError:
        raise
    except Exception as error:
        nodes, _ = getattr(error, "speedup_trace", ([], ""))
        found = _size_mismatch(graph, keeps, nodes)
        if found is not None:
            return found
        failed = next(iter(graph.nodes[len(nodes) : len(nodes) + 1]), None)
        if failed is None:
            raise CheckError(f"the small model raises {error!r}") from error
        name, args, kwargs = getattr(error, "speedup_call", ("", None, None))
        if name != failed.op_name:
            args = kwargs = None
        why = f"the call fails on fewer indices: {error}"
        return Mismatch(
            failed,
            0,
            args,
            kwargs,
            False,
            nodes,
            lambda: lock_call(failed, graph, keeps, changed_axes(failed, keeps), why),
            raised=_methods_of(error, model),
        )
    if runs is not None:
        runs[:] = [Run(again.nodes, again.plain)]
    found = _size_mismatch(graph, keeps, again.nodes) or _argument_mismatch(graph, keeps, again.nodes)
    if found is not None:
        return found
    return answers_mismatch(graph, keeps, again, decisions.largest if decisions is not None else 0.0)


def as_planned(
    model: nn.Module,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    graph: Graph,
    keeps: KeepSets,
    registry: Registry,
    substitutes: Mapping[int, type[nn.Module]],
    deferred: Deferred,
) -> Run | None:
    """A run of the changed model in which it makes the calls of the masked one, as the plan has them, on fewer indices,
    and gives its answers: then ``check`` finds nothing. None says nothing.

    Args:
        deferred: what gets its numbers on the way.
    """
    replayed = replay(model, inputs, registry, graph, keeps.shape, substitutes, deferred)
    if replayed is None:
        return None
    returned = replayed.returned
    if set(returned.plain) != set(graph.plain):
        return None
    held = dict(walk.named_tensors(model))
    planned = [_as_planned(node, replayed.given.get(node), keeps, held) for node in graph.nodes]
    nodes = [n for n in planned if n is not None]
    if len(nodes) < len(planned) or _argument_mismatch(graph, keeps, nodes) is not None:
        return None
    given = replayed.given
    own = [replace(n, args=given[n][0], kwargs=given[n][1]) if n in given else n for n in graph.nodes]
    run = Run(own, returned.plain)
    if keeps.drop:
        return run
    dtypes = [t.dtype for t in graph.reference]
    numbers = plain_differences(graph.plain, returned.plain, dtypes, ())
    if any(relative > allowed for _, _, relative, allowed in numbers):
        return None
    return run if difference(graph.reference, returned.tensors, 0.0, graph.coarsest) is None else None


def _as_planned(node: Node, given: Given | None, keeps: KeepSets, held: Mapping[str, torch.Tensor]) -> Node | None:
    """A recorded call of a function as the small model makes it, itself where nothing goes; None where that cannot be
    told without a run.

    Args:
        given: its arguments, if they are others than those of the recorded call.
        held: the parameters and buffers of the small model.
    """
    smaller = not all(map(keeps.whole, (*node.tensors, *node.outputs)))
    if given is None and (node.module is not None or node.rule is None or not smaller):
        return node
    if node.rule is None:
        return None
    sources = [v for v in node.tensors if v.is_source and not keeps.whole(v)]
    if any(v.names[0] not in held or held[v.names[0]].shape != keeps.shape(v) for v in sources):
        return None

    def small(value: Value) -> Value:
        made = Value(value.number, keeps.shape(value), value.dtype, value.kind, value.names)
        made.tensor = held[value.names[0]] if value in sources else value.tensor
        return made

    return replace(
        node,
        rule=None,
        claimant=node.rule,
        args=node.args if given is None else given[0],
        kwargs=node.kwargs if given is None else given[1],
        tensors=tuple(map(small, node.tensors)),
        outputs=tuple(map(small, node.outputs)),
        arguments={},
        operands=(),
        operand_names=(),
    )


def answers_mismatch(
    graph: Graph, keeps: KeepSets, again: Graph, floor: float, effects: Sequence[float] = ()
) -> Mismatch | None:
    """Where a run of the small model returns something else than the masked one, None where it does not.

    Args:
        floor, effects: as for ``speedup.rounding.difference``.

    Raises:
        AnswersError: the outputs differ.
    """
    if keeps.drop:
        return None
    worst = difference(graph.reference, again.reference, floor, graph.coarsest, effects)
    if worst is not None:
        raise AnswersError(worst, again)
    return _returned_mismatch(graph, keeps, again, effects)


def _methods_of(error: BaseException, model: nn.Module) -> list[tuple[str, str]]:
    """The methods of the model's modules that an error came through, the innermost first."""
    paths = {id(m): path for path, m in model.named_modules()}
    found = []
    # Without the frame that has caught it: once its variables are looked at, it holds the error, and that what the run
    # has computed.
    at = error.__traceback__.tb_next if error.__traceback__ is not None else None
    while at is not None:
        code = at.tb_frame.f_code
        first = at.tb_frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(first, nn.Module) and id(first) in paths:
            found.append((paths[id(first)], code.co_name))
        at = at.tb_next
    return found[::-1]


def _size_mismatch(graph: Graph, keeps: KeepSets, nodes: Sequence[Node]) -> Mismatch | None:
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


def _argument_mismatch(graph: Graph, keeps: KeepSets, nodes: Sequence[Node]) -> Mismatch | None:
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
    return replace(found[0], locks=lambda: [lock for each in found for lock in each.locks()])


def _returned_mismatch(graph: Graph, keeps: KeepSets, again: Graph, effects: Sequence[float]) -> Mismatch | None:
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
