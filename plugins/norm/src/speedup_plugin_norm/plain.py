"""Compensated layer norms as plain ones, which the layers around them make right.

Of N channels R were constants, all of them c, of which one is left, beside the n others (n + R = N). Let that one be
k = a · S - C / (N s) instead, with the sum S of the others, C = R · c, and

    s = - sqrt(R / (N (n + 1)))        a = (1 + (n + 1) s) / n

Then, with mean m' and variance v' over these n + 1, and mean m and variance v over all N,

    x - m = (x - m') + a · (k - m')        c - m = - (k - m') / (N s)        v = (n + 1) / N · v' + D / N

where D are the squared deviations of the constants. So a plain norm gives for the channel of the constant what it gave
before, if its weight is -1 / (N s) times what it was, and for the others what they were but for a multiple of that.
(With m' = (S + k) / (n + 1) all of it are multiples of S and C, which are the same on both sides; those of S², SC and
C² are, because s² (n + 1) = R / N.)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from speedup import Floats, Node, NodeFacts, Plain
from speedup_plugin_norm.compensated import LayerNormForward, uncompensated
from speedup_plugin_norm.counting import Counting

_MOST = 4  # channels that are offered: mostly one is a constant
_NEAR = 1e-12  # relative
_LEAST = 0.03  # of the largest weight, for that of the carrier, by which the others are divided


def plain(rule: Counting, node: Node, facts: NodeFacts, eps: float) -> list[Plain]:
    """What a layer norm over one axis can be that counts constants which are all alike, one of them kept.

    Args:
        eps: that of the original.
    """
    module, size = node.module, node.layout.sizes["c"]
    if not isinstance(module, nn.LayerNorm) or size < 2:
        return []
    if rule.tail(node) or rule.added(node) or rule.spread(node) != "var" or rule.carriers(node).any():
        return []
    if module.weight is None or rule.total(node) is not None:
        return []
    gone, mean, spread = (float(a.max()) for a in rule.before(node))
    known, value = (np.broadcast_to(a.reshape(-1), size) for a in rule.constants(node, facts))
    weight, bias = (_line(p, size) for p in (module.weight, module.bias))
    alike = known & (abs(value - mean) <= _NEAR * abs(mean)) & (abs(weight) > _LEAST * abs(weight).max())
    others, removed = size - 1, gone + 1
    total = others + removed
    share, slope = size / total, -math.sqrt(removed / (total * size))
    much = (1 + size * slope) / others
    eps = (eps + spread / total) / share
    found = []
    for carrier in np.flatnonzero(alike)[:_MOST].tolist():
        rest = np.arange(size) != carrier
        scale = np.where(rest, weight, -weight / (total * slope)) / share**0.5
        onto = np.where(rest, much * scale / scale[carrier], 0.0)
        sums = np.where(rest, much, -removed / (total * slope))
        made = _made(module, eps, scale, bias - onto * bias[carrier])
        found.append(Plain(made, rule.channel(node) % node.outputs[0].ndim, carrier, sums, onto))
    return found


def _line(tensor: torch.Tensor | None, size: int) -> Floats:
    return np.zeros(size) if tensor is None else tensor.detach().to("cpu", torch.float64).numpy().reshape(-1)


def _made(module: nn.LayerNorm, eps: float, weight: Floats, bias: Floats) -> nn.LayerNorm:
    """The module as one of the user's class."""
    made: nn.LayerNorm = uncompensated(module, LayerNormForward)
    made.eps = eps
    for name, line in (("weight", weight), ("bias", bias)):
        old = getattr(module, name)
        if old is not None:
            new = torch.from_numpy(line.copy()).to(old).reshape(old.shape)
            made.register_parameter(name, nn.Parameter(new, requires_grad=old.requires_grad))
    return made
