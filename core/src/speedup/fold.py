"""Folding: what a removed constant leaves behind in the weights of its readers.

A contraction reads sum over i of w[o, i] · x[i]. When x[i] is a constant c[i] and is removed, its share goes elsewhere:

1. *into the bias*, where the call is the same at all positions: bias[o] += sum over i of w[o, i] · c[i];
2. *into a carrier*, where it is not (zero padding) or where there is no bias to use: one of them with c[k] != 0 stays,
   and w[o, k] += sum over i of w[o, i] · c[i] / c[k]. Exact at every position and size, for one channel;
3. *nowhere*, where the weight is not the call's own (shared, or computed): the constants stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from speedup.facts import Bools, Floats, Indices, along, any_of, any_product
from speedup.graph import Node, Value

if TYPE_CHECKING:
    from speedup.keep import NodeKeep
    from speedup.rule import Rule


@dataclass(frozen=True, eq=False)
class Removed:
    """The removed nonzero constants of operand ``k`` of a contraction, in named space.

    Attributes:
        mask: where they are.
        value: their values, 0 elsewhere.
        foldable: whether they are the same all along the axes that the weight does not have.
        weight: the operand they are multiplied with, None when no weight of the model is.
    """

    k: int
    mask: Bools
    value: Floats
    foldable: bool
    weight: int | None


def removed(node: Node, keep: NodeKeep) -> list[Removed]:
    """The nonzero constants that go and that some kept output still counts."""
    layout = node.layout
    facts = keep.facts
    factors = [k for k in range(layout.n_inputs) if layout.present(k) and layout.names_of(k) & layout.contracted]
    found = []
    weights_only = not any(facts.from_input(k) for k in factors)
    for k in factors:
        if facts.is_weight(k) and not weights_only:
            continue
        # Constant as it is, no mask asked for the end of what is made of parameters alone: only its zeros may go.
        counts = ~facts.zero(k) if weights_only else facts.mask(k) & (facts.value(k) != 0)
        mask = counts & ~keep.sets[k]
        if not mask.any():
            continue
        value = layout.to_named(k, np.where(mask, facts.value(k), 0.0))
        named = layout.to_named(k, mask)
        others = [j for j in factors if j != k]
        out = layout.to_named(layout.n_inputs, keep.sets[layout.n_inputs])
        out = layout.project_any(layout.n_inputs, out)
        used = named & layout.project_any(
            k, any_of(out, layout.axes(layout.names_of(layout.n_inputs) - layout.names_of(k)))
        )
        for j in others:
            reads = ~layout.project_all(j, layout.to_named(j, facts.zero(j)))
            over = layout.axes(set(layout.names) - layout.shared(k))
            used = used & layout.project_any(k, any_product(reads, out, over))
        if not used.any():
            continue
        weight = others[0] if others and _is_own(node, others[0]) and not weights_only else None
        scope = layout.axes(layout.names_of(k) - (layout.names_of(weight) if weight is not None else frozenset()))
        foldable = weight is not None and all(named.shape[a] == 1 for a in scope)
        found.append(Removed(k, used, np.where(used, value, 0.0), foldable, weight))
    return found


def _is_own(node: Node, k: int) -> bool:
    """Whether operand ``k`` is a weight that this call alone reads."""
    value = node.values[k]
    return value is not None and value.is_source and len(value.uses) == 1


def takes_bias(rule: Rule, node: Node) -> bool:
    """Whether constants can go into the bias of this call."""
    if rule.bias is None or rule.bias not in node.operand_names or not rule.uniform(node):
        return False
    k = node.operand_names.index(rule.bias)
    return _is_own(node, k) if node.values[k] is not None else node.module is not None and _called_once(node)


def _called_once(node: Node) -> bool:
    return all(v is None or not v.is_source or len(v.uses) == 1 for v in node.operands)


def carriers(node: Node, gone: Removed, keep: NodeKeep) -> Floats:
    """The kept constants that can carry removed ones: named space, 0 where there is none."""
    layout = node.layout
    facts = keep.facts
    kept = facts.mask(gone.k) & keep.sets[gone.k] & ~facts.unused(gone.k)
    named = layout.to_named(gone.k, np.where(kept, facts.value(gone.k), 0.0))
    assert gone.weight is not None
    scope = layout.axes(layout.names_of(gone.k) - layout.names_of(gone.weight))
    least, most = named.min(axis=scope, keepdims=True), named.max(axis=scope, keepdims=True)
    return np.where(least == most, most, 0.0)


def demand(rule: Rule, node: Node, keep: NodeKeep) -> None:
    """Keep what cannot be folded: all removed constants, or one carrier per group."""
    layout = node.layout
    for gone in removed(node, keep):
        if gone.foldable and takes_bias(rule, node):
            continue
        if not gone.foldable:
            keep.grow(gone.k, layout.from_named(gone.k, gone.mask), "a constant that cannot be folded here", gone.k)
            continue
        over = layout.axes(layout.contracted)
        have = any_of(carriers(node, gone, keep) != 0, over)
        lacking = any_of(gone.mask, over) & ~have
        if lacking.any():
            # Written out along the contracted axis, along which all constants may be one number.
            full = [layout.sizes[n] if p in over else 1 for p, n in enumerate(layout.names)]
            size = np.abs(gone.value) * np.ones(full)
            best = gone.mask & (size == size.max(axis=over, keepdims=True)) & lacking
            first = best & (np.cumsum(best, axis=over[0]) == 1) if len(over) == 1 else best
            keep.grow(gone.k, layout.from_named(gone.k, first), "carries the constants of removed channels", gone.k)


def fold(rule: Rule, node: Node, keep: NodeKeep) -> dict[Value | str, torch.Tensor]:
    """The new contents of weights and biases that take up removed constants, before cutting.

    Returns:
        full-size tensors by value; under the key ``rule.bias`` a bias that the module did not have.
    """
    from speedup.flow import response

    new: dict[Value | str, torch.Tensor] = {}
    for gone in removed(node, keep):
        assert gone.weight is not None and gone.foldable
        weight = node.values[gone.weight]
        assert weight is not None and weight.tensor is not None
        if takes_bias(rule, node):
            assert rule.bias is not None
            shift = response(node, gone.k, gone.weight, gone.value)
            bias = node.operand(rule.bias)
            flat = torch.from_numpy(flat_output(node, shift).copy())
            if bias is None:
                new[rule.bias] = flat.to(weight.tensor)
            else:
                assert bias.tensor is not None
                b = bias.tensor.detach()
                new[bias] = (b.to(torch.float64) + flat.to(b.device).reshape(b.shape)).to(b.dtype)
        else:
            new[weight] = _onto_carrier(node, gone, keep, weight.tensor.detach())
    return new


def flat_output(node: Node, shift: Floats) -> Floats:
    """A shift over the output's weight-born names, as the flat vector that a bias is."""
    layout = node.layout
    weight_names = {n for k in range(layout.n_inputs) for n in layout.names_of(k) if _is_own(node, k)}
    out = layout.operands[layout.n_inputs] or ()
    names = [n for dim in out for n in dim if n in weight_names]
    axes = [layout.names.index(n) for n in names]
    rest = [a for a in range(shift.ndim) if a not in axes]
    wide = np.broadcast_to(
        shift, [layout.sizes[n] if n in names else s for n, s in zip(layout.names, shift.shape, strict=True)]
    )
    return wide.transpose(axes + rest).reshape(-1)


