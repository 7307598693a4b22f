"""A glance at a run: which lines make calls, and from which to which tensors are passed; nothing else is noted.

Of most sizes at which a model is run that is all that is asked for (``speedup.resized``). To see it takes not much more
than the run itself: no parameter is masked, since contents decide nothing, no rule is asked, and nothing is left of it.
Where contents might decide something after all, where a tensor of the model would be written into, and where ops are
made out of sight, nothing is said, and the run is to be recorded.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from speedup import caches, walk
from speedup.expand import expand
from speedup.graph import Graph
from speedup.masking import are_apart, memory_of
from speedup.names import op_name
from speedup.node import Line
from speedup.registry import Registry
from speedup.rule import Rule
from speedup.trace.above import called_above
from speedup.trace.calls import Calls, listening, may_seek
from speedup.trace.making import Ops, is_closed, name_of, new_or_changed, transformed
from speedup.trace.meta import on_meta
from speedup.trace.outputs import later, tensors_in
from speedup.trace.reading import READS
from speedup.trace.run import uncompiled, versioned
from speedup.trace.sandbox import undisturbed
from speedup.trace.source import caller
from speedup.trace.told import now_told
from speedup.trees import PLAIN

# From which lines to which tensors are passed, the input (None) and what the model returns (None) among them.
Passages = frozenset[tuple[Line | None, Line | None]]


@dataclass(frozen=True, eq=False)
class Glance:
    """What was seen of a run.

    Attributes:
        reference: what the model returned, for its sizes.
    """

    lines: frozenset[Line]
    passed: Passages
    reference: list[torch.Tensor]


class UnclearError(Exception):
    """More than a glance is needed."""


def glance(
    model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], registry: Registry, graph: Graph
) -> Glance:
    """Run the model. Call it inside ``sandbox``.

    Args:
        graph: the run on the dummy input.

    Raises:
        UnclearError: the run is to be recorded.
        whatever the model raises.
    """
    if graph.branch is not None or graph.answers or graph.seeking is not None or graph.replaced:
        raise UnclearError
    if on_meta(model) or now_told() is not None:
        raise UnclearError
    with versioned(model), undisturbed(model):
        torch.manual_seed(0)  # as in ``verification.run``
        args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, inputs)
        expand(model, registry)
        paths = {id(module): path for path, module in reversed(walk.all_paths(model))}
        watcher = _Watcher(registry, paths, graph, tensors_in((args, kwargs)))
        watcher.above, watcher.caches = called_above(model, registry), caches.of(walk.modules(model))
        before = _held_by(model, graph)
        try:
            with uncompiled(), watcher.underneath, listening(watcher):
                result = model(*args, **kwargs)
        except Exception as error:
            if watcher.is_unclear:  # whatever the model's code made of that
                raise UnclearError from error
            raise
        if watcher.is_unclear or later(result) or _held_by(model, graph) != before:
            raise UnclearError
        returned = list(tensors_in(result))
        ends = {watcher.line_of(t) for t in returned if not watcher.is_of_model(t)}
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        changed = {watcher.line_of(t) for t in given} - {None}
        passed = watcher.passed | {(line, None) for line in ends | changed}
        return Glance(frozenset(watcher.lines), frozenset(passed), returned)


def _held_by(model: nn.Module, graph: Graph) -> list[int]:
    """Which tensors stand where the model holds some."""
    with walk.afresh():
        modules, held = dict(walk.all_paths(model)), walk.named_tensors(model)
    places = [name.rpartition(".") for v in graph.values if v.kind == "attribute" for name in v.names]
    attributes = [vars(modules[path]).get(name) for path, _, name in places]
    return [id(t) for t in (*(tensor for _, tensor in held), *attributes)]


class _Underneath(Ops):
    """Sees the ops of calls that are not known to be torch's own, and those outside of calls."""

    def __init__(self, watcher: _Watcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watcher = watcher

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        watcher = self.watcher
        watcher.ops += 1
        schema = getattr(func, "_schema", None)
        writes = schema is None or schema.is_mutable
        if not watcher.open_calls or (writes and any(watcher.is_of_model(t) for t in tensors_in((args, kwargs)))):
            watcher.unclear()
        return func(*args, **kwargs)


class _Watcher(Calls):
    """Notes lines and what is passed between them.

    Attributes:
        lines, passed: what was noted.
        ops: how many ops were seen.
        is_unclear: whether the run is to be recorded, whatever the model's code made of the error.
    """

    def __init__(
        self, registry: Registry, paths: Mapping[int, str], graph: Graph, inputs: Iterable[torch.Tensor]
    ) -> None:
        super().__init__(registry, {}, paths)
        self.claims = dict(graph.claims)
        self.lines: set[Line] = set()
        self.passed: set[tuple[Line | None, Line | None]] = set()
        self.ops = 0
        self.is_unclear = False
        self.underneath = _Underneath(self)
        self._made: dict[int, tuple[weakref.ref[torch.Tensor], Line | None]] = {}
        held = [(v.tensor, v.is_source) for v in graph.values if v.tensor is not None]
        self._sources = {id(t): t for t, is_source in held if is_source}
        self._memory = {memory_of(t) for t, _ in held} - {0}
        for tensor in inputs:
            self._track(tensor, None)

    def unclear(self) -> None:
        """The run is to be recorded.

        Raises:
            UnclearError: always.
        """
        self.is_unclear = True
        raise UnclearError

    def line_of(self, tensor: torch.Tensor) -> Line | None:
        """The line that made a tensor."""
        made = self._made.get(id(tensor))
        if made is not None and made[0]() is tensor:
            return made[1]
        if id(tensor) not in self._sources:  # it may be written into later
            self._track(tensor, None)
        return None

    def _track(self, tensor: torch.Tensor, line: Line | None) -> None:
        self._made[id(tensor)] = weakref.ref(tensor), line

    def is_of_model(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is in the memory of one that the model holds."""
        return memory_of(tensor) in self._memory

    # -- calls --------------------------------------------------------------------------------------------------------

    def enters(self, func: Any, parts: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        self.unclear()
        return False

    def sought(self, rule: Rule | None, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not args or not may_seek(rule):
            return args

        def found(through: torch.Tensor) -> torch.Tensor:
            self.unclear()
            return through

        return rule.seek(args, found)

    def claim_by_structure(self, module: nn.Module) -> Rule | None:
        return self.registry.for_module(module)

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
        if transformed() or self.is_unclear:
            self.unclear()
        with self.unseen(), self._lifted() as lifted:
            return self._noted(op, rule, _tensors(args, kwargs), call, module, held or {}, lifted)

    @contextlib.contextmanager
    def _lifted(self) -> Iterator[Ops | None]:
        """What sees ops, off its stack; None where it does not lie on top, under a mode of the model's own."""
        lifted = self.underneath if self.underneath.lift() else None
        try:
            yield lifted
        finally:
            if lifted is not None:
                lifted.lower()

    def _noted(
        self,
        op: Any,
        rule: Rule | None,
        given: list[torch.Tensor],
        call: Callable[[], Any],
        module: nn.Module | None,
        held: Mapping[str, torch.Tensor],
        lifted: Ops | None,
    ) -> Any:
        tensors = [*given, *held.values()]
        name = name_of(op)
        if name == "__set__" or any(t.is_nested for t in tensors):
            self.unclear()
        versions = [walk.version_of(t) for t in tensors]
        ops_before = self.ops
        if lifted is None:  # under a mode of the model's own
            self.unclear()
        if is_closed(op, rule, module) and not any(map(self.is_of_model, given)):
            result = call()
            self.ops += 1
        else:
            assert lifted is not None
            lifted.lower()
            try:
                result = call()
            finally:
                lifted.lift()
        outputs = [result] if isinstance(result, torch.Tensor) else list(tensors_in(result))
        changed = [t for t, v in zip(tensors, versions, strict=True) if walk.version_of(t) != v]
        if len(changed) > 1 or any(t.is_nested for t in outputs):
            self.unclear()
        returned, outputs = outputs, new_or_changed(outputs, tensors, changed)
        if not outputs:
            # Contents are read, or none is: then it is a question for a shape or type, or hands its input through.
            if tensors and (self.ops > ops_before or name in READS) and not returned:
                self.unclear()
            return result
        if rule is not None and rule.layout_only and len(tensors) == 1 and len(outputs) == 1:
            (one,), (other,) = tensors, outputs
            if one.shape == other.shape and one.dtype == other.dtype:
                self._hand_on(one, other)
                return result
        path = self.paths.get(id(module), "") if module is not None else ""
        where = caller() if module is None or changed else ""
        self._note(((self.scope[-1], path, op_name(op)), where if module is None else ""), tensors, outputs)
        if changed:
            self._spread(((self.scope[-1], "", f"in-place change by {op_name(op)}"), where), changed[0], outputs)
        return result

    def _hand_on(self, tensor: torch.Tensor, other: torch.Tensor) -> None:
        if id(tensor) in self._sources:
            self.unclear()
        self._track(other, self.line_of(tensor))

    def _note(self, line: Line, tensors: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        self.lines.add(line)
        self.passed.update([(self.line_of(t), line) for t in tensors if id(t) not in self._sources])
        for output in outputs:
            self._track(output, line)

    def _spread(self, line: Line, changed: torch.Tensor, outputs: list[torch.Tensor]) -> None:
        """Other tensors in the memory of one that was changed in place have new contents too."""
        memory = memory_of(changed)
        if memory in self._memory:
            self.unclear()
        made = {id(t) for t in outputs}
        live = [t for ref, _ in self._made.values() if (t := ref()) is not None and id(t) not in made]
        for tensor in live:
            if memory_of(tensor) == memory and not are_apart(changed, tensor):
                self._note(line, [tensor, *outputs], [tensor])


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, torch.Tensor):
            found.append(argument)
        elif type(argument) not in PLAIN:
            found += tensors_in(argument)
    return found
