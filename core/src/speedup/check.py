"""The check before anything is committed: the new model runs once and is compared with plan and masked model.

Call by call the sizes, then the numbers of the outputs. A size that differs from the plan means that the forward holds
a size of its own (a literal, an attribute): it is repaired, or those indices are locked and planned again. Numbers that
differ mean a wrong rule: the model is refused, and the first call that differs is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from speedup import walk
from speedup.decisions import Decisions
from speedup.deferred import Deferred
from speedup.errors import CheckError, SpeedupError
from speedup.graph import Graph
from speedup.keep import KeepSets
from speedup.locking import changed_axes, lock_call
from speedup.mismatch import Mismatch, argument_mismatch, returned_mismatch, size_mismatch, taken_mismatch
from speedup.node import Node, Value
from speedup.registry import Registry
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
        found = size_mismatch(graph, keeps, nodes)
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
    found = size_mismatch(graph, keeps, again.nodes) or argument_mismatch(graph, keeps, again.nodes)
    if found is None and decisions is not None:
        found = taken_mismatch(graph, keeps, again.nodes, decisions.taken)
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
    if len(nodes) < len(planned) or argument_mismatch(graph, keeps, nodes) is not None:
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
    return returned_mismatch(graph, keeps, again, effects)


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
