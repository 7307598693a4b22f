"""What is known of the tensors of a graph: the facts about each, and what a rule sees of them.

Facts may only be added: a rule that takes one back is named.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch

from speedup.arrays import Bools, Floats, all_of, compact_axes, everything, nothing, read_only, some, unfit, zeros
from speedup.ask import culprit
from speedup.errors import RuleError
from speedup.facts import Affine, Constant, Unused, compact_affine, same_affine, without_constants
from speedup.graph import Graph
from speedup.lines import is_line, read_lines
from speedup.masks import compact
from speedup.node import Node, Value


class Facts:
    """What is known of every value of a graph.

    Attributes:
        blind: tensors of the model whose contents were not at hand (on the meta device): only what masks have made 0
            is known of them.
        denied: entries that are not to be taken for constants.
        awaited: of what a call leaves for the next one, the entries that this one reads.
        settled: whether all is known that follows.
    """

    def __init__(
        self,
        graph: Graph,
        masks: Mapping[str, torch.Tensor],
        denied: Mapping[Value, Bools] | None = None,
        before: Facts | None = None,
    ) -> None:
        self.graph = graph
        self.settled = False
        self.denied = {**(denied or {}), **{v: everything(v.ndim) for v in graph.loose}}
        self.awaited: dict[Value, Bools] = {}
        self.constants: dict[Value, Constant] = {}
        self.affine: dict[Value, Affine] = {}
        self.claims: dict[tuple[Value, Node, int], Bools] = {}
        self.masked: dict[Value, Bools] = {}
        self._combined: dict[Value, tuple[tuple[Affine, Constant | None] | None, Affine | None]] = {}
        self.blind = frozenset(v for v in graph.values if v.is_blank)
        # By the identity of the tensor, which stays with them: several runs have values of their own for it. (To look
        # one up by itself takes five times as long.)
        self._numbers: dict[int, tuple[torch.Tensor, Floats]] = {} if before is None else before._numbers
        known = {} if before is None else {v.names: mask for v, mask in before.masked.items()}
        for value in graph.sources:
            if value.names in known:
                self.masked[value] = known[value.names]
                continue
            given = [~compact(masks[name]).numpy() for name in value.names if name in masks]
            if given and 0 in value.shape:  # arrays have size 1 or more along every axis
                self.masked[value] = everything(value.ndim)
            elif given:
                mask = given[0] if len(given) == 1 else compact_axes(functools.reduce(np.logical_or, given))[0]
                self.masked[value] = read_only(mask)

    # -- reading --------------------------------------------------------------------------------------------------

    def mask(self, value: Value) -> Bools:
        """Entries that are constant."""
        if value.tensor is not None:
            if value in self.blind:
                return self._allowed(value, self.masked.get(value, nothing(value.ndim)))
            if not value.dtype.is_complex:
                return self._allowed(value, everything(value.ndim))
        known = self.constants.get(value)
        return known.mask if known is not None else nothing(value.ndim)

    def value(self, value: Value) -> Floats:
        """The constants, float64; entries that are not constant have no meaning."""
        tensor = value.tensor
        if tensor is None:
            known = self.constants.get(value)
            return known.value if known is not None else zeros(value.ndim)
        found = self._numbers.get(id(tensor))
        if found is not None:
            return found[1]
        if tensor.is_meta:
            return read_only(np.where(self.mask(value), 0.0, np.nan))
        if 0 in value.shape:
            return zeros(value.ndim)
        if is_line(value) and value not in self.blind:
            near = [v for v in self.graph.values if v.tensor is not None and v.ndim == 1 and v not in self.blind]
            more = [v for v in near if id(v.tensor) not in self._numbers]
            self._numbers.update((id(known), (known, numbers)) for known, numbers in read_lines(value, more))
            return self._numbers[id(tensor)][1]
        contents = value.contents()
        real = contents.real if contents.is_complex() else contents
        numbers = read_only(real.to("cpu", torch.float64).numpy())
        if value not in self.blind:  # that is lent for a moment
            self._numbers[id(tensor)] = tensor, numbers
        return numbers

    def forget(self) -> None:
        """Give back the memory of the numbers of parameters, and of combinations beside constants, which are found
        again where somebody asks."""
        self._numbers.clear()
        self._combined.clear()

    def known_but_zero(self, value: Value) -> Bools:
        """Entries of which something is known that is not just 0."""
        affine = self.affine.get(value)
        known: Bools = self.mask(value) & (self.value(value) != 0)
        return known if affine is None else known | affine.mask

    def zero(self, value: Value) -> Bools:
        """Entries known to be 0: of parameters only the masked ones, since the others may be trained further."""
        if value.is_source:
            return self._allowed(value, self.masked.get(value, nothing(value.ndim)))
        if value.tensor is not None:
            return nothing(value.ndim)
        known = self.constants.get(value)
        return known.zero if known is not None else nothing(value.ndim)

    def known(self, value: Value) -> Bools:
        """Entries that are constant or affine."""
        fact = self.affine.get(value)
        return self.mask(value) if fact is None else self.mask(value) | fact.mask

    def combined(self, value: Value) -> Affine | None:
        """What is known as combinations of unknowns, constants among it; None where there are only constants."""
        fact, constants = self.affine.get(value), self.constants.get(value)
        if fact is None:
            return None
        of, known = self._combined.get(value, (None, None))
        if of != (fact, constants):
            mask, numbers = self.mask(value), self.value(value)
            if some(mask & fact.mask):
                both = fact.with_constants(mask, numbers)
                known = compact_affine(fact.axis, both.mask, both.stacked, fact.one_hot)
            else:
                known = fact.beside(mask, numbers)
            for array in () if known is None else (known.mask, known.stacked, *known.numbers):
                array.setflags(write=False)  # whoever asks next is shown the same
            self._combined[value] = (fact, constants), known
        return known

    def unused(self, value: Value) -> Bools:
        """Entries that no reader needs."""
        if value.is_output or value in self.graph.uncertain or value in self.graph.loose:
            return nothing(value.ndim)
        result = self._unread(value)
        for other in self.graph.instead.get(value, ()):
            unread = self._unread(other)
            result = read_only(result & all_of(unread, unfit(unread, value.shape)))
        awaited = self.awaited.get(value)
        return result if awaited is None else read_only(result & ~awaited)

    def _unread(self, value: Value) -> Bools:
        """Entries that no reader of this very value needs."""
        result = everything(value.ndim)
        for node, number in value.uses:
            claim = self.claims.get((value, node, number))
            if claim is None:
                return nothing(value.ndim)
            result = claim if len(value.uses) == 1 else read_only(result & claim)
        return result

    # -- adding ---------------------------------------------------------------------------------------------------

    def add_constant(self, node: Node, value: Value, fact: Constant) -> bool:
        if value.dtype.is_complex:  # of which only a 0 is a constant
            zero = fact.mask & (fact.value == 0)
            fact = Constant(zero, np.zeros(zero.shape))
        old = self.constants.get(value)
        held = self._allowed(value, fact.mask) if self.denied else fact.mask
        if self.blind:  # numbers made of what is not at hand are none
            held = held & np.isfinite(fact.value)
        mask, numbers = _shaped(node, value, held), _shaped(node, value, fact.value)
        new = fact if mask is fact.mask and numbers is fact.value else Constant(mask, numbers)
        if old is not None:
            if some(old.mask & ~new.mask):
                raise RuleError(f"{culprit(node)} takes back a constant of {value.label}; facts may only be added")
            both = old.mask & new.mask
            first, second = (np.where(both, known.value, 0) for known in (old, new))
            # Mostly they are the same; to compare with a tolerance takes five times as long.
            if not np.array_equal(first, second) and not np.allclose(first, second, equal_nan=True):
                raise RuleError(f"{culprit(node)} gives {value.label} another constant than before")
            if not some(new.mask & ~old.mask):
                return False
        elif not some(new.mask):
            return False
        self.constants[value] = new
        return True

    def add_affine(self, node: Node, value: Value, fact: Affine) -> bool:
        """Add an affine fact; its constants count as such."""
        if value.dtype.is_complex or not 0 <= fact.axis < value.ndim:
            raise RuleError(f"{culprit(node)} gives an affine fact along axis {fact.axis} of {value.label}")
        held = self._allowed(value, fact.mask)
        mask = _shaped(node, value, held)
        for array in fact.numbers if not fact.is_finite or fact.stacked[0].shape != mask.shape else ():
            _shaped(node, value, array)
        constant = fact.constant & mask
        grown = False
        if some(constant) or value in self.constants:
            grown = self.add_constant(node, value, Constant(*np.broadcast_arrays(constant, fact.stacked[0])))
        old = self.affine.get(value)
        if old is not None and (old.mask & ~(mask | self.mask(value))).any():
            return grown  # unknowns along two axes cannot be said at once: what is known stays
        entries = mask & ~constant
        if held is fact.mask:
            new = without_constants(fact, entries)
        else:  # some of what is said does not count: numbers that are left of it say nothing
            new = compact_affine(fact.axis, entries, fact.stacked, fact.one_hot)
        if new is None or (old is not None and same_affine(old, new)):
            return grown
        self.affine[value] = new
        return True

    def _allowed(self, value: Value, mask: Bools) -> Bools:
        denied = self.denied.get(value)
        return mask if denied is None else mask & ~denied

    def add_unused(self, node: Node, number: int, value: Value, fact: Unused) -> bool:
        key = (value, node, number)
        new = _shaped(node, value, fact.mask)
        old = self.claims.get(key)
        if old is not None and some(old & ~new):
            raise RuleError(f"{culprit(node)} takes back an unused entry of {value.label}; facts may only be added")
        if (old is None and not some(new)) or (old is not None and not some(new & ~old)):
            return False
        self.claims[key] = new
        return True


class NodeFacts:
    """The facts at one node, by operand number (operands, then outputs); what a rule sees."""

    def __init__(self, facts: Facts, node: Node) -> None:
        self._facts = facts
        self._values = cast(tuple[Value, ...], node.values)  # a rule asks for what is there

    def _at(self, k: int) -> Value:
        value = self._values[k]
        assert value is not None
        return value

    def present(self, k: int) -> bool:
        """Whether operand ``k`` is there."""
        return self._values[k] is not None

    def is_weight(self, k: int) -> bool:
        """Whether operand ``k`` is a tensor that the model holds and of which all is known: not on meta, and not
        changed from call to call."""
        value, facts = self._values[k], self._facts
        if value is None or value.tensor is None or value in facts.blind:
            return False
        return value.next is None or value not in facts.denied

    def from_input(self, k: int) -> bool:
        """Whether operand ``k`` depends on the model's input; else it is made of parameters alone."""
        return self._at(k) in self._facts.graph.from_input

    def mask(self, k: int) -> Bools:
        """Constant entries of operand ``k``; broadcasts to its shape."""
        return self._facts.mask(self._values[k])

    def value(self, k: int) -> Floats:
        """Values of the constant entries of operand ``k``; broadcasts to its shape."""
        return self._facts.value(self._values[k])

    def affine(self, k: int) -> Affine | None:
        """What is known of operand ``k`` as combinations of shared unknowns; None where there are only constants."""
        return self._facts.combined(self._values[k])

    def zero(self, k: int) -> Bools:
        """Entries of operand ``k`` known to be 0, of weights by a mask; broadcasts to its shape."""
        return self._facts.zero(self._values[k])

    def unused(self, k: int) -> Bools:
        """Entries of ``k``, mostly an output, that no reader needs; broadcasts to its shape."""
        return self._facts.unused(self._values[k])


@functools.lru_cache(maxsize=4096)
def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether every axis has size 1 or the full size."""
    return len(shape) == len(whole) and all(s in (1, full) for s, full in zip(shape, whole, strict=True))


def _shaped(node: Node, value: Value, array: Bools | Floats) -> Bools | Floats:
    array = read_only(array)
    if array.shape != value.shape and not _fits(array.shape, value.shape):
        raise RuleError(
            f"{culprit(node)} gave a fact of shape {array.shape} about {value.label} of shape {value.shape}; every "
            "axis has size 1 or the full size"
        )
    return array