def _onto_carrier(node: Node, gone: Removed, keep: NodeKeep, tensor: torch.Tensor) -> torch.Tensor:
    layout = node.layout
    assert gone.weight is not None
    over = layout.axes(layout.contracted)
    able = carriers(node, gone, keep)
    size = np.abs(able)
    best = (size > 0) & (size == size.max(axis=over, keepdims=True))
    best = best & (np.cumsum(best, axis=over[0]) == 1)
    amount = np.where(best, able, 0.0).sum(axis=over, keepdims=True)
    names = [n for dim in layout.operands[gone.weight] or () for n in dim]
    (contracted,) = [n for n in names if n in layout.contracted]
    axis = names.index(contracted)
    factored = tensor.reshape([layout.sizes[n] for n in names])

    def on_weight(array: Floats | Bools, columns: Indices) -> torch.Tensor:
        """A named array on the axes of the weight, some columns of it."""
        there = [n for n in layout.names if n in names]
        picked = array.reshape([array.shape[layout.names.index(n)] for n in there])
        picked = np.take(picked.transpose([there.index(n) for n in names]), columns, axis=axis)
        return torch.from_numpy(np.ascontiguousarray(picked)).to(tensor.device)

    def columns_of(array: Bools) -> Indices:
        p = layout.names.index(contracted)
        return np.flatnonzero(along(array, p))

    def select(columns: Indices) -> torch.Tensor:
        return factored.index_select(axis, torch.from_numpy(columns).to(tensor.device)).to(torch.float64)

    sources, targets = columns_of(gone.mask), columns_of(best)
    ratio = np.where(gone.mask, gone.value, 0.0) / np.where(amount == 0, 1.0, amount)
    moved = (select(sources) * on_weight(ratio, sources)).sum(axis, keepdim=True)
    result = factored.clone()
    taken = select(targets) + moved * on_weight(best, targets)
    result.index_copy_(axis, torch.from_numpy(targets).to(tensor.device), taken.to(tensor.dtype))
    return result.reshape(tensor.shape)
