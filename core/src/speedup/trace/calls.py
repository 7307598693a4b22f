"""What counts as one call in a run of a model: of a module or function that a rule claims, whatever is inside of it.

Two layers see a call, from the outside in:

1. ``nn.Module.__call__``: a module whose type a rule claims is one call, and what runs inside it is none;
2. the torch function mode: a function that a rule claims is one; another one written in Python is entered and its parts
   are calls; anything else is one without a rule, a *barrier*.

Here a call is made as it is. What else becomes of it is up to subclasses: the recorder makes a node of it, a replay
compares it with one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from speedup.deferred import Deferred
from speedup.errors import RuleError
from speedup.names import op_name
from speedup.registry import Registry
from speedup.rounding import difference
from speedup.rule import Rule
from speedup.trace.above import Above, seen
from speedup.trace.enter import enterable
from speedup.trace.making import transformed
from speedup.trace.outputs import tensors_in
from speedup.trace.redirect import redirected
from speedup.trace.source import caller, see_through


class Calls(TorchFunctionMode):
    """Tells the calls of a run; use inside ``listening``.

    Attributes:
        substitutes: modules (by identity) that are one call of the type that they stand for.
        paths: the first path of every module, by identity.
        above: the modules of which the forward of a class above is a call, see ``speedup.trace.above``.
        claims: the rules that claim modules, by identity; None for those that are entered.
        scope: the paths of the modules that were entered, the innermost last.
        caches: what functions keep for their next call, see ``speedup.caches``.
        open_calls: how many calls are under way; nothing inside of one is a call.
        deferred: what gets its numbers when a call of a module is made.
    """

    def __init__(
        self, registry: Registry, substitutes: Mapping[int, type[nn.Module]], paths: Mapping[int, str]
    ) -> None:
        super().__init__()
        self.registry = registry
        self.substitutes = substitutes
        self.paths = paths
        self.above: Above = {}
        self.claims: dict[int, Rule | None] = {}
        self.caches: Sequence[Any] = ()
        self.scope: list[str] = [""]
        self.open_calls = 0
        self.deferred: Deferred | None = None
        self._entering: list[Any] = []

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """The inside of a call, and our own look at its tensors: no calls of their own."""
        mode = self.look_away()
        try:
            yield
        finally:
            self.look_back(mode)

    def look_away(self) -> Any:
        """What is called from here on are no calls, until ``look_back`` is given what this gives.

        The mode is taken off its stack: cheaper than to have it wave every inner call through. Each call does it, and
        a context manager takes five times as long.
        """
        self.open_calls += 1
        return torch._C._pop_torch_function_stack() if torch._C._len_torch_function_stack() else None

    def look_back(self, mode: Any) -> None:
        """The end of what ``look_away`` began."""
        self.open_calls -= 1
        if mode is not None:
            torch._C._push_on_torch_function_stack(mode)

    # -- what subclasses may say otherwise ----------------------------------------------------------------------------

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
        """Make a call.

        Args:
            call: makes it.
            held: the tensors that the module holds and its rule speaks of, by name.
        """
        with self.unseen():
            return call()

    def enters(self, func: Any, parts: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the parts that a rule makes of a call are calls instead of it."""
        return False

    def claim_by_structure(self, module: nn.Module) -> Rule | None:
        """The rule that claims a module of which no rule names the type."""
        return None

    def held(self, rule: Any, module: nn.Module) -> dict[str, torch.Tensor]:
        """The tensors that a module holds and its rule speaks of, by name."""
        try:
            held: dict[str, torch.Tensor] = rule.held(module)
        except Exception as error:
            place = f"{self.paths.get(id(module)) or 'the model'} ({op_name(type(module))}) ({caller()})"
            raise RuleError(f"{rule.label} raised in held at {place}: {error!r}") from error
        return held

    def fill(self, deferred: Deferred, tensors: Sequence[Any]) -> None:
        """Give tensors their numbers before a call: of a module they are there for its hooks too."""
        with self.unseen():
            deferred.fill(tensors)

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a call is given."""
        return args, kwargs

    def sought(self, rule: Rule | None, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What a call is given that looks for places, see ``Rule.seek``."""
        return args

    # -- functions --------------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.open_calls:
            return func(*args, **kwargs)
        if self.deferred is not None and (asked := self.deferred.asked_about(func, args, kwargs)):
            self.fill(self.deferred, asked)
        rule = self.registry.for_function(func) if not transformed() else None
        inside = enterable(func) if rule is None else _parts(rule, func, args, kwargs)
        if inside is not None and rule is not None and not self.enters(func, inside, args, kwargs):
            inside = None
        if inside is not None and func not in self._entering:
            self._entering.append(func)
            try:
                with self:
                    return inside(*args, **kwargs)
            finally:
                self._entering.pop()
        given = self.sought(rule, args)
        return self.record(func, rule, args, kwargs, functools.partial(func, *given, **kwargs))

    # -- modules ----------------------------------------------------------------------------------------------------

    def _rule_of(self, module: nn.Module) -> Rule | None:
        """The rule that claims a module, to be asked for once."""
        rule = self.registry.for_type(type(module))
        if rule is None or "forward" in vars(module):
            rule = self.claim_by_structure(module)
        self.claims[id(module)] = rule
        return rule

    def call_above(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A call of the forward of a class above the module's own."""
        if self.open_calls or transformed():
            return original(module, *args, **kwargs)
        base, rule = self.above[id(module)]
        if self.deferred is not None and (own := self.deferred.awaited(module._parameters.values())):
            self.fill(self.deferred, own)
        held = self.held(rule, module)
        return self.record(base, rule, args, kwargs, lambda: original(module, *args, **kwargs), module, held)

    def call_module(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        if self.open_calls:
            return original(module, *args, **kwargs)
        for cache in self.caches:
            cache.cache_clear()
        key = id(module)
        stands_for = self.substitutes.get(key)
        rule = None
        if stands_for is None and key in self.paths and not transformed():
            rule = self.claims[key] if key in self.claims else self._rule_of(module)
        if rule is None and stands_for is None:
            self.scope.append(self.paths.get(key, ""))
            try:
                return original(module, *args, **kwargs)
            finally:
                self.scope.pop()
        if self.deferred is not None and (own := self.deferred.awaited(module._parameters.values())):
            self.fill(self.deferred, own)
        forward = module.forward
        if not (module._forward_hooks or module._forward_pre_hooks):
            return self._record_forward(module, forward, stands_for, rule, args, kwargs)

        def recorded(*a: Any, **k: Any) -> Any:
            return self._record_forward(module, forward, stands_for, rule, a, k)

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

    def _record_forward(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        stands_for: type[nn.Module] | None,
        rule: Rule | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Make the forward of a module that is one call."""
        args, kwargs = self.given(args, kwargs)
        call = functools.partial(forward, *args, **kwargs)
        if stands_for is not None:
            return self.record(stands_for, None, args, kwargs, call, module)
        return self.record(type(module), rule, args, kwargs, call, module, self.held(rule, module))


def gives_the_same(func: Any, parts: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call in parts gives what the call gives. Call it where calls are not seen."""
    devices = sorted({t.device.index or 0 for t in tensors_in((args, kwargs)) if t.is_cuda})

    def made(by: Any) -> list[torch.Tensor]:
        own = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
        with torch.random.fork_rng(devices):
            return [*tensors_in(by(*own[0], **own[1])), *tensors_in(own)]

    try:
        return difference(made(func), made(parts)) is None
    except Exception:
        return False  # it is told by the call itself


@contextlib.contextmanager
def listening(calls: Calls) -> Iterator[None]:
    """Inside of it calls of modules and functions go through ``calls``."""
    with redirected(calls.call_module), seen(calls.above, calls.call_above), calls:
        yield


def may_seek(rule: Rule | None) -> TypeGuard[Rule]:
    """Whether calls of a rule may look for places, see ``Rule.seek``."""
    return rule is not None and (rule.seeks or type(rule).seek is not Rule.seek)


def _parts(rule: Rule, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[..., Any] | None:
    try:
        parts = rule.in_parts(function, args, kwargs)
    except Exception as error:
        raise RuleError(f"{rule.label} raised in in_parts at {op_name(function)} ({caller()}): {error!r}") from error
    code = getattr(parts, "__code__", None)
    if code is not None:
        see_through([code.co_filename])  # the place of the calls is that of the call they stand for
    return parts
