"""What Python gets where it reads data of the input: truth values that it is told, numbers that it may compare
(``speedup.trace.number``), or the data themselves, after which nothing is known of what it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils import _pytree as pytree

from speedup.graph import Branch
from speedup.kinds import Kind
from speedup.node import Node
from speedup.trace.making import name_of
from speedup.trace.number import Number
from speedup.trace.tensors import Tensors
from speedup.trace.told import Telling

# Calls that hand the contents of a tensor to Python without running any op: they count as reads.
READS = frozenset(
    {"numpy", "tolist", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage", "__reduce_ex__"}
)

_MOST_NUMBERS = 1000  # of which Python may compare each
_MOST = 100  # reads of a run that is told what the data do not say


class EndlessError(Exception):
    """A run that is told what the data do not say does not come to its end."""


class Reading:
    """What Python reads of the data of the input in one run.

    Attributes:
        answers: the first truth values that Python is given, whatever the data say; None where it is given none, and
            each question is a branch.
        asked: those that it was given.
        branch: the first call after which nothing is known.
        count: how often Python has read something.
        takes: whether something else than a truth value was read that is not made of places alone.
        lends: whether numbers were given that say what becomes of them.
    """

    def __init__(self, tensors: Tensors, telling: Telling) -> None:
        self.answers: Sequence[bool] | None = None
        self.asked: list[bool] = []
        self.branch: Branch | None = None
        self.count = 0
        self.takes = False
        self.lends = False
        self._tensors, self._telling = tensors, telling

    def branch_at(self, node: Node, why: str = Branch.why, kind: Kind = Branch.kind) -> None:
        """Nothing is known after this call."""
        if self.branch is None:
            self.branch = Branch(node, self._tensors.existing(), why, kind)

    def read(self, node: Node, result: Any, of_places: bool) -> Any:
        """What Python gets of a call that gives it data of the input.

        A loop that waits for its data may never end when Python was told something else about them.

        Args:
            of_places: whether they are made of places that were found, and of nothing else of the input.
        """
        self.count += 1
        if (self.answers or self._telling.told is not None) and self.count > _MOST:
            raise EndlessError(f"more than {_MOST} looks at data of the input")
        op = name_of(node.op)
        numbers = pytree.tree_leaves(result) if op == "tolist" else [result] if op == "item" else []
        gives = 0 < len(numbers) <= _MOST_NUMBERS and all(type(n) in (bool, int, float) for n in numbers)
        asks = self.answers is not None and (gives or isinstance(result, bool))
        self.takes = self.takes or not (asks or of_places)
        if self.branch is None and asks:
            if gives and not isinstance(result, bool):
                return self._lent(node, result, of_places)
            return self._answer(result)
        self.branch_at(node)
        return result

    def _answer(self, real: bool) -> bool:
        """The truth value that Python is told."""
        assert self.answers is not None
        number = len(self.asked)
        real = self._telling.answer(real)
        self.asked.append(self.answers[number] if number < len(self.answers) else real)
        return self.asked[-1]

    def _lent(self, node: Node, real: Any, of_places: bool) -> Any:
        """What Python gets of a number, or of lists of them: it may compare each."""
        self.lends = True
        live = self._tensors.existing()

        def taken() -> None:
            self.takes = self.takes or not of_places
            if self.branch is None or self.branch.node.index > node.index:
                self.branch = Branch(node, live)

        return pytree.tree_map(lambda number: Number(number, self._answer, taken), real)
