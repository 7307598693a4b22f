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
   called several times: what is the same constant in all calls goes into its bias (``reused``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from speedup.arrays import ZERO, compact_axes, some, varies
from speedup.bias import absorber, into_bias, takes_bias
from speedup.carrying import carry
from speedup.kinds import Kind
from speedup.node import Node, Value
from speedup.pieces import contents
from speedup.removed import Removed, beside, removed
from speedup.response import response
from speedup.rows import Rows, has_rows

if TYPE_CHECKING:
    from speedup.keep import KeepSets
    from speedup.node_keep import NodeKeep
    from speedup.rule import Rule


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
            found[node.operand(rule.bias) or absorber(node) or rule.bias] = None
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
            if varies(constants, scope := beside(node.layout, gone.k, gone.weight)):
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
            target, full = into_bias(rule, node, shift, like)
            new[target] = (
                keeps.cut(target, full).contiguous() if isinstance(target, Value) and target.is_source else full
            )
    return new
