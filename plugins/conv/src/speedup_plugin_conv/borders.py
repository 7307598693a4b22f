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

from speedup import Affine, Bools, Node, NodeFacts
from speedup_plugin_conv.geometry import geometry

_MOST = 16  # kinds of places


def at_borders(node: Node, facts: NodeFacts) -> Affine | None:
    """The filters that read constants only, where the constants are the same at all positions."""
    if not facts.is_weight(1) or (facts.present(2) and not facts.is_weight(2)):
        return None
    weight = facts.value(1)
    dims, channel = weight.ndim - 2, node.outputs[0].ndim - weight.ndim + 1
    known, constants = facts.mask(0), np.where(facts.mask(0), facts.value(0), 0.0)
    if any(s != 1 for array in (known, constants) for a, s in enumerate(array.shape) if a != channel):
        return None
    kinds = [_kinds(*numbers) for numbers in zip(*geometry(node, dims), strict=True)]
    places = list(product(*kinds))
    if not constants.any() or len(places) > _MOST:
        return None
    groups = int(node.arg("groups", 1))
    read = _read_by(known, facts.zero(1), weight.shape, groups)
    if not read.any():
        return None
    per_group = np.broadcast_to(constants.reshape(-1), groups * weight.shape[1]).reshape(groups, -1)
    filters = weight.reshape(groups, -1, *weight.shape[1:])
    taps = np.einsum("gi,goi...->go...", per_group, filters).reshape(len(weight), *weight.shape[2:])
    bias = facts.value(2).reshape(-1) if facts.present(2) else 0.0
    shape = [-1 if a == channel else 1 for a in range(node.outputs[0].ndim)]
    axes = tuple(range(1, dims + 1))
    sums = [(taps[(slice(None), *(slice(*k) for k in place))].sum(axes) + bias).reshape(shape) for place in places]
    inside = sums[0]
    return Affine(channel, read.reshape(shape), tuple(s - inside for s in sums[1:]), inside, one_hot=True)


def _read_by(known: Bools, zero: Bools, shape: Sequence[int], groups: int) -> Bools:
    """Which filters read nothing but what is known."""
    per_group = np.broadcast_to(known.reshape(-1), groups * shape[1]).reshape(groups, 1, shape[1])
    idle = np.broadcast_to(zero.all(tuple(range(2, zero.ndim))), shape[:2]).reshape(groups, -1, shape[1])
    result: Bools = (per_group | idle).all(2).reshape(-1)
    return result


def _kinds(size: int, before: int, after: int, stride: int, dilation: int) -> list[tuple[int, int]]:
    """The taps, from the first to behind the last one, that lie inside; all of them first."""
    over = dict.fromkeys([0, *(max(0, ceil((before - at) / dilation)) for at in range(0, before + 1, stride))])
    pairs = [(first, max(first, size - last)) for first in over for last in range(ceil(after / dilation) + 1)]
    return list(dict.fromkeys((first, last) if first < last else (0, 0) for first, last in pairs))
