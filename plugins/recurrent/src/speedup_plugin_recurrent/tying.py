"""Which channels of a recurrent call can only go together: those of its input, and its hidden units."""

from __future__ import annotations

import numpy as np

from speedup import Labels, Node, Value
from speedup_plugin_recurrent.call import Call
from speedup_plugin_recurrent.known import CELLS


def tie(call: Call, node: Node, labels: Labels) -> None:
    """A unit is one channel in all its gates, in its states, and in what reads them. Cells keep equal counts."""
    source = node.operands[0]
    assert source is not None
    given = labels.arrays(source)
    if call.projected or source.is_source or any(size > 1 for size in given[0].shape[:-1]):
        for value in node.values:
            if value is not None:
                labels.freeze(value)
        return
    units = labels.fresh((len(call.weights), call.width))
    labels.made.append(units)
    labels.keep_dense(units, 1)
    features = given[0].reshape(-1)
    if features.size > 1:
        labels.read.append(source)
    for number, row in enumerate(call.weights):
        rows = np.tile(units[number], CELLS[call.kind][0])
        layer = number // call.directions
        below = units[(layer - 1) * call.directions : layer * call.directions].reshape(-1)
        columns = (below if layer else features, units[number])
        for role, k in enumerate(row):
            if k is None:
                continue
            weight = _at(node, k)
            labels.add(weight, rows.reshape([-1] + [1] * (weight.ndim - 1)))
            if role < 2 and columns[role].size > 1:
                labels.add(weight, columns[role].reshape(1, -1))
                labels.reads.add((weight, (1,)))
    for k in (call.h0, call.c0, call.h, call.c):
        if k is not None:
            value = _at(node, k)
            states = units.reshape([-1] if call.once else [len(units), *[1] * (value.ndim - 2), call.width])
            states = states.reshape([1] * (value.ndim - states.ndim) + list(states.shape))
            for numbers in labels.arrays(value) if k < len(node.operands) or labels.has(value) else ():
                labels.join(numbers, states)
            if not labels.has(value):
                labels.add(value, states)
    if call.out is not None:
        value = _at(node, call.out)
        labels.add(value, units[-call.directions :].reshape([1] * (value.ndim - 1) + [-1]))


def _at(node: Node, k: int) -> Value:
    value = node.values[k]
    assert value is not None
    return value
