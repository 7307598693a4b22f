"""Where in the user's source a call stands."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from types import CodeType, FrameType

import torch

_TORCH = os.path.dirname(torch.__file__) + os.sep
# What stands on the stack between the forward of one module and that of the next.
_MODULE_CALL = frozenset({"_call_impl", "_wrapped_call_impl", "call_module"})
_DEEP = 8  # frames of helper functions between a forward and the torch call

_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
# Files of forwards that stand for those of modules (``speedup.expand``): the line is that of the module call.
_STAND_INS: set[str] = set()


def see_through(files: Iterable[str]) -> None:
    """Take no line of these files for the place of a call."""
    _STAND_INS.update(files)


def caller() -> str:
    """``file:line`` of the nearest frame outside torch and this package, '' when there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, _OURS, "<frozen")) and name not in _STAND_INS:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def sites() -> tuple[tuple[CodeType, int], ...]:
    """Where in the innermost module's forward we are: code and instruction of every frame outside torch and this
    package, helper functions first. No frame is kept."""
    found: list[tuple[CodeType, int]] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(found) < _DEEP:
        code = frame.f_code
        if not code.co_filename.startswith((_TORCH, _OURS)):
            if not code.co_filename.startswith("<frozen") and code.co_filename not in _STAND_INS:
                found.append((code, frame.f_lasti))
        elif code.co_name in _MODULE_CALL:
            break
        frame = frame.f_back
    return tuple(found)
