"""Layers that are called several times: their one bias takes what goes in all calls alike.

A head that is shared over levels, the encoder of a siamese network: a constant in front of such a layer may go into its
bias if it is the same in every call. All calls are compared with the first one, which folds for all: what is kept of
the weight is kept in each.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from speedup.arrays import ZERO, Bools, Floats, compact_axes, varies
from speedup.errors import SignatureError
from speedup.known import Facts, NodeFacts
from speedup.node import Node, Value

if TYPE_CHECKING:
    from speedup.elsewhere import Elsewhere
    from speedup.vary import Case


class Reused(NamedTuple):
    """A layer that is called several times.

    Attributes:
        first: the first of its calls.
        weight, bias: the operands that they share, by number.
        calls: all of them.
    """

    first: Node
    weight: int
    bias: int
    calls: frozenset[Node]


def reused(node: Node) -> Reused | None:
    """The layer of a call, if it is called several times: by one rule, which reads the same weight and the same bias at
    the same places, and at all positions alike; nothing else reads these."""
    found: Reused | None = node.once("reused", partial(_reused, node))
    return found


def _reused(node: Node) -> Reused | None:
    rule = node.rule
    if rule is None or rule.bias is None or rule.bias not in node.operand_names:
        return None
    weights = [k for k in node.layout.factors if _is_shared(node.operands[k])]
    bias = node.operand_names.index(rule.bias)
    if len(weights) != 1 or not _is_shared(node.operands[bias]):
        return None
    (weight,) = weights
    calls = _calls(node, weight)
    if node is not calls[0]:  # what they have in common is found once for all
        found = reused(calls[0])
        alike = found is not None and (found.weight, found.bias) == (weight, bias) and node in found.calls
        return found if alike else None
    own = frozenset(calls)
    if len(calls) != len(own) or own != set(_calls(node, bias)):
        return None
    for call in calls:
        if call.rule is None or type(call.rule) is not type(rule) or len(call.operands) != len(node.operands):
            return None
        if any(call.operands[k] is not node.operands[k] for k in (weight, bias)):
            return None
        try:
            layout = call.layout
        except SignatureError:
            return None
        if layout.names != node.layout.names or layout.operands[weight] != node.layout.operands[weight]:
            return None
        if not call.rule.folds(call) or not call.rule.uniform(call):
            return None
    return Reused(min(calls, key=lambda call: call.index), weight, bias, own)


def _is_shared(value: Value | None) -> bool:
    return value is not None and value.is_source and value.is_known and len(value.uses) > 1


def _calls(node: Node, k: int) -> list[Node]:
    value = node.operands[k]
    assert value is not None
    return [call for call, _ in value.uses]


class Agreed(NamedTuple):
    """What one operand of the first call is, in named space: what others have to be for it to go.

    Attributes:
        known: the entries that are constant.
        value: these constants, 0 elsewhere.
    """

    known: Bools
    value: Floats


def constants(layer: Reused, facts: NodeFacts, k: int, scope: tuple[int, ...]) -> Agreed | None:
    """What operand ``k`` of the first call is; None where that is not the same all along ``scope``.

    Args:
        facts: those at the first call.
    """
    layout = layer.first.layout
    if facts.affine(k) is not None:
        return None
    known = layout.to_named(k, facts.mask(k))
    value = np.where(known, layout.to_named(k, facts.value(k)), ZERO)
    known, value = [compact_axes(a, axes=scope)[0] if varies(a, scope) else a for a in (known, value)]
    return None if varies(known, scope) or varies(value, scope) else Agreed(known, value)


def reused_alike(elsewhere: Elsewhere, facts: Facts) -> frozenset[Value]:
    """The weights of layers that are called several times and lose constants, and as often at other sizes of the input
    (a loop over the steps of a sequence calls more of them)."""
    graph = elsewhere.graph
    if graph.branch is not None or graph.answers or graph.seeking is not None:
        return frozenset()
    readers = {n for v in graph.values if len(v.uses) > 1 and v.is_source for n, _ in v.uses if n.rule}
    layers = {r.first: r.weight for n in readers if (r := reused(n)) and r.first is n}
    weights = {
        weight
        for node, k in layers.items()
        if (weight := node.operands[k]) is not None
        and any(facts.known_but_zero(v).any() for j in node.layout.factors if j != k and (v := node.operands[j]))
    }
    if not weights:
        return frozenset()
    often = {v.names: sum(v in n.tensors for n in graph.nodes) for v in weights}
    others: list[bool] = []

    def takes(case: Case) -> bool:
        other = elsewhere.run(case)
        if other is None:
            return False
        found = {v.names: sum(v in n.tensors for n in other.nodes) for v in other.sources if v.names in often}
        weights.difference_update([v for v in weights if found.get(v.names) != often[v.names]])
        others.append(True)
        return True

    elsewhere.at_sizes(takes)
    return frozenset(weights if others else ())
