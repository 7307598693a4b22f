"""Folding: what removed entries leave behind in the weights of their readers.

A contraction reads sum over i of w[o, i] · x[i]. When x[i] goes though it is not 0, its share goes elsewhere. What is
known of x[i] is a row of numbers: x[i] = sum over r of terms[i, r] · u[r], with unknowns u that all i share; a constant
is the multiple of an unknown that is 1 everywhere.

1. *into the bias*, for constants where the call is the same at all positions: bias[o] += sum over i of w[o, i] · c[i].
   Where there is no bias, a batch norm that follows takes it instead (``Rule.shift``), else the layer gets one;
2. *onto carriers*, for everything else (a layer norm's output, constants under zero padding): kept entries k whose rows
   span the removed ones, x[i] = sum over k of a[i, k] · x[k], take it: w[o, k] += sum over i of w[o, i] · a[i, k].
   Exact at every position and size, for as many channels as there are unknowns: mostly one;
3. *nowhere*, where the weight is not the call's own (computed, or shared): the entries stay. But for a layer that is
   called several times: what is the same constant in all calls goes into its bias (``repeated``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from speedup.carrying import carry
from speedup.facts import ZERO, Bools, Floats, any_of, any_product, compact_axes, count, some, varies
from speedup.graph import Node, Value
from speedup.kinds import Kind
from speedup.layout import Layout
from speedup.pieces import contents, is_own
from speedup.repeated import Repeated, repeated
from speedup.repeated import constants as constants_of
from speedup.response import response
from speedup.rows import Rows, has_rows

if TYPE_CHECKING:
    from speedup.keep import KeepSets, NodeKeep
    from speedup.rule import Rule


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


# -- what goes --------------------------------------------------------------------------------------------------------


def removed(node: Node, keep: NodeKeep) -> list[Removed]:
    """What goes of the factors and is not 0, and that some kept output still counts."""
    return keep.remembered(lambda: _removed(node, keep))


def _removed(node: Node, keep: NodeKeep) -> tuple[list[Removed], Sequence[int]]:
    """As ``removed``, found anew; and the operands on whose sets it hangs."""
    layout, facts = node.layout, keep.facts
    factors = layout.factors
    weights_only = True  # whether parameters alone make all factors
    for k in factors:
        if facts.from_input(k):
            weights_only = False
            break
    # The factors that may lose entries which are not 0.
    live = [k for k in factors if weights_only or not (facts.is_weight(k) or is_own(node, k))]
    found = []
    all_read = True  # so it stays when more outputs are kept
    for k in live:
        combined = None if weights_only else facts.affine(k)
        if combined is not None:
            known, offset = combined.mask, combined.offset
            counts = known & ~(combined.constant & (offset == 0))
        else:
            known, offset = facts.mask(k), facts.value(k)
            # Constant as it is, no mask asked for the end of what is made of parameters alone: only its zeros may go.
            counts = ~facts.zero(k) if weights_only else known & (offset != 0)
        others = [j for j in factors if j != k]
        layer = _recurring(node, keep, others)
        agreed, is_first = None, False
        if layer is not None:
            agreed = constants_of(layer, keep.facts_at(layer.first), k, _beside(layout, k, layer.weight))
            is_first = agreed is not None and layer.first is node
        if agreed is not None:  # what is 0 here may be another number in the first call
            counts = counts | (known & layout.from_named(k, agreed.value != 0))
        gone = counts & ~keep.sets[k]
        if not some(gone):
            continue
        named = layout.to_named(k, gone)
        used = named if is_first else named & _read(node, keep, k, others, weights_only)
        number = count(used)
        all_read = all_read and used.shape == named.shape and number == count(named)
        if not number:
            continue
        weight = others[0] if others and is_own(node, others[0]) and not weights_only else None
        if agreed is not None and combined is None and not weights_only:
            weight = others[0]
        scope = _beside(layout, k, weight)
        known, offset = layout.to_named(k, known), layout.to_named(k, offset)
        constants = np.where(named, offset, ZERO)
        named, used, offset, constants = [
            compact_axes(a, axes=scope)[0] if varies(a, scope) else a for a in (named, used, offset, constants)
        ]
        alike = weight is not None and not varies(named, scope) and not varies(constants, scope)
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
        if agreed is not None and alike and not is_first:
            # The first call folds for this one too; here stays what is another number in that.
            used = used & ~(agreed.known & (agreed.value == constants))
            alike = False
            if not some(used):
                continue
        found.append(Removed(k, used, alike, weight, known, terms, offset))
    return found, live if all_read else [*live, layout.n_inputs]


def _beside(layout: Layout, k: int, weight: int | None) -> tuple[int, ...]:
    """The axes of operand ``k`` that the weight does not have, in named space."""
    own = layout.names_of(weight) if weight is not None else frozenset()
    axes: tuple[int, ...] = layout.once("beside", (k, weight), lambda: layout.axes(layout.names_of(k) - own))
    return axes


def _read(node: Node, keep: NodeKeep, k: int, others: list[int], weights_only: bool) -> Bools:
    """The entries of operand ``k`` that matter to some kept output.

    How much is read of a table, one that parameters alone make, may depend on the size of the input: all that is kept.
    """
    layout, facts = node.layout, keep.facts
    last, private = layout.n_inputs, layout.private(k)
    kept = keep.sets[last]
    out = layout.to_named(last, kept if weights_only else kept & ~facts.unused(last))
    out = layout.project_any(last, out)
    read = any_of(out, private)
    for j in others:
        zero = facts.zero(j)
        if some(zero):
            reads = ~layout.project_all(j, layout.to_named(j, zero))
            read = read & any_product(reads, out, private)
    return read


def takes_bias(rule: Rule, node: Node) -> bool:
    """Whether constants can go into the bias of this call, or of a norm that follows."""
    known: bool = node.once("takes bias", partial(_takes_bias, rule, node))
    return known


def _takes_bias(rule: Rule, node: Node) -> bool:
    if rule.bias is None or rule.bias not in node.operand_names or not rule.uniform(node):
        return False
    k = node.operand_names.index(rule.bias)
    if node.values[k] is not None:
        # The share of what goes varies along the names that the weight brings to the output: so must the bias.
        layout = node.layout
        own = {n for j in range(layout.n_inputs) if j != k and _takes(node, j) for n in layout.names_of(j)}
        return _takes(node, k) and own & layout.names_of(layout.n_inputs) == layout.names_of(k)
    return _absorber(node) is not None or (node.module is not None and _called_once(node))


def _takes(node: Node, k: int) -> bool:
    """Whether operand ``k`` may get other contents: it is the call's own, or that of a layer that is called again."""
    if is_own(node, k):
        return True
    layer = repeated(node)
    return layer is not None and k in (layer.weight, layer.bias)


