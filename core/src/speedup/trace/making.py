"""Making one call of a run: in the place where the model is, with the parameters that it reads masked, and with the ops
that it is made of seen where they may write into the model."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _python_dispatch as dispatch

from speedup import walk
from speedup.masking import Masking, are_apart, memory_of
from speedup.names import is_torchs_own
from speedup.node import Node, Ref
from speedup.trace.meta import HERE
from speedup.trace.outputs import tensors_in
from speedup.trace.shapes import Shapes
from speedup.trace.slices import slices_of
from speedup.trace.written import Written

_IN_PLACE = re.compile(r"__setitem__|__i[a-z]+__|[a-z]\w*[a-z0-9]_")  # names of what writes into its first argument


class Maker:
    """Makes the calls of one run.

    Attributes:
        place: where the model is.
        shapes: what calls of other runs gave, where the model is on meta.
        written: the parameters that the run has written into.
        op_count: how many ops were seen so far.
        inside: the types of what the ops of the last call gave.
        closed: whether the last call was one of torch's own, see ``is_closed``, and no transform of torch.func ran.
        lifted: the dispatch mode that sees ops, while it is off its stack.
        node: the last call.
    """

    def __init__(self, model: nn.Module, masking: Masking, substitutes: Mapping[int, type[nn.Module]]) -> None:
        self.masking = masking
        self.substitutes = substitutes
        self.written = Written(p for p in walk.parameters(model) if masking.mask_of(p) is None)
        self.place: contextlib.AbstractContextManager[Any] = HERE
        self.shapes: Shapes | None = None
        self.op_count = 0
        self.inside: set[torch.dtype] = set()
        self.closed = False
        self.lifted: Ops | None = None
        self.node: Node | None = None

    @property
    def current(self) -> str:
        """How messages call the last call; '' before the first one."""
        return f"{self.node.op_name} at {self.node.where}" if self.node is not None else ""

    def make(
        self,
        node: Node,
        rule: Any,
        tensors: list[torch.Tensor],
        call: Callable[[], Any],
        inside: bool,
        ready: torch.Tensor | None = None,
    ) -> tuple[Any, list[torch.Tensor], list[torch.Tensor]]:
        """Make a call that is recorded.

        Args:
            node: the call, without outputs; ``writes`` is set.
            rule: the one that claims its op, if any does.
            tensors: what goes in, in the order of ``node.tensors``.
            inside: whether a transform runs, see ``transformed``.
            ready: what the call gives, where it is not to be made.

        Returns:
            what it gives; the tensors that it gave or changed; those that it changed.
        """
        if ready is not None:
            self.closed = True
            return ready, [ready], []
        op, module = node.op, node.module
        if inside:
            self.masking.interrupt()  # a transform has hold of the memory of parameters
        closed = self.closed = not inside and is_closed(op, rule, module)
        # The model's own gradients go through whole calls alone.
        may_slice = closed and not torch.is_grad_enabled() and self.masking.may_slice(tensors)
        slices = slices_of(node, rule, self.masking) if may_slice else None
        if slices is None:
            masked = self.masking.mask(tensors, module)
        else:
            masked = self.masking.mask([t for t in tensors if t not in slices.axes])
        before = _states(tensors)
        self.node = node
        self.inside.clear()
        sets_data = (
            module is None and name_of(op) == "__set__" and not all(_is_one(t, tensors[0]) for t in tensors)
        )  # x.data = y
        if sets_data:
            self.written.save_data(tensors[0])
        try:
            # What is given no parameter may write into nothing but what it is given.
            quiet = closed and not self.written.holds(tensors, len(tensors) - len(node.attributes))
            run = self._quietly if quiet else self._seen
            there = functools.partial(run, call) if self.place is HERE else functools.partial(self._there, run, call)
            if self.shapes is not None and (closed or id(module) in self.substitutes):
                result = self.shapes.result(op, module, node.args, node.kwargs, tensors, there)
            else:
                result = there() if slices is None else slices.run(self.masking, there)
        except Exception as error:
            self.masking.unmask(masked)
            if not hasattr(error, "speedup_call"):
                error.speedup_call = (node.op_name, node.args, node.kwargs)  # type: ignore[attr-defined]
            raise
        outputs = [result] if isinstance(result, torch.Tensor) else list(tensors_in(result))
        if quiet:
            self.inside.update([t.dtype for t in outputs])
        after = _states(tensors)
        changed = (
            [t for t, old, new in zip(tensors, before, after, strict=True) if old != new] if after != before else []
        )
        if sets_data:
            changed = [tensors[0], *(t for t in changed if t is not tensors[0])]
        if len(changed) > 1:
            changed = _written(node, tensors, changed)
        self.masking.unmask(masked, outputs)
        node.writes = node.writes or bool(changed)
        return result, new_or_changed(outputs, tensors, changed), changed

    def _there(self, run: Callable[[Callable[[], Any]], Any], call: Callable[[], Any]) -> Any:
        """Run a call where the model is."""
        with self.place:
            return run(call)

    def _quietly(self, call: Callable[[], Any]) -> Any:
        """Run a call whose ops are not seen: to see one takes as long as the op itself.

        What gives something else than tensors is run again: it reads data, or only asks of what type a tensor is.
        """
        result = call()
        if not isinstance(result, torch.Tensor | None) and next(iter(tensors_in(result)), None) is None:
            return self._seen(call)
        self.op_count += 1
        return result

    def _seen(self, call: Callable[[], Any]) -> Any:
        """Run a call with the dispatch mode."""
        if self.lifted is None:
            return call()
        self.lifted.lower()
        try:
            return call()
        finally:
            self.lifted.lift()


def _is_one(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same entries: ``x.data *= 2`` writes into them, and then says ``x.data = x.data``."""
    if tensor is other:
        return True
    same = memory_of(tensor) == memory_of(other) != 0 and tensor.dtype == other.dtype
    same = same and tensor.shape == other.shape and tensor.stride() == other.stride()
    return bool(same and tensor.storage_offset() == other.storage_offset())


