"""Subclasses that call the forward of the class above: that call is one of the class above.

A rule that claims a module type and no function speaks for ``super().forward(x)`` of a subclass too: what it does
before and after is recorded call by call. Where the rule claims functions, these are what the forward above calls; and
where it gives modules another forward, that would take the place of the subclass's own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from speedup import walk
from speedup.expand import Expansion
from speedup.registry import Registry
from speedup.rule import Rule

Above = Mapping[int, tuple[type[nn.Module], Rule]]


def called_above(model: nn.Module, registry: Registry) -> Above:
    """The modules of which the forward above is a call, by identity, with the class above and its rule."""
    modules = walk.modules(model)
    kinds = {kind: _above(kind, registry) for kind in set(map(type, modules))}
    if not any(kinds.values()):
        return {}
    return {id(m): there for m in modules if (there := kinds[type(m)]) is not None and "forward" not in vars(m)}


def _above(kind: type[nn.Module], registry: Registry) -> tuple[type[nn.Module], Rule] | None:
    if registry.for_type(kind) is not None:
        return None
    rule = registry.for_base(kind)
    if rule is None or isinstance(rule, Expansion) or rule.functions or rule.makes:
        return None
    return next(b for b in kind.__mro__ if b in rule.modules), rule


@contextlib.contextmanager
def seen(above: Above, call: Callable[..., Any]) -> Iterator[None]:
    """Have each call of a forward above go through ``call(original, module, args, kwargs)``."""
    with contextlib.ExitStack() as stack:
        for base in dict.fromkeys(base for base, _ in above.values()):
            own = vars(base).get("forward")
            base.forward = _through(base.forward, above, call)
            stack.callback(_put_back, base, own)
        yield


def _through(original: Any, above: Above, call: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if id(module) not in above:
            return original(module, *args, **kwargs)
        return call(original, module, args, kwargs)

    return forward


def _put_back(base: Any, own: Any) -> None:
    if own is None:
        del base.forward
    else:
        base.forward = own
