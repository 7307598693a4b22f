"""Which rule said what about which call: the lines that ``SPEEDUP_TRACE`` asks for.

They are DEBUG records of the logger ``speedup.rules``. ``SPEEDUP_TRACE=1`` writes all of them to stderr;
``SPEEDUP_TRACE=conv,features.0`` only those whose rule, plugin, op or module (with all inside it) is named.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from speedup.arrays import Bools, along
from speedup.facts import Affine, Constant

if TYPE_CHECKING:
    from speedup.node import Node

TRACE_VARIABLE = "SPEEDUP_TRACE"

log = logging.getLogger("speedup.rules")

_SILENT = frozenset(("rigid", "derived", "derive", "folds", "fits", "arrange", "multiply_accumulates"))
_FEW = 8


class _ToStderr(logging.StreamHandler[Any]):
    """Ours, to be found again."""


def listen() -> None:
    """Do what the environment variable asks now; called when a plan is made."""
    wanted = os.environ.get(TRACE_VARIABLE, "").strip()
    ours = [h for h in log.handlers if isinstance(h, _ToStderr)]
    for handler in ours:
        log.removeHandler(handler)
    if wanted in ("", "0"):
        if ours:
            log.setLevel(logging.NOTSET)
        return
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("speedup: %(message)s"))
    names = {name.strip() for name in wanted.split(",")}
    if not names & {"1", "all"}:
        handler.addFilter(lambda record: _concerns(record.__dict__["node"], names))
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)


def _concerns(node: Node, names: set[str]) -> bool:
    own = {node.op_name, node.op_name.rpartition(".")[2]}
    if node.rule is not None:
        own |= {node.rule.name, *node.rule.origin.split("'")[1:2]}
    place = node.path or node.scope
    return bool(own & names) or any(place == name or place.startswith(f"{name}.") for name in names)


def enabled() -> bool:
    """Whether anybody listens."""
    return log.isEnabledFor(logging.DEBUG)


def claims(nodes: Iterable[Node]) -> None:
    """Say which rule has which call."""
    for node in nodes if enabled() else ():
        whose = node.rule.label if node.rule is not None else node.note or "no rule claims it"
        _write(node, f"{node.op_name}{_shapes(node)}: {whose}")


def said(node: Node, method: str, args: tuple[Any, ...], before: Any, answer: Any) -> None:
    """Say what a rule answered.

    Args:
        before: what ``state`` gave before the rule was asked.
    """
    if method in _SILENT or node.rule is None:
        return
    if method == "constrain":
        lines = _grown(node, before, args[0].sets)
    elif method.startswith("infer"):
        lines = [_fact(name, fact) for name, fact in answer.items()] if isinstance(answer, dict) else [repr(answer)]
    else:
        lines = [str(answer)]
    for line in lines:
        _write(node, f"rule {node.rule.name!r}: {method}: {line}")


def state(method: str, args: tuple[Any, ...]) -> Any:
    """What must be remembered for ``said``."""
    return list(args[0].sets) if method == "constrain" else None


def _write(node: Node, text: str) -> None:
    log.debug("%s", f"[{node.index}] {node.label} ({node.where}): {text}", extra={"node": node})


def _shapes(node: Node) -> str:
    inputs = ", ".join(str(v.shape) for v in node.tensors)
    return f" {inputs} -> {', '.join(str(v.shape) for v in node.outputs)}"


def _fact(name: str, fact: Any) -> str:
    if isinstance(fact, Constant):
        values = np.broadcast_to(fact.value, fact.mask.shape)[fact.mask]
        shown = ", ".join(f"{v:.4g}" for v in values[:_FEW]) + (", ..." if values.size > _FEW else "")
        return f"{name} is constant {_where(fact.mask)}: {shown}"
    if isinstance(fact, Affine):
        return f"{name} is affine along axis {fact.axis} {_where(fact.mask)}"
    mask = getattr(fact, "mask", None)
    return f"{name} is unused {_where(mask)}" if isinstance(mask, np.ndarray) else f"{name}: {fact!r}"


def _grown(node: Node, before: list[Bools], after: Any) -> list[str]:
    names = [*node.operand_names, *("output" for _ in node.outputs)]
    return [
        f"{name} keeps {_where(new)}"
        for name, old, new in zip(names, before, after, strict=False)
        if old.shape != new.shape or (old != new).any()
    ]


def _where(mask: Bools) -> str:
    """The entries of a mask: by index where it varies along one axis only."""
    wide = [a for a, s in enumerate(mask.shape) if s > 1]
    if not wide:
        return "everywhere" if bool(mask.all()) else "nowhere"
    if len(wide) > 1:
        return f"at {int(mask.sum())} of {mask.size} entries"
    found = [str(i) for i in np.flatnonzero(along(mask, wide[0]))]
    shown = ", ".join(found[:_FEW]) + (", ..." if len(found) > _FEW else "")
    return f"at {len(found)} of {mask.size} along axis {wide[0]} [{shown}]"