def is_closed(op: Any, rule: Any, module: nn.Module | None) -> bool:
    """Whether a call is one of torch's own, which reads and may write nothing but what it is given."""
    if rule is None or not is_torchs_own(op) or (module is not None and module._modules):
        return False
    return not (rule.writes_weights and (module is None or getattr(module, rule.writes_weights, None) is not None))


def new_or_changed(
    returned: Sequence[torch.Tensor], given: Sequence[torch.Tensor], changed: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """What a call has made: all that it returned but what it was given and left alone, then what else it changed.

    Args:
        changed: those of ``given`` that it wrote into.
    """
    if not changed and len(returned) == 1:  # most calls
        (made_one,) = returned
        for tensor in given:
            if tensor is made_one:
                return []
        return [made_one]
    untouched = {id(t) for t in given} - {id(t) for t in changed}
    made = [t for t in returned if id(t) not in untouched]
    return made + [t for t in {id(t): t for t in changed}.values() if all(t is not o for o in made)]


def name_of(op: Any) -> str:
    """What a function calls itself; '' where it does not."""
    return getattr(op, "__name__", "")


def transformed() -> bool:
    """Whether ``torch.vmap``, ``torch.func.grad`` or the like runs: tensors inside it are wrappers of others, made and
    taken off out of sight."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _written(node: Node, tensors: list[torch.Tensor], changed: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of tensors that count as changed, as all views of one do, those that are: ``a.add_(b)`` changes no b beside a."""
    target = node.args[0] if node.args else None
    if not isinstance(target, Ref) or "out" in node.kwargs or not _IN_PLACE.fullmatch(name_of(node.op)):
        return changed
    first = part = tensors[target.number]
    if all(t is not first for t in changed):
        return changed
    if name_of(node.op) == "__setitem__" and _is_view(node.args[1]):
        part = first[node.args[1]]
    return [t for t in changed if t is first or memory_of(t) != memory_of(first) or not are_apart(part, t)]


def _is_view(index: Any) -> bool:
    """Whether an index takes a part of a tensor, and no copy of one."""
    items = index if isinstance(index, tuple) else (index,)
    return all(i is None or i is Ellipsis or (isinstance(i, int | slice) and type(i) is not bool) for i in items)


def _states(tensors: Sequence[torch.Tensor]) -> list[Any]:
    versions = walk.versions_of(tensors)
    return [_state(t) for t in tensors] if None in versions else versions


def _state(tensor: torch.Tensor) -> Any:
    """What an in-place op changes of a tensor, one that gives it another shape included."""
    version = walk.version_of(tensor)
    if version is not None:
        return version
    return tensor.shape, tensor.stride() if tensor.layout is torch.strided else ()


class Ops(dispatch.TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that sees every ATen op."""

    supports_higher_order_operators = True  # of a function of functions, as ``flex_attention`` is one

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it would import the whole compiler

    def lift(self) -> bool:
        """Off its stack, where it is the innermost mode and not under one of the model's; whether it was.

        Every call does it, and what torch has for it (``_pop_mode``) first compares dispatch keys, which takes longer.
        """
        depth = torch._C._len_torch_dispatch_stack()
        if not depth or torch._C._get_dispatch_stack_at(depth - 1) is not self:
            return False
        torch._C._pop_torch_dispatch_stack(None)
        return True

    def lower(self) -> None:
        """Back onto its stack."""
        torch._C._push_on_torch_dispatch_stack(self)
