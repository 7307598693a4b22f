"""Entering Python-level torch functions, so that their parts are recorded instead of one opaque call.

Calling ``F.normalize`` inside a function mode only dispatches to the mode again, because the function asks
``has_torch_function`` first. A copy of it whose ``has_torch_function*`` globals say no runs its body, and the calls in
that body reach the mode one by one.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

_ASKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def _no(*_: Any, **__: Any) -> bool:
    return False


@functools.lru_cache(maxsize=1024)
def enterable(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """A copy of a Python-level torch function whose inner calls can be recorded; None for anything else."""
    if not isinstance(function, types.FunctionType):
        return None
    if not any(name in function.__globals__ for name in _ASKS):
        return None
    namespace = dict(function.__globals__)
    namespace.update({name: _no for name in _ASKS if name in namespace})
    copy = types.FunctionType(
        function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
