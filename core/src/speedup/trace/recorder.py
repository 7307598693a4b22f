"""The recorder: one run of the model under a function mode and a dispatch mode becomes a graph.

What a call is, ``speedup.trace.calls`` says. The dispatch mode underneath sees ATen ops that none of them accounts for
(a scripted helper, for one); they become barriers, so that no use of a tensor is missed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils import _pytree as pytree

from speedup import caches, walk
from speedup.deferred import Deferred
from speedup.errors import RuleError
from speedup.graph import Extent
from speedup.kinds import Kind
from speedup.masking import Masking
from speedup.names import op_name
from speedup.node import Node, Ref, Value
from speedup.overwrite import InPlaceChange
from speedup.registry import Registry
from speedup.rule import Rule
from speedup.trace.calls import Calls, gives_the_same, may_seek
from speedup.trace.factors import Factors
from speedup.trace.making import Maker, Ops, name_of, transformed
from speedup.trace.number import number_of
from speedup.trace.outputs import tensors_in
from speedup.trace.reading import READS, Reading
from speedup.trace.seeking import Seeking
from speedup.trace.source import caller, caller_and_sites
from speedup.trace.tensors import Tensors
from speedup.trace.told import Telling
from speedup.trees import PLAIN, replaced

_HELD = frozenset(("parameter", "buffer", "attribute"))  # kinds of values that the model holds

_TRANSFORMED = "it runs in a transform of torch.func (vmap, grad), where nothing can be followed"
_WHY_TRANSFORMED = "a transform of torch.func runs here: what its calls read and make cannot be followed"

_WHY_ENDED = "what comes from here on is not recorded"


def _unrecorded(method: Callable[..., Any]) -> Callable[..., Any]:
    """For methods of the recorder: neither the inside of a call nor our own look at its tensors is recorded, of ops
    neither."""

    @functools.wraps(method)
    def inner(self: Recorder, *args: Any, **kwargs: Any) -> Any:
        mode, maker = self.underneath, self.maker
        before, maker.lifted = maker.lifted, mode if mode is not None and mode.lift() else None
        away = self.look_away()
        try:
            return method(self, *args, **kwargs)
        finally:
            self.look_back(away)
            if maker.lifted is not None:
                maker.lifted.lower()
            maker.lifted = before

    return inner


class Watch(Protocol):
    """Sees every call and may have it give other tensors; ``got`` is filled with all that is given, if it is there."""

    @property
    def got(self) -> list[list[torch.Tensor]] | None: ...

    def __call__(
        self, number: int, op_name: str, tensors: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]: ...


class Recorder(Calls):
    """Records calls into ``nodes``; use through ``trace``."""

    def __init__(
        self,
        model: nn.Module,
        registry: Registry,
        substitutes: Mapping[int, type[nn.Module]] | None = None,
        masking: Masking | None = None,
    ) -> None:
        self.masking = masking if masking is not None else Masking(model)
        self.tensors = Tensors(model, self.masking)
        super().__init__(registry, substitutes or {}, self.tensors.paths)
        self.caches = caches.of(walk.modules(model))
        self.maker = Maker(model, self.masking, self.substitutes)
        self.nodes: list[Node] = []
        self.passed: list[Node] = []
        self.in_place = InPlaceChange(name="in-place change")
        self.log: list[list[torch.Tensor]] | None = None
        self.watch: Watch | None = None
        self.underneath: Ops | None = None
        self.until: Callable[[Node], bool] | None = None
        self.compared = False
        self.factors = Factors(self.tensors, self.nodes)
        self.from_input: set[Value] = set()
        self.of_model: set[Value] = set()  # what is made of something that the model holds
        self.asking: set[str] = set()
        self.asking_code: set[CodeType] = set()
        self.dtypes: set[torch.dtype] = set()
        self.telling = Telling(self.scope)
        self.reading = Reading(self.tensors, self.telling)
        self.seeking = Seeking(self.tensors, self.nodes, self.from_input, self.reading, self.telling)

    # -- recording ------------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.reading.lends:
            args, kwargs = self.given(args, kwargs or {})
        if self.compared and not self.open_calls and self.factors.is_one(args):
            return self._multiplied(func, args)
        return super().__torch_function__(func, types, args, kwargs)

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return pytree.tree_map(number_of, (args, kwargs)) if self.reading.lends else (args, kwargs)

    def sought(self, rule: Rule | None, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self.seeking.looks = False
        return self._sought(rule, args) if args and may_seek(rule) else args

    @_unrecorded
    def _sought(self, rule: Rule, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return rule.seek(args, functools.partial(self.seeking.found, rule))

    @property
    def extent(self) -> Extent:
        """What the run could be told."""
        telling, seeking = self.telling, self.seeking
        return Extent(
            questions=telling.most("question"),
            calls=telling.most("call"),
            places=seeking.least,
            asking=telling.modules("question"),
            seeking=telling.modules("call"),
            masks=seeking.masks,
            found=seeking.fewest,
            reads=self.reading.takes,
            said=telling.said,
        )

    @_unrecorded
    def enters(self, func: Any, parts: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call in parts gives what the call gives: every run that is compared is made in parts, so that a
        mistake in them would show in none."""
        states = self.masking.mask(list(tensors_in((args, kwargs))))
        try:
            with self.maker.place:
                return gives_the_same(func, parts, args, kwargs)
        finally:
            self.masking.unmask(states)

    @_unrecorded
    def fill(self, deferred: Deferred, tensors: Sequence[Any]) -> None:
        deferred.fill(tensors)

    @_unrecorded
    def claim_by_structure(self, module: nn.Module) -> Rule | None:
        try:
            found: Rule | None = self.registry.for_module(module)
        except RuleError as error:
            place = f"{self.paths.get(id(module)) or 'the model'} ({op_name(type(module))}) ({caller()})"
            raise RuleError(f"{error}, at {place}") from error
        return found

    @_unrecorded
    def _multiplied(self, func: Any, args: tuple[Any, ...]) -> torch.Tensor:
        result = self.factors.multiplied(func, args)
        if self.log is not None:
            self.log[-1] = [result.detach().clone()]
        return result

    @_unrecorded
    def record(
        self,
        op: Any,
        rule: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        call: Callable[[], Any],
        module: nn.Module | None = None,
        held: dict[str, torch.Tensor] | None = None,
    ) -> Any:
        """Run ``call`` and note it as one node, unless it did nothing with any tensor."""
        inside = transformed()
        node, tensors = self._begun(op, args, kwargs, module, held or {}, inside)
        ops_before = self.maker.op_count
        for tensor in tensors:
            if tensor.is_nested:
                rule = None  # no signature speaks of lists of tensors of several sizes
        seeking = self.seeking
        ready = seeking.resumed.result(len(self.nodes), node) if seeking.resumed is not None else None
        result, outputs, changed = self.maker.make(node, rule, tensors, call, inside, ready)
        stands = seeking.standing if self.maker.closed and not changed else None
        if stands is not None and stands.is_open and not self.from_input.isdisjoint(node.tensors):
            stands.note(len(self.nodes), node, tensors, result)
        for tensor in outputs:
            if tensor.is_nested:
                rule = None
        if rule is not None and rule.layout_only and _alike(tensors, outputs):
            self.tensors.track(outputs[0], node.tensors[0])
            return result
        if self.watch is not None and outputs and not changed:
            given = self.watch(len(self.nodes), node.op_name, tensors, outputs)
            instead = {id(old): new for old, new in zip(outputs, given, strict=True)}
            result = replaced(torch.Tensor, lambda t: instead.get(id(t), t), result)
            outputs = given
        if not outputs:
            reads = tensors and (self.maker.op_count > ops_before or name_of(op) in READS)
            if not reads or list(tensors_in(result)):
                if type(result) in (int, torch.Size) and name_of(op) != "dim":
                    self.asking.add(self.scope[-1])
                    self.asking_code.update([code for code, _ in node.sites])
                    seeking.note_count(node)
                if module is not None and rule is not None and rule.scales and isinstance(result, torch.Tensor):
                    node.outputs = (self.tensors.value_of(result),)
                    self._claim(node, rule)
                    self.passed.append(node)
                return result  # a question about shape or type, or a call that hands its input through
        result = self._noted(node, rule, result, outputs, inside)
        if changed:
            self._spread_mutation(changed, node)
        if self.until is not None and self.until(node):
            self._end(node)
        return result

    def _end(self, node: Node) -> None:
        """Record no more: what is called from now on is made as if it stood inside of a call."""
        self.open_calls += 1
        self.reading.branch_at(node, _WHY_ENDED)

    def _begun(
        self,
        op: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        module: nn.Module | None,
        held: dict[str, torch.Tensor],
        inside: bool,
    ) -> tuple[Node, list[torch.Tensor]]:
        """A call that is about to be made, as a node without outputs; and the tensors that go in.

        Args:
            inside: whether a transform runs, see ``transformed``.
        """
        tensors: list[torch.Tensor] = []

        def ref(leaf: torch.Tensor) -> Ref:
            tensors.append(leaf)
            return Ref(len(tensors) - 1)

        # A list keeps its own contents when a caller fills it later: the structure is copied here.
        plain_args = tuple(
            [
                a if type(a) in PLAIN else ref(a) if isinstance(a, torch.Tensor) else replaced(torch.Tensor, ref, a)
                for a in args
            ]
        )
        plain_kwargs = {name: replaced(torch.Tensor, ref, a) for name, a in kwargs.items()} if kwargs else {}
        attributes = dict(zip(held, range(len(tensors), len(tensors) + len(held)), strict=True)) if held else {}
        tensors += held.values()
        where, sites = caller_and_sites() if module is None or not self.compared else ("", ())
        node = Node(
            index=len(self.nodes),
            op=op,
            op_name=op_name(op),
            rule=None,
            module=module,
            path=self.tensors.paths.get(id(module), "") if module is not None else "",
            scope=self.scope[-1],
            where=where,
            args=plain_args,
            kwargs=plain_kwargs,
            tensors=tuple(map(self._wrapped, tensors)) if inside else self.tensors.values_of(tensors),
            outputs=(),
            attributes=attributes,
            sites=sites,
        )
        return node, tensors

    def _wrapped(self, tensor: torch.Tensor) -> Value:
        """The value of a tensor inside a transform, which wraps the tensors that it is given."""
        while self.tensors.made(tensor) is None and torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        return self.tensors.value_of(tensor)

    def _noted(self, node: Node, rule: Rule | None, result: Any, outputs: list[torch.Tensor], inside: bool) -> Any:
        """Take a call that was made into the graph; what Python gets of it."""
        node.outputs = tuple([self.tensors.new(t, "activation", node) for t in outputs])
        if inside:
            node.note = _TRANSFORMED
        for value in node.tensors:
            if value.kind in _HELD or value in self.of_model:
                self.of_model.update(node.outputs)
                if inside:
                    self.reading.branch_at(node, _WHY_TRANSFORMED, Kind.BARRIER)
                break
        fresh = [v for v in node.tensors if v in self.from_input or v.kind == "unknown"]
        if fresh:
            self.from_input.update(node.outputs)
            self.dtypes |= self.maker.inside
            seeks = rule is not None and rule.seeks
            of_places = (seeks or self.seeking.has_begun) and self.seeking.note(node, seeks, fresh)
            if not outputs and not (of_places and self.telling.told is not None):
                result = self.reading.read(node, result, of_places)
        self._claim(node, rule)
        self._append(node)
        if self.log is not None:
            self.log.append([] if inside else [t.detach().clone() for t in outputs])
        for tensor, value in zip(outputs, node.outputs, strict=True):
            self.tensors.track(tensor, value)
        return result

    def _claim(self, node: Node, rule: Rule | None) -> None:
        if rule is not None and not self.compared:
            rule.claim(node)
        elif node.module is None:
            node.claimant = rule

    def claim_again(self) -> None:
        """Calls that read beside their operands what the next call finds changed were claimed as if it stayed."""
        if all(v.next is None for v in self.tensors.touched()):
            return
        for node in self.nodes:
            if node.rule is not None and any(v.next is not None for v in node.others):
                for value in set(node.tensors):
                    value.uses[:] = [use for use in value.uses if use[0] is not node]
                for name in ("layout", "_found"):
                    node.__dict__.pop(name, None)
                node.rule.claim(node)
                self._note_uses(node)

    def _append(self, node: Node) -> None:
        self.nodes.append(node)
        self._note_uses(node)

    def _note_uses(self, node: Node) -> None:
        read = node.operands if node.rule is not None else node.tensors
        for number, value in enumerate(read):
            if value is not None:
                value.uses.append((node, number))
        if node.rule is not None:
            for value in node.others:
                value.uses.append((node, -1))

    def _spread_mutation(self, changed: list[torch.Tensor], cause: Node) -> None:
        """Other live tensors in the storage of a tensor that was changed in place have new contents too."""
        fresh = set(cause.outputs)
        for tensor, value in self.tensors.sharing(changed):
            if value in fresh:
                continue
            node = Node(
                index=len(self.nodes),
                op=None,
                op_name=f"in-place change by {cause.op_name}",
                rule=None,
                module=None,
                path="",
                scope=cause.scope,
                where=cause.where,
                args=(Ref(0), Ref(1)),
                kwargs={},
                tensors=(value, *cause.outputs),
                outputs=(),
            )
            node.outputs = (self.tensors.new(tensor, "activation", node),)
            if any(v in self.from_input or v.kind == "unknown" for v in node.tensors):
                self.from_input.update(node.outputs)
            if not self.of_model.isdisjoint(node.tensors) or value.kind in _HELD:
                self.of_model.update(node.outputs)
            self.in_place.claim_change(node, tensor, changed)
            self._append(node)
            if self.log is not None:
                self.log.append([tensor.detach().clone()])
            self.tensors.track(tensor, node.outputs[0])


def _alike(tensors: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> bool:
    """Whether a call made one tensor of one, of the same shape and type."""
    return [(t.shape, t.dtype) for t in tensors] == [(t.shape, t.dtype) for t in outputs] and len(outputs) == 1