def _recurring(node: Node, keep: NodeKeep, factors: list[int]) -> Repeated | None:
    """The layer whose weight is the one factor, if it is called several times and may take constants into its bias."""
    if len(factors) != 1 or not keep.recurs(factors[0]) or node.rule is None or not takes_bias(node.rule, node):
        return None
    layer = repeated(node)
    return layer if layer is not None and layer.weight == factors[0] else None


def _called_once(node: Node) -> bool:
    return all([v is None or not v.is_source or len(v.uses) == 1 for v in node.operands])


def is_shifted(node: Node) -> bool:
    """Whether the output of a call may be lower by constants, which the call behind it takes up."""
    rule = node.rule
    if rule is None or rule.bias is None or not rule.folds(node) or node.operand(rule.bias) is not None:
        return False
    return _absorber(node) is not None


def _absorber(node: Node) -> Value | None:
    """What is subtracted from the output right after the call, entry for entry of its bias: a running mean."""
    found: Value | None = node.once("absorber", partial(_find_absorber, node))
    return found


def _find_absorber(node: Node) -> Value | None:
    (output,) = node.outputs
    if output.is_output or len(output.uses) != 1 or not _called_once(node):
        return None
    reader, number = output.uses[0]
    if reader.rule is None or reader.rule.shift is None or number != 0 or reader.rule.folds(reader):
        return None
    mean = reader.operand(reader.rule.shift)
    if mean is None or not mean.is_of_one_call or not _called_once(reader):
        return None
    k = reader.operands.index(mean)
    here, there = node.layout, reader.layout
    own = {n for j in range(here.n_inputs) if is_own(node, j) for n in here.names_of(j)} - here.mixed
    axis = [a for a, dim in enumerate(here.operands[here.n_inputs] or ()) if own & set(dim)]
    its = [a for a, dim in enumerate(there.operands[0] or ()) if there.names_of(k) & set(dim)]
    return mean if len(axis) == 1 and axis == its and mean.shape == (output.shape[axis[0]],) else None


# -- keeping what cannot go -------------------------------------------------------------------------------------------


def demand(rule: Rule, node: Node, keep: NodeKeep) -> None:
    """Keep what cannot be folded: all of it, or as many carriers as it takes."""
    layout = node.layout
    bias = takes_bias(rule, node)
    for gone in removed(node, keep):
        into_bias = bias and not len(gone.terms)
        if not gone.foldable or not (into_bias or has_rows(layout, gone)):
            mask, why = layout.from_named(gone.k, gone.mask), "a constant that cannot be folded here"
            keep.grow(gone.k, mask, why, gone.k, Kind.CONSTANT)
            continue
        if into_bias:
            continue
        rows = _rows(node, gone, keep, bias)
        if some(rows.carriers.lacking):
            mask, why = layout.from_named(gone.k, rows.lacking), "carries what was removed"
            keep.grow(gone.k, mask, why, gone.k, Kind.CARRIER)


