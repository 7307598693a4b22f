"""What is being repaired, and which numbers its calls want: one call in all its runs, and calls that are alike."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import nn

from speedup.graph import Graph
from speedup.instead import instead_of
from speedup.keep import KeepSets
from speedup.node import Node
from speedup.repair.arguments import Path, numbers
from speedup.repair.locate import runs_of
from speedup.repair.stale import CALLEE, RESULT, Stale, missing, wanted_factor, wanted_numbers


@dataclass(frozen=True, eq=False)
class Job:
    """A model, its graph and the plan for it."""

    model: nn.Module
    graph: Graph
    keeps: KeepSets

    def runs(self, node: Node) -> list[Node]:
        """One call each time that it is made: in a loop, in a module that is called twice, in a method that others
        call."""
        return runs_of(node, self.graph, self.model.get_submodule(node.scope))

    def wanted(self, node: Node, paths: list[Path]) -> list[Any]:
        """The numbers that the plan wants at some places of a call; None where it wants none."""
        made = instead_of(node, self.keeps)
        told = made.numbers if made is not None else {}
        places = [path for path, _ in numbers(node.args, node.kwargs) if path[0] not in told]
        wanted = dict(zip(places, wanted_numbers(node, self.keeps), strict=True))
        wanted.update({(name,): value for name, value in (*missing(node, self.keeps).items(), *told.items())})
        wanted[RESULT] = wanted_factor(node, self.keeps)
        wanted[CALLEE] = made.function if made is not None else None
        return [wanted.get(path) for path in paths]

    def agree(self, node: Node, stale: list[Stale]) -> bool:
        """Whether all runs of one call want the same numbers."""
        paths = [s.path for s in stale]
        mine = self.wanted(node, paths)
        return all(self.wanted(n, paths) == mine for n in self.runs(node))

    def in_proportion(self, node: Node, stale: list[Stale]) -> bool:
        """Whether the numbers of each run become smaller alike, so that all may be made of one attribute."""
        paths = [s.path for s in stale]
        shares = set()
        for each in self.runs(node):
            given = dict(numbers(each.args, each.kwargs))
            for path, wanted in zip(paths, self.wanted(each, paths), strict=True):
                if type(given.get(path)) is not int or type(wanted) is not int:
                    return False
                shares |= {Fraction(wanted, given[path])} if given[path] else set()
        return len(shares) == 1

    def twins(self, node: Node, other: Node) -> bool:
        """Whether two calls had and should have the same numbers."""
        old = numbers(node.args, node.kwargs) == numbers(other.args, other.kwargs)
        same = wanted_numbers(node, self.keeps) == wanted_numbers(other, self.keeps)
        factors = wanted_factor(node, self.keeps), wanted_factor(other, self.keeps)
        made = instead_of(node, self.keeps) == instead_of(other, self.keeps)
        lacking = missing(node, self.keeps) == missing(other, self.keeps)
        return old and same and made and lacking and factors[0] == factors[1]

    def foreseen(self, node: Node, other: Node, stale: list[Stale]) -> bool:
        """Whether a call that was not made yet will hold the numbers that it held, as the first one does.

        It does where both forwards are given as much as before, or where both are given equally less.
        """
        held = {**dict(numbers(node.args, node.kwargs)), RESULT: 1.0}
        return all(held.get(s.path) == s.now for s in stale) and self._given_less(node) == self._given_less(other)

    def _given_less(self, node: Node) -> list[tuple[Fraction, ...]]:
        """The share of the sizes that is left of what the forward around a call is given."""
        near = self.graph.by_scope.get(node.scope, ())
        given = next(filter(None, ([v for v in n.tensors if v in self.graph.from_input] for n in near)), [])
        kept = [self.keeps.shape(v) for v in given]
        return [tuple(map(Fraction, k, v.shape)) for k, v in zip(kept, given, strict=True) if 0 not in v.shape]
