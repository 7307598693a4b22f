"""What a rule sees of keep sets: those at its call, to which it adds what the call needs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from speedup.arrays import Bools, Floats, equal, nothing
from speedup.cached import cached_property
from speedup.keep import KeepSets, Stage
from speedup.kinds import Kind
from speedup.known import NodeFacts
from speedup.node import Node, Value
from speedup.pattern import Pattern
from speedup.pieces import is_own
from speedup.regular import Lines

Found = TypeVar("Found")


class NodeKeep:
    """The keep sets at one node, by operand number (operands, then outputs); what a rule's ``constrain`` sees.

    Attributes:
        node: the call.
        sets: bool arrays that broadcast to the operands' shapes.
        drop: whether removed constants are left out instead of folded.
        settled: set by a rule whose call can be made on what is kept now: it needs not be asked again because of what
            it added itself. To add more takes it back.
        pattern: how the operands are tied, once that was asked for.
    """

    def __init__(self, keeps: KeepSets, node: Node) -> None:
        self._keeps = keeps
        self.node = node
        self._values: tuple[Any, ...] = node.values  # Value, None where an optional one is missing
        self.sets = keeps.of(self._values)
        self.drop = keeps.drop
        self.settled = False
        self.changed: set[Value] = set()
        self.pattern: Pattern | None = None

    @cached_property
    def facts(self) -> NodeFacts:
        """The facts at the node."""
        return NodeFacts(self._keeps.facts, self.node)

    def facts_at(self, node: Node) -> NodeFacts:
        """The facts at another node: these stand fast while keep sets grow."""
        return NodeFacts(self._keeps.facts, node)

    def is_reused_alike(self, k: int) -> bool:
        """Whether operand ``k`` is the weight of a layer that is called several times, and at other sizes as often."""
        return self._values[k] in self._keeps.graph.reused_alike

    @cached_property
    def derived(self) -> set[int]:
        """Operand numbers of weights that this call alone reads: their sets follow from the others."""
        return self._keeps.derived_at(self.node)

    @cached_property
    def rigid(self) -> tuple[tuple[bool, ...], ...]:
        """Per operand and axis, whether it can never lose an index."""
        return tuple([self._keeps.rigid[v] if v is not None else () for v in self._values])

    def lines(self, k: int) -> Lines:
        """Per axis of operand ``k`` the indices with any kept entry, for the axes that lose some."""
        value = self._values[k]
        assert value is not None
        return self._keeps.lines(value)

    def sets_of(self, operands: Iterable[int]) -> list[Bools]:
        """The sets of some operands.

        Args:
            operands: numbers of operands or outputs that are there.
        """
        sets, values = self._keeps.sets, self._values
        return [sets[values[k]] for k in operands]

    def remembered(self, find: Callable[[], tuple[Found, Sequence[int]]]) -> Found:
        """What follows from the facts and some sets of the node, found again when one of these has grown.

        Args:
            find: finds it, and the numbers of the operands on whose sets it hangs: that others grow changes nothing.
        """
        keeps, node = self._keeps, self.node
        if node in keeps.memo:
            seen, known = keeps.memo[node]
            for at, keep in seen:
                if keeps.sets[at] is not keep:
                    break
            else:
                return cast(Found, known)
        found, matter = find()
        values = [value for k in matter if (value := self._values[k]) is not None]
        keeps.memo[node] = [(value, keeps.sets[value]) for value in values], found
        return found

    def made_of(self, what: Hashable, sets: Sequence[Bools], make: Callable[[Found | None], Found]) -> Found:
        """What follows from the facts and these sets, made again when one of them is another.

        Args:
            what: tells it from what else is made of this call's.
            make: makes it; what was made of other sets before, or None, is given to it.
        """
        made = self._keeps.made
        known = made.get((self.node, what))
        if known is not None and all(map(equal, known[0], sets)):
            return cast(Found, known[1])
        result = make(None if known is None else cast(Found, known[1]))
        made[self.node, what] = sets, result
        return result

    def tie_once(self, tie: Callable[[], object]) -> None:
        """Let operands keep together what they must, unless that was seen to with these very sets.

        Args:
            tie: does it; what it leaves to a later stage (see ``patient``) it is called for again.
        """
        keeps, sets = self._keeps, self._tied_sets()
        if not _are(keeps.tied.get(self.node, ()), sets):
            before = keeps.additions
            tie()
            if self.node.index in keeps.waiting:
                sets = ()
            elif keeps.additions != before:
                sets = self._tied_sets()
            keeps.tied[self.node] = sets

    def _tied_sets(self) -> tuple[Bools, ...]:
        """Those that do not follow from the others."""
        sets, derived = self._keeps.sets, self.derived
        return tuple([nothing(0) if v is None else sets[v] for k, v in enumerate(self._values) if k not in derived])

    def _waits(self, stage: Stage) -> bool:
        """Whether the fixpoint has not come to a stage; the call is asked again when it has."""
        waits = self._keeps.stage < stage
        if waits:
            self._keeps.waiting.add(self.node.index)
        return waits

    @property
    def patient(self) -> bool:
        """Whether what leaves a choice should wait: a line that keeps nothing, and a part that keeps less than others,
        may still get something from elsewhere."""
        return self._waits(Stage.FILLED)

    @property
    def folds_later(self) -> bool:
        """Whether what others keep may still come, so that the choice of what carries constants should wait for it."""
        return self._waits(Stage.CARRIED)

    def grow(self, k: int, mask: Bools, why: str, cause: int, kind: Kind = Kind.RULE) -> bool:
        """Add the entries of ``mask`` to the set of operand ``k``, for a reason that users read.

        Args:
            k: number of an operand or output.
            mask: bool, broadcasts to its shape.
            why: the reason, such as "every group keeps the same count"; ``explain`` shows it.
            cause: number of the operand that asks for them, ``k`` itself if none does.
            kind: what sort of reason it is, by which reports give advice.

        Returns:
            whether any of them is new.
        """
        value = self._values[k]
        assert value is not None
        source = self._values[cause]
        grown = self._keeps.grow(value, mask, why, self.node, source if source is not value else None, kind)
        if grown:
            self.changed.add(value)
            self.settled = False
        return grown

    def takes(self, k: int) -> bool:
        """Whether operand ``k`` may get other contents: a parameter of this call alone, or a piece of such."""
        return is_own(self.node, k)

    def rank(self, k: int) -> Floats:
        """How well each entry of operand ``k`` serves as a carrier: its absolute constant, 0 where it has none."""
        if self.facts.is_weight(k):
            return np.zeros((1,) * len(self.rigid[k]))
        useful = self.facts.mask(k) & ~self.facts.unused(k)
        return np.where(useful, np.abs(self.facts.value(k)), 0.0)


def _are(seen: Sequence[Bools], sets: Sequence[Bools]) -> bool:
    """Whether sets are the very ones that were seen: what grows is another array."""
    return len(seen) == len(sets) and all(map(operator.is_, seen, sets))
