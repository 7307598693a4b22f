"""The recorder: one run of the model under a function mode and a dispatch mode becomes a graph.

Three layers see a call, from the outside in:

1. ``nn.Module.__call__``: a module whose type a rule claims becomes one node, and what runs inside it is not recorded;
2. the torch function mode: a function that a rule claims becomes a node; another one written in Python is entered and
   its parts recorded; anything else becomes a node without a rule, a *barrier*;
3. the dispatch mode underneath sees ATen ops that no recorded call accounts for (a scripted helper, for one); they
   become barriers, so that no use of a tensor is missed.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode
from torch.utils import _python_dispatch as dispatch

from speedup import walk
from speedup.errors import RuleError
from speedup.graph import Branch, Node, Ref, Value
from speedup.masking import Masking
from speedup.names import op_name
from speedup.overwrite import InPlaceChange
from speedup.registry import Registry
from speedup.rule import Rule
from speedup.trace.enter import enterable
from speedup.trace.outputs import tensors_in
from speedup.trace.shapes import Shapes
from speedup.trace.source import caller, caller_and_sites, ends_at, see_through
from speedup.trace.tensors import Tensors
from speedup.trace.written import Written
from speedup.trees import replaced

# Calls that hand the contents of a tensor to Python without running any op: they count as reads.
_READS = frozenset(
    {"numpy", "tolist", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage", "__reduce_ex__"}
)

_BUILTIN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
_MOST_READS = 100  # in a run that is told what the data do not say


class EndlessError(Exception):
    """A run that is told what the data do not say does not come to its end."""


def _unrecorded(method: Callable[..., Any]) -> Callable[..., Any]:
    """For methods of the recorder: neither the inside of a call nor our own look at its tensors is recorded.

    Both modes are taken off their stacks: cheaper than to have them wave every inner call through.
    """

    @functools.wraps(method)
    def inner(self: Recorder, *args: Any, **kwargs: Any) -> Any:
        mode = _pop_mode() if torch._C._len_torch_function_stack() else None  # type: ignore[no-untyped-call]
        lifted = dispatch._get_current_dispatch_mode() is self.underneath is not None  # and not one of the model's own
        before, self.lifted = self.lifted, dispatch._pop_mode() if lifted else None
        self.open_calls += 1
        try:
            return method(self, *args, **kwargs)
        finally:
            self.open_calls -= 1
            if self.lifted is not None:
                dispatch._push_mode(self.lifted)
            self.lifted = before
            if mode is not None:
                _push_mode(mode)  # type: ignore[no-untyped-call]

    return inner


class Watch(Protocol):
    """Sees every call and may have it give other tensors; ``got`` is filled with all that is given, if it is there."""

    @property
    def got(self) -> list[list[torch.Tensor]] | None: ...

    def __call__(
        self, number: int, op_name: str, tensors: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]: ...


class Recorder(TorchFunctionMode):
    """Records calls into ``nodes``; use through ``trace``."""

    def __init__(
        self,
        model: nn.Module,
        registry: Registry,
        substitutes: Mapping[int, type[nn.Module]] | None = None,
        masking: Masking | None = None,
    ) -> None:
        super().__init__()
        self.masking = masking if masking is not None else Masking(model)
        self.written = Written(p for p in walk.parameters(model) if self.masking.mask_of(p) is None)
        self.substitutes = substitutes or {}
        self.registry = registry
        self.nodes: list[Node] = []
        self.passed: list[Node] = []
        self.tensors = Tensors(model, self.masking)
        self.scope: list[str] = [""]
        self.open_calls = 0
        self.op_count = 0
        self.entering: list[Any] = []
        self.current = ""
        self.in_place = InPlaceChange(name="in-place change")
        self.log: list[list[torch.Tensor]] | None = None
        self.watch: Watch | None = None
        self.underneath: dispatch.TorchDispatchMode | None = None
        self.lifted: dispatch.TorchDispatchMode | None = None
        self.place: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        self.branch: Branch | None = None
        self.answers: Sequence[bool] | None = None
        self.compared = False
        self.shapes: Shapes | None = None
        self.expected: Sequence[Node] = ()
        self.claims: dict[int, Rule | None] = {}
        self.asked: list[bool] = []
        self.reads = 0
        self.from_input: set[Value] = set()
        self.asking: set[str] = set()
        self.inside: set[torch.dtype] = set()
        self.dtypes: set[torch.dtype] = set()

    # -- recording ------------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.open_calls:
            return func(*args, **kwargs)
        if self.compared and self._is_correction(args):
            return self._corrected(func, args)
        rule = self.registry.for_function(func) if not _transformed() else None
        inside = enterable(func) if rule is None else _parts(rule, func, args, kwargs)
        if inside is not None and func not in self.entering:
            self.entering.append(func)
            try:
                with self:
                    return inside(*args, **kwargs)
            finally:
                self.entering.pop()
        return self.record(func, rule, args, kwargs, lambda: func(*args, **kwargs))

    def _is_correction(self, args: tuple[Any, ...]) -> bool:
        """Whether an edit has put this call in, to multiply what the call before it gave by a number: it is made at
        the very place of that call, where the plan has one call less."""
        if len(args) != 2 or type(args[1]) is not float or not self.nodes or not isinstance(args[0], torch.Tensor):
            return False
        last = self.nodes[-1]
        if self.tensors.made(args[0]) not in last.outputs or not last.sites:
            return False
        next_one = self.expected[len(self.nodes)] if len(self.nodes) < len(self.expected) else None
        planned = next_one is not None and ends_at(next_one.sites) == ends_at(self.expected[len(self.nodes) - 1].sites)
        return not planned and ends_at(caller_and_sites()[1]) == ends_at(last.sites)

    @_unrecorded
    def _corrected(self, func: Any, args: tuple[Any, ...]) -> torch.Tensor:
        """What an edit makes of the output of the last call, which it stands for from now on."""
        tensor, factor = args
        result: torch.Tensor = func(tensor, factor)
        last = self.nodes[-1]
        first = next(n for n in self.nodes if ends_at(n.sites) == ends_at(last.sites) and n.scope == last.scope)
        first.factor *= factor
        if self.log is not None:
            self.log[-1] = [result.detach().clone()]
        self.tensors.track(result, last.outputs[0])
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
        bound = module is None or not self.compared
        tensors: list[torch.Tensor] = []

        def ref(leaf: torch.Tensor) -> Ref:
            tensors.append(leaf)
            return Ref(len(tensors) - 1)

        # A list keeps its own contents when a caller fills it later: the structure is copied here.
        plain_args = tuple([ref(a) if isinstance(a, torch.Tensor) else replaced(torch.Tensor, ref, a) for a in args])
        plain_kwargs = {name: replaced(torch.Tensor, ref, a) for name, a in kwargs.items()} if kwargs else {}
        attributes: dict[str, int] = {}
        for name, tensor in (held or {}).items():
            attributes[name] = len(tensors)
            tensors.append(tensor)
        if _transformed():
            self.masking.interrupt()  # a transform has hold of the memory of parameters
        masked = self.masking.mask(tensors, module)
        before = [_state(t) for t in tensors]
        inputs = tuple(self.tensors.value_of(t) for t in tensors)
        ops_before = self.op_count
        name = getattr(op, "__name__", str(op))
        called = op_name(op)
        where, sites = caller_and_sites() if bound else ("", ())
        self.current = f"{called} at {where}"
        self.inside.clear()
        if name == "__set__" and tensors:
            self.written.save_data(tensors[0])
        try:
            quiet = self._writes_no_parameter(op, rule, module, tensors[: len(tensors) - len(attributes)])
            there = functools.partial(self._there, self._quietly if quiet else self._seen, call)
            if self.shapes is not None and (id(module) in self.substitutes or self._is_closed(op, rule, module)):
                result = self.shapes.result(op, module, plain_args, plain_kwargs, tensors, there)
            else:
                result = there()
        except Exception as error:
            self.masking.unmask(masked)
            if not hasattr(error, "speedup_call"):
                error.speedup_call = (called, plain_args, plain_kwargs)  # type: ignore[attr-defined]
            raise
        outputs = [result] if isinstance(result, torch.Tensor) else list(tensors_in(result))
        if quiet:
            self.inside.update([t.dtype for t in outputs])
        after = [_state(t) for t in tensors]
        changed = (
            [t for t, old, new in zip(tensors, before, after, strict=True) if old != new] if after != before else []
        )
        if name == "__set__" and tensors:  # x.data = y
            changed = [tensors[0], *(t for t in changed if t is not tensors[0])]
        self.masking.unmask(masked, outputs)
        untouched = {id(t) for t in tensors} - {id(t) for t in changed}
        outputs = [t for t in outputs if id(t) not in untouched]
        if changed:
            outputs += [t for t in {id(t): t for t in changed}.values() if all(t is not o for o in outputs)]
        if rule is not None and rule.layout_only and _alike(tensors, outputs):
            self.tensors.track(outputs[0], inputs[0])
            return result
        if self.watch is not None and outputs and not changed:
            given = self.watch(len(self.nodes), called, tensors, outputs)
            instead = {id(old): new for old, new in zip(outputs, given, strict=True)}
            result = replaced(torch.Tensor, lambda t: instead.get(id(t), t), result)
            outputs = given
        passed = not outputs and module is not None and rule is not None and rule.scales
        if not outputs:
            reads = tensors and (self.op_count > ops_before or name in _READS)
            if not reads or list(tensors_in(result)):
                if type(result) in (int, torch.Size) and name != "dim":
                    self.asking.add(self.scope[-1])
                if not (passed and isinstance(result, torch.Tensor)):
                    return result  # a question about shape or type, or a call that hands its input through
        node = Node(
            index=len(self.nodes),
            op=op,
            op_name=called,
            rule=None,
            module=module,
            path=self.tensors.paths.get(id(module), "") if module is not None else "",
            scope=self.scope[-1],
            where=where,
            args=plain_args,
            kwargs=plain_kwargs,
            tensors=inputs,
            outputs=(),
            attributes=attributes,
            sites=sites,
            writes=bool(changed),
        )
        if passed and isinstance(result, torch.Tensor):
            node.outputs = (self.tensors.value_of(result),)
            self._claim(node, rule)
            self.passed.append(node)
            return result
        node.outputs = tuple(self.tensors.new(t, "activation", node) for t in outputs)
        if any(v in self.from_input or v.kind == "unknown" for v in inputs):
            self.from_input.update(node.outputs)
            self.dtypes |= self.inside
            if not outputs:
                self._count_read()
            if not outputs and self.branch is None:
                if isinstance(result, bool) and self.answers is not None:
                    result = self._answer(result)
                else:
                    self.branch = Branch(node, self.tensors.existing())
        if _transformed() and self.branch is None:
            why = "a transform of torch.func runs here: what its calls read and make cannot be followed"
            self.branch = Branch(node, self.tensors.existing(), why)
        self._claim(node, rule)
        self._append(node)
        if self.log is not None:
            self.log.append([] if _transformed() else [t.detach().clone() for t in outputs])
        for tensor, value in zip(outputs, node.outputs, strict=True):
            self.tensors.track(tensor, value)
        if changed:
            self._spread_mutation(changed, node)
        return result

    def _writes_no_parameter(self, op: Any, rule: Any, module: nn.Module | None, given: list[torch.Tensor]) -> bool:
        """Whether a call is one of torch's own that may write into nothing but what it is given, and is given no
        parameter: then the ops that it is made of need not be seen."""
        return self._is_closed(op, rule, module) and not self.written.holds(given)

    def _is_closed(self, op: Any, rule: Any, module: nn.Module | None) -> bool:
        """Whether a call is one of torch's own, which reads and may write nothing but what it is given."""
        if rule is None or rule.writes_weights or not _is_torchs_own(op) or (module is not None and module._modules):
            return False
        return not _transformed()

    def _there(self, run: Callable[[Callable[[], Any]], Any], call: Callable[[], Any]) -> Any:
        """Run a call where the model is."""
        with self.place:
            return run(call)

    def _quietly(self, call: Callable[[], Any]) -> Any:
        """Run a call whose ops are not seen: to see one takes as long as the op itself."""
        self.op_count += 1
        return call()

    def _seen(self, call: Callable[[], Any]) -> Any:
        """Run a call with the dispatch mode."""
        if self.lifted is None:
            return call()
        dispatch._push_mode(self.lifted)
        try:
            return call()
        finally:
            dispatch._pop_mode()

    def _count_read(self) -> None:
        """A loop that waits for its data may never end when Python was told something else about them."""
        self.reads += 1
        if self.answers and self.reads > _MOST_READS:
            raise EndlessError(f"more than {_MOST_READS} looks at data of the input")

    def _answer(self, real: bool) -> bool:
        """The truth value that Python is told."""
        assert self.answers is not None
        number = len(self.asked)
        self.asked.append(self.answers[number] if number < len(self.answers) else real)
        return self.asked[-1]

    def _claim(self, node: Node, rule: Rule | None) -> None:
        if rule is not None and not self.compared:
            rule.claim(node)
        elif node.module is None:
            node.claimant = rule

    def _append(self, node: Node) -> None:
        self.nodes.append(node)
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
            self.in_place.claim_change(node, tensor, changed)
            self._append(node)
            if self.log is not None:
                self.log.append([tensor.detach().clone()])
            self.tensors.track(tensor, node.outputs[0])

    # -- modules --------------------------------------------------------------------------------------------------

    def _rule_of(self, module: nn.Module) -> Rule | None:
        """The rule that claims a module, asked for once."""
        if id(module) not in self.claims:
            rule = self.registry.for_type(type(module))
            if rule is None or "forward" in vars(module):
                rule = self._rule_by_structure(module)
            self.claims[id(module)] = rule
        return self.claims[id(module)]

    @_unrecorded
    def _rule_by_structure(self, module: nn.Module) -> Rule | None:
        try:
            found: Rule | None = self.registry.for_module(module)
        except RuleError as error:
            place = f"{self.tensors.paths.get(id(module)) or 'the model'} ({op_name(type(module))}) ({caller()})"
            raise RuleError(f"{error}, at {place}") from error
        return found

    def call_module(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        if self.open_calls:
            return original(module, *args, **kwargs)
        path = self.tensors.paths.get(id(module), "")
        stands_for = self.substitutes.get(id(module))
        known = stands_for is None and id(module) in self.tensors.paths and not _transformed()
        rule = self._rule_of(module) if known else None
        if rule is None and stands_for is None:
            self.scope.append(path)
            try:
                return original(module, *args, **kwargs)
            finally:
                self.scope.pop()
        forward = module.forward

        def recorded(*a: Any, **k: Any) -> Any:
            if stands_for is not None:
                return self.record(stands_for, None, a, k, lambda: forward(*a, **k), module)
            held = _held(rule, module, path)
            return self.record(type(module), rule, a, k, lambda: forward(*a, **k), module, held)

        if not (module._forward_hooks or module._forward_pre_hooks):
            return recorded(*args, **kwargs)
        # Hooks see and may change what goes in and out: only the forward itself is the node.
        shadowed = module.__dict__.get("forward")
        module.__dict__["forward"] = recorded
        try:
            return original(module, *args, **kwargs)
        finally:
            if shadowed is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = shadowed


def _parts(rule: Rule, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[..., Any] | None:
    try:
        parts = rule.in_parts(function, args, kwargs)
    except Exception as error:
        raise RuleError(f"{rule.label} raised in in_parts at {op_name(function)} ({caller()}): {error!r}") from error
    code = getattr(parts, "__code__", None)
    if code is not None:
        see_through([code.co_filename])  # the place of the calls is that of the call they stand for
    return parts


def _held(rule: Any, module: nn.Module, path: str) -> dict[str, torch.Tensor]:
    try:
        held: dict[str, torch.Tensor] = rule.held(module)
    except Exception as error:
        place = f"{path or 'the model'} ({op_name(type(module))}) ({caller()})"
        raise RuleError(f"{rule.label} raised in held at {place}: {error!r}") from error
    return held


@functools.lru_cache(maxsize=4096)
def _is_torchs_own(op: Any) -> bool:
    """Whether a function or a module type is part of torch itself."""
    return isinstance(op, _BUILTIN) or (getattr(op, "__module__", None) or "").startswith("torch.nn.")


def _transformed() -> bool:
    """Whether ``torch.vmap``, ``torch.func.grad`` or the like runs: tensors inside it are wrappers of others, made and
    taken off out of sight."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _state(tensor: torch.Tensor) -> Any:
    """What an in-place op changes of a tensor, one that gives it another shape included."""
    version = walk.version_of(tensor)
    if version is not None:
        return version
    return tensor.shape, tensor.stride() if tensor.layout is torch.strided else ()


def _alike(tensors: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> bool:
    """Whether a call made one tensor of one, of the same shape and type."""
    return [(t.shape, t.dtype) for t in tensors] == [(t.shape, t.dtype) for t in outputs] and len(outputs) == 1
