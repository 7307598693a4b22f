"""What zero padding makes of constants: filters that read nothing else give a number at each place of few kinds.

    out[o, p] = b[o] + sum over i of c[i] · (sum over the window at p, as far as it lies inside, of w[o, i])

Along each axis a window may reach over the one end by some taps, over the other by some, or over none. That is one kind
of place for each pair, for all filters alike: so of filters that give nothing else as many need to stay as there are
kinds of places, 16 for a kernel of 3x3 with padding of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil

import numpy as np

from speedup import Affine, Bools, Floats, Node, NodeFacts
from speedup_plugin_conv.geometry import geometry

_MOST = 16  # kinds of places


def at_borders(node: Node, facts: NodeFacts) -> Affine | None:
    """The filters that read constants only, and not zeros alone, where the constants are the same at all positions."""
    if not facts.is_weight(1) or (facts.present(2) and not facts.is_weight(2)):
        return None
    weight = node.operands[1]
    assert weight is not None
    shape = weight.shape
    dims, channel = len(shape) - 2, node.outputs[0].ndim - len(shape) + 1
    known, zero = facts.mask(0), facts.zero(1)
    groups = int(node.arg("groups", 1))
    if groups == 1 and zero.shape[1] == 1 and not known.all():  # filters that read anything read what is not known
        return None
    constants = np.where(known, facts.value(0), 0.0)
    if any([s != 1 for array in (known, constants) for a, s in enumerate(array.shape) if a != channel]):
        return None
    if not constants.any():  # only numbers that are not 0 differ at a border
        return None
    reads = _reads(known, constants != 0, zero, shape, groups)
    if not reads.any():
        return None
    kinds = [_kinds(*numbers) for numbers in zip(*geometry(node, dims), strict=True)]
    places = list(product(*kinds))
    if len(places) > _MOST:
        return None
    filters = facts.value(1)[reads]
    given = _per_group(constants, shape, groups).repeat(shape[0] // groups, 0)[reads]
    taps = np.einsum("oi,oi...->o...", given, filters)
    bias = facts.value(2).reshape(-1)[reads] if facts.present(2) else 0.0
    axes = tuple(range(1, dims + 1))
    line = [-1 if a == channel else 1 for a in range(node.outputs[0].ndim)]
    sums = []
    for place in places:
        array = np.zeros(len(reads))
        array[reads] = taps[(slice(None), *(slice(*k) for k in place))].sum(axes) + bias
        sums.append(array.reshape(line))
    inside = sums[0]
    return Affine(channel, reads.reshape(line), tuple(s - inside for s in sums[1:]), inside, one_hot=True)


def _reads(known: Bools, nonzero: Bools, zero: Bools, shape: Sequence[int], groups: int) -> Bools:
    """Which filters read nothing but what is known, and something of it that is not 0."""
    idle = np.broadcast_to(zero.all(tuple(range(2, zero.ndim))), shape[:2]).reshape(groups, -1, shape[1])
    only = (_per_group(known, shape, groups)[:, None] | idle).all(2)
    some = (_per_group(nonzero, shape, groups)[:, None] & ~idle).any(2)
    result: Bools = (only & some).reshape(-1)
    return result


def _per_group(array: Bools | Floats, shape: Sequence[int], groups: int) -> Bools | Floats:
    """What is said of the channels that go in, as (groups, channels of a group)."""
    return np.broadcast_to(array.reshape(-1), groups * shape[1]).reshape(groups, shape[1])


def _kinds(size: int, before: int, after: int, stride: int, dilation: int) -> list[tuple[int, int]]:
    """The taps, from the first to behind the last one, that lie inside; all of them first."""
    over = dict.fromkeys([0, *(max(0, ceil((before - at) / dilation)) for at in range(0, before + 1, stride))])
    pairs = [(first, max(first, size - last)) for first in over for last in range(ceil(after / dilation) + 1)]
    return list(dict.fromkeys((first, last) if first < last else (0, 0) for first, last in pairs))
