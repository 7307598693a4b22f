"""A run of the small model that is expected to make the very calls of the masked one, on fewer indices.

Most small models do. To see that takes much less than to record the run: each call is compared with the one that is
due, its op, the shapes of what it gives, and the numbers that it is given: those that are others are noted, for they
may be made of sizes. Where a call is another, or where more than calls would have to be watched, nothing is said: the
run is recorded then, and looked at closely.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from speedup import caches, walk
from speedup.deferred import Deferred
from speedup.expand import expand
from speedup.graph import Graph
from speedup.names import op_name
from speedup.node import Node, Ref
from speedup.overwrite import Changed
from speedup.registry import Registry
from speedup.rule import Rule
from speedup.trace.above import called_above
from speedup.trace.calls import Calls, gives_the_same, listening
from speedup.trace.making import new_or_changed, transformed
from speedup.trace.meta import on_meta
from speedup.trace.outputs import Returned, later, tensors_in
from speedup.trace.run import uncompiled, versioned
from speedup.trace.sandbox import undisturbed
from speedup.trace.told import now_told
from speedup.trees import PLAIN, alike, equal, replaced

Shape = tuple[int, ...]


Given = tuple[tuple[Any, ...], dict[str, Any]]

Mended = Callable[[Node, tuple[Any, ...], dict[str, Any]], Given | None]


class _OtherwiseError(Exception):
    """The model does not do what is expected."""


@dataclass(frozen=True, eq=False)
class Replayed:
    """A run of the small model.

    Attributes:
        returned: what it gives.
        given: the arguments of the calls of functions that are given other numbers than the recorded ones.
    """

    returned: Returned
    given: Mapping[Node, Given]


def replay(
    model: nn.Module,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    registry: Registry,
    graph: Graph,
    shape_of: Callable[[Any], Shape],
    substitutes: Mapping[int, type[nn.Module]],
    deferred: Deferred,
    mended: Mended | None = None,
) -> Replayed | None:
    """Run the small model; None where it makes other calls than the graph has, or where nothing can be said.

    Call it inside ``sandbox``. What the run changes of the model is put back after it.

    Args:
        shape_of: the shape that a value of the graph is to have in the small model.
        substitutes: as for ``trace``.
        deferred: tensors that get their numbers when a call is made that reads them.
        mended: for a call of a function that fails, or that gives other shapes: with which arguments it is made again,
            and the run goes on. None where there are none.
    """
    if not _is_plain(graph) or on_meta(model) or now_told() is not None:
        return None
    with versioned(model), undisturbed(model, deferred.buffers):
        args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, inputs)
        expand(model, registry)
        paths = {id(module): path for path, module in walk.named_modules(model)}
        player = _Player(registry, substitutes, paths, graph, shape_of, mended)
        player.above, player.caches = called_above(model, registry), caches.of(walk.modules(model))
        player.deferred = deferred
        try:
            with uncompiled(), listening(player):
                result = model(*args, **kwargs)
        except Exception:  # what it raises is seen again when it is recorded
            return None
        if player.due is not None or later(result):
            return None
        return Replayed(Returned.of(result), player.given_otherwise)


def _is_plain(graph: Graph) -> bool:
    """Whether nothing but calls matters of a run: Python is told nothing of the data, no parameter is written to, and
    no call is seen but through those of functions and modules."""
    if graph.branch is not None or graph.answers or graph.replaced:
        return False
    for node in graph.nodes:
        if node.op is None or isinstance(node.op, OpOverload):
            return False
        if node.writes and any(v.kind not in ("input", "activation") for v in node.tensors[: _given(node)]):
            return False
    return True


def _given(node: Node) -> int:
    """How many tensors a call is given; behind them come those that its module holds."""
    return len(node.tensors) - len(node.attributes)


class _Player(Calls):
    """Compares each call with the one that is due.

    Attributes:
        due: that call; None at the end.
        given_otherwise: see ``Replayed``.
    """

    def __init__(
        self,
        registry: Registry,
        substitutes: Mapping[int, type[nn.Module]],
        paths: Mapping[int, str],
        graph: Graph,
        shape_of: Callable[[Any], Shape],
        mended: Mended | None,
    ) -> None:
        super().__init__(registry, substitutes, paths)
        self.claims = dict(graph.claims)
        self._shape_of = shape_of
        self._mended = mended
        self._nodes = iter(graph.nodes)
        self.due = self._next()
        self.given_otherwise: dict[Node, Given] = {}

    def enters(self, func: Any, parts: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        with self.unseen():
            return gives_the_same(func, parts, args, kwargs)

    def claim_by_structure(self, module: nn.Module) -> Rule | None:
        raise _OtherwiseError  # a module that the masked model does not call

    def record(
        self,
        op: Any,
        rule: Rule | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        call: Callable[[], Any],
        module: nn.Module | None = None,
        held: dict[str, torch.Tensor] | None = None,
    ) -> Any:
        try:
            return self._made(op, rule, args, kwargs, call)
        except Exception:
            given = self._mended_arguments(op, args, kwargs) if module is None else None
            if given is None:
                raise
        args, kwargs = given
        return self._made(op, rule, args, kwargs, functools.partial(op, *args, **kwargs))

    def _mended_arguments(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given | None:
        due = self.due
        return (
            self._mended(due, args, kwargs) if self._mended is not None and due is not None and op is due.op else None
        )

    def _made(
        self, op: Any, rule: Rule | None, args: tuple[Any, ...], kwargs: dict[str, Any], call: Callable[[], Any]
    ) -> Any:
        """Make a call and go on to the next one.

        Raises:
            _OtherwiseError: it is not the one that is due.
            whatever the call raises.
        """
        if transformed():
            raise _OtherwiseError
        away = self.look_away()
        try:
            tensors = _tensors(args, kwargs)
            versions = walk.versions_of(tensors)
            result = call()
            outputs = [result] if isinstance(result, torch.Tensor) else list(tensors_in(result))
            now = walk.versions_of(tensors)
            changed = [t for t, v, w in zip(tensors, versions, now, strict=True) if v != w] if now != versions else []
            outputs = new_or_changed(outputs, tensors, changed)
            if not self._passes(rule, tensors, outputs):
                self._compare(op, args, kwargs, outputs)
            return result
        finally:
            self.look_back(away)

    def held(self, rule: Any, module: nn.Module) -> dict[str, torch.Tensor]:
        """Nothing: they are not looked at."""
        return {}

    def _passes(self, rule: Rule | None, tensors: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> bool:
        """Whether the recorder makes no node of a call."""
        if not outputs:
            return self.due is None or bool(self.due.outputs)  # else it may be what the graph has
        if rule is None or not rule.layout_only or len(outputs) != 1 or len(tensors) != 1:
            return False
        return outputs[0].shape == tensors[0].shape and outputs[0].dtype == tensors[0].dtype

    def _compare(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Sequence[torch.Tensor]) -> None:
        """Go on to the next call.

        Raises:
            _OtherwiseError: this is not the one that is due.
        """
        due = self.due
        if due is None or len(outputs) != len(due.outputs):
            raise _OtherwiseError
        if op is not due.op and op_name(op) != due.op_name:
            raise _OtherwiseError
        for tensor, value in zip(outputs, due.outputs, strict=True):
            wanted = self._shape_of(value)
            if tensor.is_nested or (tensor.shape != wanted and not (0 in wanted and 0 in tensor.shape)):
                raise _OtherwiseError
        if not _are_alike(args, kwargs, due, _is_as_recorded):
            if due.module is not None or not _are_alike(args, kwargs, due, _is_such):
                raise _OtherwiseError
            refs = map(Ref, itertools.count())
            self.given_otherwise[due] = replaced(torch.Tensor, lambda _: next(refs), (args, kwargs))
        self.due = self._next()

    def _next(self) -> Node | None:
        """The next call. What follows from views is none: of whole tensors the same follows from the same calls."""
        for node in self._nodes:
            if not (isinstance(node.op, Changed) and self._is_whole(node)):
                return node
        return None

    def _is_whole(self, node: Node) -> bool:
        return all(self._shape_of(v) == v.shape for v in (*node.tensors, *node.outputs))


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, torch.Tensor):
            found.append(argument)
        elif type(argument) not in PLAIN:
            found += tensors_in(argument)
    return found


def _are_alike(args: tuple[Any, ...], kwargs: dict[str, Any], due: Node, leaf: Callable[[Any, Any], bool]) -> bool:
    """Whether a call is given what a recorded call was, by leaves."""
    if len(args) != len(due.args):
        return False
    for given, recorded in zip(args, due.args, strict=True):
        if type(recorded) is not Ref if isinstance(given, torch.Tensor) else not alike(given, recorded, leaf):
            return False
    return (not kwargs and not due.kwargs) or alike(kwargs, due.kwargs, leaf)


def _is_as_recorded(given: Any, recorded: Any) -> bool:
    """Whether a leaf of what a call is given is what a recorded call has there."""
    return type(recorded) is Ref if isinstance(given, torch.Tensor) else equal(given, recorded)


def _is_such(given: Any, recorded: Any) -> bool:
    """As ``_is_as_recorded``, or another number of the same type."""
    return (type(given) is type(recorded) and type(given) in (int, float)) or _is_as_recorded(given, recorded)