def _rows(node: Node, gone: Removed, keep: NodeKeep, bias: bool) -> Rows:
    """Made once: who demands carriers and who folds onto them ask for the same."""
    sets = gone.mask, keep.sets[gone.k]
    return keep.made_of(("rows", gone.k, bias), sets, lambda before: Rows(node, gone, keep, bias, before))


# -- folding ----------------------------------------------------------------------------------------------------------


def targets(rule: Rule, node: Node, keep: NodeKeep) -> list[Value | str]:
    """The keys of what ``fold`` returns, for which no contents are needed."""
    bias = takes_bias(rule, node)
    found: dict[Value | str, None] = {}
    for gone in removed(node, keep):
        if len(gone.terms) or not bias:
            assert gone.weight is not None
            weight = node.values[gone.weight]
            assert weight is not None
            found[weight] = None
        if bias:
            assert rule.bias is not None
            found[node.operand(rule.bias) or _absorber(node) or rule.bias] = None
    return list(found)


def fold(rule: Rule, node: Node, keep: NodeKeep, keeps: KeepSets) -> dict[Value | str, torch.Tensor]:
    """The new contents of weights and biases that take up what goes.

    Args:
        keeps: all keep sets, by which what is new is cut.

    Returns:
        by value what is kept of a parameter; in full size a piece of a parameter, and under the key ``rule.bias`` a
        bias that the module did not have.
    """
    new: dict[Value | str, torch.Tensor] = {}
    bias = takes_bias(rule, node)
    for gone in removed(node, keep):
        assert gone.weight is not None and gone.foldable
        weight = node.values[gone.weight]
        assert weight is not None
        # A piece of a parameter is put together; of a parameter itself only what is needed is read.
        tensor = None if weight.is_source else contents(weight)
        shift = None
        if bias:
            constants = np.where(gone.mask, gone.offset, ZERO)
            if varies(constants, scope := _beside(node.layout, gone.k, gone.weight)):
                (constants,) = compact_axes(constants, axes=scope)
            kept = node.layout.to_named(node.layout.n_inputs, keep.sets[node.layout.n_inputs])
            shift = response(node, gone.k, gone.weight, constants, kept, tensor)
        if len(gone.terms) or not bias:
            new[weight], added = carry(node, gone, _rows(node, gone, keep, bias), keeps, bias)
            if shift is not None and added is not None:
                shift = shift - added
        if shift is not None:
            like = tensor if weight.tensor is None else weight.tensor
            assert like is not None
            target, full = _into_bias(rule, node, shift, like)
            new[target] = (
                keeps.cut(target, full).contiguous() if isinstance(target, Value) and target.is_source else full
            )
    return new


def _into_bias(rule: Rule, node: Node, shift: Floats, like: torch.Tensor) -> tuple[Value | str, torch.Tensor]:
    """The bias, what is subtracted next, or a bias that is new, with a shift of the output added; in full size."""
    assert rule.bias is not None
    flat = flat_output(node, shift)
    bias, sign = node.operand(rule.bias), 1
    if bias is None:
        bias, sign = _absorber(node), -1
    if bias is None:
        return rule.bias, torch.from_numpy(flat.copy()).to(like)
    old = contents(bias)
    new = old.to("cpu", torch.float64).numpy() + (flat if sign > 0 else -flat).reshape(old.shape)
    return bias, torch.from_numpy(np.asarray(new)).to(old)  # of a single number the sum is no array


def flat_output(node: Node, shift: Floats) -> Floats:
    """A shift over the output's weight-born names, as the flat vector that a bias is."""
    axes, order = node.once("flat output", partial(_bias_axes, node))
    layout = node.layout
    wide = [*shift.shape]
    for p in axes:
        wide[p] = layout.sizes[layout.names[p]]
    if shift.shape != tuple(wide):
        narrow, shift = shift, np.empty(wide, shift.dtype)
        shift[...] = narrow
    return shift.transpose(order).reshape(-1)


def _bias_axes(node: Node) -> tuple[list[int], list[int]]:
    """The axes of the output's weight-born names, in the order of the output; and with the others behind them."""
    layout = node.layout
    own = tuple([k for k in range(layout.n_inputs) if _takes(node, k)])
    found: tuple[list[int], list[int]] = layout.once("bias axes", own, lambda: _axes_of(layout, own))
    return found


def _axes_of(layout: Layout, own: Sequence[int]) -> tuple[list[int], list[int]]:
    weight_names = {n for k in own for n in layout.names_of(k)}
    out = layout.operands[layout.n_inputs] or ()
    axes = [layout.names.index(n) for dim in out for n in dim if n in weight_names]
    return axes, [*axes, *(a for a in range(len(layout.names)) if a not in axes)]
