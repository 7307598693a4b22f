"""Where in the user's source a call stands."""

from __future__ import annotations

import itertools
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType
from typing import Any

import torch

_TORCH = os.path.dirname(torch.__file__) + os.sep
_TORCH_MODULES = os.path.join(_TORCH, "nn", "modules") + os.sep
# What stands on the stack between the forward of one module and that of the next.
_MODULE_CALL = frozenset({"_call_impl", "_wrapped_call_impl", "call_module"})
_DEEP = 8  # frames of helper functions between a forward and the torch call

_PYTHON = sysconfig.get_path("stdlib") + os.sep
_INSTALLED = f"{os.sep}site-packages{os.sep}"  # these may lie among Python's own
_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
# What is known of files, as there are many frames in few files: whether they are torch's or ours, of those whose lines
# stand for others, or the user's.
_LIBRARY, _PASSED, _USERS, _MODULES = 1, 2, 3, 4
_KINDS: dict[str, int] = {}


def see_through(files: Iterable[str]) -> None:
    """Take no line of these files for the place of a call: their forwards stand for those of modules
    (``speedup.expand``), and the line is that of the module call."""
    _KINDS.update(dict.fromkeys(files, _PASSED))


def _kind(file: str) -> int:
    if file.startswith(_TORCH_MODULES):
        kind = _MODULES
    else:
        kind = _LIBRARY if file.startswith((_TORCH, _OURS)) else _PASSED if file.startswith("<frozen") else _USERS
    _KINDS[file] = kind
    return kind


def of_user(code: CodeType) -> bool:
    """Whether code is neither torch's, nor ours, nor Python's own."""
    file = code.co_filename
    return (_KINDS.get(file) or _kind(file)) == _USERS and not (file.startswith(_PYTHON) and _INSTALLED not in file)


def is_installed(code: CodeType) -> bool:
    """Whether code is of a package that was installed."""
    return _INSTALLED in code.co_filename


def names_in(code: CodeType) -> Iterator[str]:
    """The names of attributes and globals in code, and in the functions that stand in it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from names_in(inner)


def caller(frame: FrameType | None = None) -> str:
    """``file:line`` of the nearest frame outside torch and this package, '' when there is none.

    Args:
        frame: where to begin, by default here.
    """
    frame = frame if frame is not None else sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if (_KINDS[file] if file in _KINDS else _kind(file)) == _USERS:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def caller_and_sites() -> tuple[str, tuple[tuple[CodeType, int], ...]]:
    """The ``caller``, and where in the innermost module's forward we are: code and instruction of every frame outside
    torch and this package, helper functions first, and of methods of torch's modules that one of these calls
    (``super().forward(x)``). No frame is kept."""
    found: list[tuple[CodeType, int]] = []
    of_torch: list[tuple[CodeType, int]] = []
    where = ""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(found) < _DEEP:
        code = frame.f_code
        file = code.co_filename
        kind = _KINDS[file] if file in _KINDS else _kind(file)
        if kind == _USERS:
            where = where or f"{file}:{frame.f_lineno}"
            found += [*of_torch, (code, frame.f_lasti)]
            of_torch = []
        elif kind != _PASSED and code.co_name in _MODULE_CALL:
            break
        elif kind == _MODULES:
            of_torch.append((code, frame.f_lasti))
        frame = frame.f_back
    return where or caller(frame), tuple(found)


def ends_at(sites: tuple[tuple[CodeType, int], ...]) -> tuple[Any, ...] | None:
    """Where in the source the expression of a call ends; None where that is not known.

    A call and what an edit wraps around it end at the same place, whoever made the code anew.
    """
    if not sites:
        return None
    code, instruction = sites[0]
    at = next(itertools.islice(code.co_positions(), instruction // 2, None), None)
    return None if at is None or None in at else (code.co_filename, code.co_name, at[1], at[3])
