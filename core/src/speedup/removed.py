"""What goes of the factors of a contraction though it is not 0, so that something has to take up what it gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speedup.arrays import ZERO, Bools, Floats, any_of, any_product, compact_axes, count, some, varies
from speedup.bias import takes_bias
from speedup.facts import Affine
from speedup.layout import Layout
from speedup.node import Node
from speedup.pieces import is_own
from speedup.reused import Agreed, Reused, constants, reused

if TYPE_CHECKING:
    from speedup.node_keep import NodeKeep

# The terms of what is constant: of no unknown.
_NONE = np.zeros(0)


@dataclass(frozen=True, eq=False)
class Removed:
    """The entries of operand ``k`` of a contraction that go though they are not 0, in named space.

    Attributes:
        mask: where they are.
        foldable: whether they are the same all along the axes that the weight does not have.
        weight: the operand they are multiplied with, None when no weight of the model is.
        known: everything that is known of the operand, kept entries included.
        terms: of what is known, the factors of each unknown, (unknowns, ...); the same shape rules as for facts.
        offset: the constant part.
    """

    k: int
    mask: Bools
    foldable: bool
    weight: int | None
    known: Bools
    terms: Floats
    offset: Floats


def removed(node: Node, keep: NodeKeep) -> list[Removed]:
    """What goes of the factors and is not 0, and that some kept output still counts."""
    return keep.remembered(lambda: _removed(node, keep))


def _removed(node: Node, keep: NodeKeep) -> tuple[list[Removed], Sequence[int]]:
    """As ``removed``, found anew; and the operands on whose sets it hangs."""
    layout, facts = node.layout, keep.facts
    by_weights = not any([facts.from_input(k) for k in layout.factors])  # whether parameters alone make all factors
    # The factors that may lose entries which are not 0.
    live = [k for k in layout.factors if by_weights or not (facts.is_weight(k) or is_own(node, k))]
    found = []
    all_read = True  # so it stays when more outputs are kept
    for k in live:
        operand = _Operand.of(node, keep, k, by_weights)
        gone = operand.counts & ~keep.sets[k]
        if not some(gone):
            continue
        named = layout.to_named(k, gone)
        used = named if operand.folds_for_all else named & _read(node, keep, operand, by_weights)
        number = count(used)
        all_read = all_read and used.shape == named.shape and number == count(named)
        one = _removed_of(node, operand, named, used) if number else None
        if one is not None:
            found.append(one)
    return found, live if all_read else [*live, layout.n_inputs]


@dataclass(eq=False)  # not frozen, since that takes longer to make, and each call has one
class _Operand:
    """What is known of an operand that may lose entries.

    Attributes:
        others: the other factors.
        weight: the operand it is multiplied with, None when no weight of the model is.
        known: the entries that are known, offset: their constant part; combined: all of it, where that is not constant.
        counts: those that go in vain, unless something takes up what they gave.
        agreed: of a layer that is called several times, what the first call has there.
        folds_for_all: whether this is that first call, which folds for all.
    """

    k: int
    others: list[int]
    weight: int | None
    known: Bools
    offset: Floats
    combined: Affine | None
    counts: Bools
    agreed: Agreed | None
    folds_for_all: bool

    @staticmethod
    def of(node: Node, keep: NodeKeep, k: int, by_weights: bool) -> _Operand:
        layout, facts = node.layout, keep.facts
        combined = None if by_weights else facts.affine(k)
        if combined is not None:
            known, offset = combined.mask, combined.offset
            counts = known & ~(combined.constant & (offset == 0))
        else:
            known, offset = facts.mask(k), facts.value(k)
            # Constant as it is, no mask asked for the end of what is made of parameters alone: only its zeros may go.
            counts = ~facts.zero(k) if by_weights else known & (offset != 0)
        others = [j for j in layout.factors if j != k]
        weight = others[0] if others and is_own(node, others[0]) and not by_weights else None
        layer = _reused_alike(node, keep, others)
        agreed, is_first = None, False
        if layer is not None:
            agreed = constants(layer, keep.facts_at(layer.first), k, beside(layout, k, layer.weight))
            is_first = agreed is not None and layer.first is node
        if agreed is not None:  # what is 0 here may be another number in the first call
            counts = counts | (known & layout.from_named(k, agreed.value != 0))
            if combined is None and not by_weights:
                weight = others[0]
        return _Operand(k, others, weight, known, offset, combined, counts, agreed, is_first)


def _removed_of(node: Node, operand: _Operand, named: Bools, used: Bools) -> Removed | None:
    """What goes of an operand, in named space, of which some is read; None where another call folds all of it."""
    layout, k, combined, agreed = node.layout, operand.k, operand.combined, operand.agreed
    scope = beside(layout, k, operand.weight)
    known, offset = layout.to_named(k, operand.known), layout.to_named(k, operand.offset)
    gone = np.where(named, offset, ZERO)
    named, used, offset, gone = [
        compact_axes(a, axes=scope)[0] if varies(a, scope) else a for a in (named, used, offset, gone)
    ]
    alike = operand.weight is not None and not varies(named, scope) and not varies(gone, scope)
    terms = _NONE
    if combined is not None and combined.terms:
        terms, wide = layout.all_to_named(k, combined.stacked[1:]), tuple([p + 1 for p in scope])
        if varies(terms, wide):
            (terms,) = compact_axes(terms, axes=wide)
        axis = (layout.operands[k] or ())[combined.axis]
        alike = alike and layout.contracted <= set(axis) and not varies(terms, wide) and not varies(offset, scope)
    if alike:
        # An entry that matters at one position is folded at all of them.
        used = any_of(used, scope)
    if agreed is not None and alike and not operand.folds_for_all:
        # The first call folds for this one too; here stays what is another number in that.
        used = used & ~(agreed.known & (agreed.value == gone))
        alike = False
        if not some(used):
            return None
    return Removed(k, used, alike, operand.weight, known, terms, offset)


def beside(layout: Layout, k: int, weight: int | None) -> tuple[int, ...]:
    """The axes of operand ``k`` that the weight does not have, in named space."""
    own = layout.names_of(weight) if weight is not None else frozenset()
    axes: tuple[int, ...] = layout.form.once("beside", (k, weight), lambda: layout.axes(layout.names_of(k) - own))
    return axes


def _read(node: Node, keep: NodeKeep, operand: _Operand, by_weights: bool) -> Bools:
    """The entries of an operand that matter to some kept output.

    How much is read of a table, one that parameters alone make, may depend on the size of the input: all that is kept.
    """
    layout, facts, k = node.layout, keep.facts, operand.k
    last, private = layout.n_inputs, layout.private(k)
    kept = keep.sets[last]
    out = layout.to_named(last, kept if by_weights else kept & ~facts.unused(last))
    out = layout.project_any(last, out)
    read = any_of(out, private)
    for j in operand.others:
        zero = facts.zero(j)
        if some(zero):
            reads = ~layout.project_all(j, layout.to_named(j, zero))
            read = read & any_product(reads, out, private)
    return read


def _reused_alike(node: Node, keep: NodeKeep, factors: list[int]) -> Reused | None:
    """The layer whose weight is the one factor, if it is called several times and may take constants into its bias."""
    if (
        len(factors) != 1
        or not keep.is_reused_alike(factors[0])
        or node.rule is None
        or not takes_bias(node.rule, node)
    ):
        return None
    layer = reused(node)
    return layer if layer is not None and layer.weight == factors[0] else None
