"""Edits multiply what some calls of a small model give by a number: that is no call of its own, but a factor of the
call before it (``Node.factor``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from speedup.node import Node
from speedup.trace.source import caller_and_sites, ends_at
from speedup.trace.tensors import Tensors


class Factors:
    """The factors that edits have put into a run which is compared with another one.

    Attributes:
        expected: the calls of the other run.

    Args:
        nodes: the calls of the run, as far as it has come.
    """

    def __init__(self, tensors: Tensors, nodes: Sequence[Node]) -> None:
        self.expected: Sequence[Node] = ()
        self._tensors, self._nodes = tensors, nodes

    def is_one(self, args: tuple[Any, ...]) -> bool:
        """Whether an edit has put this call in, to multiply what the call before it gave by a number: it is made at
        the very place of that call, where the plan has one call less."""
        nodes, expected = self._nodes, self.expected
        if len(args) != 2 or type(args[1]) is not float or not nodes or not isinstance(args[0], torch.Tensor):
            return False
        last = nodes[-1]
        if self._tensors.made(args[0]) not in last.outputs or not last.sites:
            return False
        next_one = expected[len(nodes)] if len(nodes) < len(expected) else None
        planned = next_one is not None and ends_at(next_one.sites) == ends_at(expected[len(nodes) - 1].sites)
        return not planned and ends_at(caller_and_sites()[1]) == ends_at(last.sites)

    def multiplied(self, func: Any, args: tuple[Any, ...]) -> torch.Tensor:
        """What an edit makes of the output of the last call, which it stands for from now on."""
        tensor, factor = args
        result: torch.Tensor = func(tensor, factor)
        last = self._nodes[-1]
        end = ends_at(last.sites)
        first = next(n for n in self._nodes if n.scope == last.scope and ends_at(n.sites) == end)
        first.factor *= factor
        self._tensors.track(result, last.outputs[0])
        return result
