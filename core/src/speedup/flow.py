"""The flow of both facts through an op, derived from its axes signature.

Four kinds of op, of which a rule says the last two (``Rule.indices``, ``Rule.keeps_zeros``), and the signature tells
the others apart:

* *pointwise*: every shared axis of the inputs is in the output. An output entry is constant where all operands are, or
  where one that is 0 makes the others irrelevant (``annihilates``); its value is found by running the call.
* *contraction*: out[o] = sum over i of x[i] · w[o, i] + bias[o]. A term is constant where a factor is 0 or all are
  constant; an output is constant where all its terms are; x[i] is unused where every w[o, i] is 0 or out[o] unused.
* *choice*: an output entry is an entry of the first operand, at an index that is data. It is constant where all that
  may be chosen are the same.
* *keeping zeros*: whatever it does with numbers along its mixed axes, it makes 0 of zeros.

All of it is computed in named space (see ``speedup.layout``), where arrays have size 1 along names that do not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from torch.utils._pytree import tree_leaves

from speedup.arrays import Bools, Floats, any_of, any_product, everything, some, sum_product
from speedup.facts import Affine, Constant, Fact, Unused, affine, constant, unused
from speedup.layout import Layout
from speedup.linearity import through
from speedup.named import Named
from speedup.node import Node, Ref, Value
from speedup.response import response

if TYPE_CHECKING:
    from speedup.known import NodeFacts
    from speedup.rule import Rule


def from_weight(rule: Rule, node: Node, facts: NodeFacts) -> dict[str, Fact]:
    """Constant outputs and unused inputs that the masks of the weights alone make."""
    named = Named(node, facts, weights_only=True)
    if named.inputs and not named.weights:
        return {}
    return {**_constants(rule, node, named), **_unused(rule, node, named)}


def from_input(rule: Rule, node: Node, facts: NodeFacts) -> dict[str, Fact]:
    """Constant outputs, and affine ones where the call averages, or treats what is affine alike."""
    named = Named(node, facts)
    found = _constants(rule, node, named)
    known = facts.affine(0) if node.operands and facts.present(0) else None
    if known is not None and rule.averaging(node):
        found.update(_averaged(node, known))
    elif len(node.outputs) == 1:
        name = node.output_names[0]
        fact = through(rule, node, facts, found.get(name), named.live)
        found.update({} if fact is None else {name: fact})
    return found


def from_output(rule: Rule, node: Node, facts: NodeFacts) -> dict[str, Fact]:
    """Unused operands."""
    return _unused(rule, node, Named(node, facts))


# -- constants --------------------------------------------------------------------------------------------------------


def _constants(rule: Rule, node: Node, named: Named) -> dict[str, Fact]:
    # A mean of constants is told as what is pointwise is, by running the call.
    sums = named.layout.contracted and not rule.averaging(node)
    kind = _kept_zeros if rule.keeps_zeros else _chosen if rule.indices else _contracted if sums else _pointwise
    found = kind(rule, named)
    return {name: fact for name, fact in zip(node.output_names, found, strict=False) if fact is not None}


def _averaged(node: Node, known: Affine) -> dict[str, Fact]:
    """An average over positions keeps what is the same at all of them; its unknowns are averaged too."""
    layout, out = node.layout, node.layout.n_inputs
    dim = (layout.operands[0] or ())[known.axis]
    axes = [a for a, d in enumerate(layout.operands[out] or ()) if d == dim and dim]
    arrays = [layout.to_named(0, a) for a in (known.mask, known.offset, *known.terms)]
    over = layout.axes(set(layout.names) - layout.shared(out))
    if len(axes) != 1 or any(a.shape[p] > 1 for a in arrays for p in over):
        return {}
    mask, offset, *terms = (layout.from_named(out, a) for a in arrays)
    # Where there is nothing to average, an entry comes out as it came in.
    fact = affine(axes[0], mask, terms, offset, known.one_hot and not layout.mixed | layout.contracted)
    return {node.output_names[0]: fact} if fact is not None else {}


def _chosen(rule: Rule, named: Named) -> list[Constant | None]:
    """Entries of the first operand, nobody knows which: what is the same for all that may be chosen."""
    out = named.layout.n_inputs
    mask, value = (named.layout.from_named(out, a) for a in np.broadcast_arrays(*named.same(0)))
    return [constant(mask, value)]


def _kept_zeros(rule: Rule, named: Named) -> list[Constant | None]:
    layout, zero = named.layout, _zero(named)
    outputs = range(layout.n_inputs, len(layout.operands))
    masks = [layout.from_named(k, layout.project_all(k, zero)) for k in outputs]
    # Whole numbers that come out say where something was.
    places = [_is_whole(v) for v in named.node.outputs]
    return [None if p else constant(m, np.zeros(m.shape)) for m, p in zip(masks, places, strict=True)]


def _zero(named: Named) -> Bools:
    """Where all operands that are no indices are 0."""
    zeros = [named.zero(k) for k in named.inputs if not _is_index(named.node, k)]
    return reduce(np.logical_and, zeros) if zeros else ~everything(len(named.layout.names))


def _is_index(node: Node, k: int) -> bool:
    """Whether an operand is of whole numbers or truth values."""
    value = node.operands[k]
    return value is not None and _is_whole(value)


def _is_whole(value: Value) -> bool:
    return not (value.dtype.is_floating_point or value.dtype.is_complex)


def _pointwise(rule: Rule, named: Named) -> list[Constant | None]:
    layout = named.layout
    holds = _all_known(rule, named)
    for mask in holds:
        if some(mask):
            break
    else:
        return []
    if named.node.others and not all(v.is_known or v in placing(named.node) for v in named.node.others):
        return []
    arrays: list[Floats | None] = [None] * layout.n_inputs
    for k in named.inputs:
        arrays[k] = named.own_value(k)
    results = rule.evaluate(named.node, arrays)
    if results is None:
        return []
    if len(results) != layout.n_outputs:
        raise ValueError(f"evaluate returned {len(results)} arrays for {layout.n_outputs} output")
    return [constant(m, np.asarray(r, dtype=np.float64)) for m, r in zip(holds, results, strict=True)]


def placing(node: Node) -> set[Value]:
    """The tensors that only say where entries go, see ``Rule.places``."""
    names = node.rule.places if node.rule is not None else ()
    leaves = [leaf for name in names for leaf in tree_leaves(node.arguments.get(name))]
    return {node.tensors[leaf.number] for leaf in leaves if isinstance(leaf, Ref)}


def _all_known(rule: Rule, named: Named) -> list[Bools]:
    """Per output the entries for which every operand is constant, or irrelevant."""
    layout = named.layout
    live = named.live
    hiding = _hiding(rule, named.node) if rule.annihilates else _NONE
    if len(live) == 1 and live[0] in layout.passing and live[0] not in hiding:
        return [named.own_mask(live[0])]
    holds = everything(len(layout.names))
    for k in live:
        ok = named.mask(k)
        for j in hiding.get(k, ()):
            ok = ok | named.zero(j)
        holds = ok if len(live) == 1 else holds & ok
    return [layout.from_named(k, layout.project_all(k, holds)) for k in range(layout.n_inputs, len(layout.operands))]


_NONE: Mapping[int, Sequence[int]] = {}


def _hiding(rule: Rule, node: Node) -> Mapping[int, Sequence[int]]:
    """The operands that make another one irrelevant where they are 0, by that one (see ``Rule.annihilates``)."""
    if not rule.annihilates:
        return _NONE
    names = node.operand_names
    known: dict[int, list[int]] = node.layout.form.once("hiding", (rule, names), lambda: _find_hiding(rule, node))
    return known


def _find_hiding(rule: Rule, node: Node) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    names = node.operand_names
    for one, others in rule.annihilates.items():
        if one in names and node.operands[names.index(one)] is not None:
            for other in others:
                if other in names:
                    found.setdefault(names.index(other), []).append(names.index(one))
    return found


def _contracted(rule: Rule, named: Named) -> list[Constant | None]:
    layout, out = named.layout, named.layout.n_inputs
    factors = layout.factors
    if factors[0] in named.weights and layout.names_of(factors[0]) & layout.mixed:
        return []
    varies = _any_nonconstant(rule, named, factors)
    if varies is None:
        return []
    holds = layout.project_all(out, ~varies)
    for k in layout.addends:
        holds = holds if k in named.weights else holds & named.mask(k)
    if not some(holds):
        return []
    value = _constant_terms(named, factors, holds)
    for k in layout.addends:
        value = value + named.value(k)
    return [constant(layout.from_named(out, holds), layout.from_named(out, value))]


def _any_nonconstant(rule: Rule, named: Named, factors: Sequence[int]) -> Bools | None:
    """For every output entry: is there a term that is neither 0 nor a product of constants?"""
    over = named.layout.contracted_axes
    first = factors[0]
    # Where positions differ (zero padding), only a constant 0 comes out the same everywhere.
    known = named.mask(first) if rule.uniform(named.node) else named.zero(first)
    if len(factors) == 1:
        return any_of(~known, over)
    if len(factors) != 2:
        return None
    second, whole = factors[1], everything(len(named.layout.names))
    also = named.mask(second)
    varies = ~whole if known is whole else any_product(~known, ~named.zero(second), over)
    return varies if also is whole else varies | any_product(~also, ~named.zero(first), over)


def _constant_terms(named: Named, factors: Sequence[int], holds: Bools) -> Floats:
    """The sum of the constant terms, for outputs that have no others: those where ``holds``."""
    layout = named.layout
    over = layout.contracted_axes
    live = [k for k in factors if k not in named.weights]
    if len(live) == 1 and len(factors) == 2:
        weight = factors[0] if factors[1] in live else factors[1]
        wanted = holds & any_of(~named.zero(weight), over)  # what masks have made 0 gives 0
        if not some(wanted):
            return named.no_value
        return response(named.node, live[0], weight, named.value(live[0]), wanted)
    if live and not any([some(named.value(k)) for k in live]):  # 0 where nothing is known
        return named.no_value
    whole = [named.value(k).sum(axis=layout.mixed_axes, keepdims=True) for k in factors]
    if len(factors) == 2:
        window = layout.axes({n for dim in layout.operands[factors[1]] or () for n in dim} & layout.mixed)
        whole[1] = whole[1] * _repeats(layout, window, named.value(factors[1]))
    whole += [np.ones((1,) * len(layout.names))] * (2 - len(whole))
    return sum_product(whole[0], whole[1], over) * _repeats(layout, over, *whole)


def _repeats(layout: Layout, over: tuple[int, ...], *arrays: Floats) -> int:
    """How many terms a summed entry stands for along names that no array writes out."""
    return prod(layout.sizes[layout.names[p]] for p in over if all(a.shape[p] == 1 for a in arrays))


# -- unused -----------------------------------------------------------------------------------------------------------


def _unused(rule: Rule, node: Node, named: Named) -> dict[str, Fact]:
    """The entries of the operands that are not read."""
    layout = named.layout
    found: dict[str, Fact] = {}
    factors = layout.factors
    hiding = _hiding(rule, node) if rule.annihilates else _NONE
    for k in named.inputs:
        value = node.operands[k]
        if value is None or value.is_of_one_call:  # see ``follows``
            continue
        if k in factors and len(factors) == 2:
            other = factors[1] if k == factors[0] else factors[0]
            mask = layout.project_all(k, ~any_product(~named.unused, ~named.zero(other), layout.private(k)))
        elif node.operand_names[k] in rule.indices:
            # Where all that may be chosen is the same, it does not matter which is.
            mask = layout.project_all(k, named.unused | named.same(0)[0])
        elif rule.keeps_zeros and _is_index(node, k):
            # It does not matter where zeros go.
            mask = layout.project_all(k, named.unused | _zero(named))
        elif k in layout.passing and k not in hiding:
            fact = unused(named.facts.unused(layout.n_inputs)) if not named.weights_only else None
            if fact is not None:
                found[node.operand_names[k]] = fact
            continue
        else:
            idle = named.unused
            for j in hiding.get(k, ()):
                idle = idle | named.zero(j)
            if idle is named.nowhere:
                continue
            mask = layout.project_all(k, idle)
        fact = unused(layout.from_named(k, mask))
        if fact is not None:
            found[node.operand_names[k]] = fact
    return found


def unused_operands(node: Node, masks: Mapping[int, Bools]) -> dict[str, Fact]:
    """The facts that nobody reads entries of operands, for rules that find them out in named space.

    Args:
        node: the call.
        masks: by number of an operand, in named space: an entry is unused where all along the other names says so.
            Those of operands that are missing do not count.

    Example:
        >>> unused = layout.to_named(out, facts.unused(out))
        >>> return unused_operands(node, {0: unused, 1: unused})
    """
    found: dict[str, Fact] = {}
    for k, named in masks.items():
        if node.operands[k] is not None:
            mask = node.layout.from_named(k, node.layout.project_all(k, named))
            if some(mask):
                found[node.operand_names[k]] = Unused(mask)
    return found


def follows(node: Node, k: int) -> bool:
    """Whether nobody asks which entries of an operand are read: of a weight of this call alone, which keeps what the
    other operands keep. Of a contraction that fact would be of the weight's size."""
    value = node.operands[k]
    return value is not None and value.is_of_one_call
