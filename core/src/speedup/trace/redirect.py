"""Calls of modules go somewhere else for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from torch import nn

To = Callable[[Callable[..., Any], nn.Module, tuple[Any, ...], dict[str, Any]], Any]


def _elsewhere(module: nn.Module, /, *args: Any, speedup_to: To, speedup_from: Any, **kwargs: Any) -> Any:
    return speedup_to(speedup_from, module, args, kwargs)


@contextlib.contextmanager
def redirected(to: To) -> Iterator[None]:
    """Inside of it a call of a module is ``to(original, module, args, kwargs)``.

    The function that is ``nn.Module.__call__`` gets other code, and the class no other function: with a change of the
    class, Python forgets what it has looked up in it and in all classes below, which are hundreds.
    """
    called: Any = nn.Module.__call__
    if not isinstance(called, FunctionType) or called.__code__.co_freevars:  # somebody else's, who has put it there
        nn.Module.__call__ = lambda self, /, *args, **kwargs: to(called, self, args, kwargs)  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = called  # type: ignore[method-assign]
        return
    code, defaults = called.__code__, called.__kwdefaults__
    original = FunctionType(code, called.__globals__, called.__name__, called.__defaults__)
    original.__kwdefaults__ = defaults
    called.__kwdefaults__ = {"speedup_to": to, "speedup_from": original}
    called.__code__ = _elsewhere.__code__
    try:
        yield
    finally:
        called.__code__, called.__kwdefaults__ = code, defaults
