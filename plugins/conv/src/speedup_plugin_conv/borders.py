"""What zero padding makes of constants: filters that read nothing else give a number at each place of few kinds.

    out[o, p] = b[o] + sum over i of c[i] · (sum over the window at p, as far as it lies inside, of w[o, i])

Along each axis a window may reach over the one end by some taps, over the other by some, or over none. That is one kind
of place for each pair, for all filters alike: so of filters that give nothing else as many need to stay as there are
kinds of places, 16 for a kernel of 3x3 with padding of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from itertools import product
from math import ceil, prod

import numpy as np

from speedup import Affine, Bools, Floats, Node, NodeFacts, matmul
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
    places = _places(tuple(zip(*geometry(node, dims), strict=True)))
    if places is None:
        return None
    filters = facts.value(1)[reads]
    given = _per_group(constants, shape, groups).repeat(shape[0] // groups, 0)[reads]
    taps = np.einsum("oi,oi...->o...", given, filters)
    sums = np.zeros((len(places), len(reads)))
    sums[:, reads] = matmul(places, taps.reshape(len(taps), -1).T)
    if facts.present(2):
        sums[0, reads] += facts.value(2).reshape(-1)[reads]
    line = [-1 if a == channel else 1 for a in range(node.outputs[0].ndim)]
    inside, *others = [row.reshape(line) for row in sums]
    return Affine(channel, reads.reshape(line), tuple(others), inside, one_hot=True)


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


@lru_cache(maxsize=256)
def _places(axes: Sequence[tuple[int, ...]]) -> Floats | None:
    """What counts inside, every tap of a window: a row of 1; and of each other kind of place what it lacks of that, the
    taps that lie outside: -1. None where there are too many kinds.

    Args:
        axes: of each axis of the window, what ``_kinds`` takes.
    """
    kinds = [_kinds(*numbers) for numbers in axes]
    if prod(map(len, kinds)) > _MOST:
        return None
    lines = [[_inside(numbers[0], *pair) for pair in pairs] for numbers, pairs in zip(axes, kinds, strict=True)]
    inside, *others = [reduce(np.multiply.outer, place).reshape(-1) for place in product(*lines)]
    return np.array([inside, *(other - inside for other in others)])  # 0 exactly where no tap is lacking


def _inside(size: int, first: int, last: int) -> Floats:
    """1 from one tap to before another, 0 elsewhere."""
    line = np.zeros(size)
    line[first:last] = 1
    return line


def _kinds(size: int, before: int, after: int, stride: int, dilation: int) -> list[tuple[int, int]]:
    """The taps, from the first to behind the last one, that lie inside; all of them first."""
    over = dict.fromkeys([0, *(max(0, ceil((before - at) / dilation)) for at in range(0, before + 1, stride))])
    pairs = [(first, max(first, size - last)) for first in over for last in range(ceil(after / dilation) + 1)]
    return list(dict.fromkeys((first, last) if first < last else (0, 0) for first, last in pairs))
