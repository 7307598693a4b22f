"""Spectral normalisation: weight = w / (uᵀ w v), where w counts as a matrix of filters by everything else.

Entries of w that go are missing from the product. u takes that up: u * (uᵀ w v) / (uᵀ (kept w) v) gives the same
weight, without a change of the layer. When it trains on, the power iteration finds the u and v of what is left.

Source: Miyato et al., Spectral Normalization for Generative Adversarial Networks (2018),
https://arxiv.org/abs/1802.05957; ``torch.nn.utils.parametrizations.spectral_norm``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn.utils import parametrizations

from speedup import Labels, Node, NodeKeep, Rule, SignatureError

_OUT = 3
_SMALL = 1e-6  # of what a product adds up: what is left of it says nothing about the whole


class SpectralNorm(Rule):
    """A parameter divided by an estimate of its largest singular value."""

    name = "spectral_norm"
    modules = (parametrizations._SpectralNorm,)
    operands = ("weight", "_u", "_v")
    annihilates = {"weight": ("_u", "_v")}  # noqa: RUF012

    def signature(self, node: Node) -> str:
        w = node.operands[0]
        assert w is not None
        if w.ndim < 2:
            raise SignatureError("a vector is divided by the norm of all of it")
        names = [f"a{i}" for i in range(w.ndim)]
        rest = [n for i, n in enumerate(names) if i != node.arg("dim")]
        all_names = " ".join(names)
        return f"{all_names}, {names[node.arg('dim')]}, ({' '.join(rest)}) -> {all_names}"

    def tie(self, node: Node, labels: Labels) -> None:
        """Each axis of the weight is one by itself, though v counts several together."""
        weight, out = node.operands[0], node.outputs[0]
        assert weight is not None
        for numbers in labels.arrays(weight):
            labels.add(out, numbers)
        labels.computed.add(out)

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        """What is left of the product must say something about the whole, and u must be this call's own."""
        super().constrain(node, keep)
        kept = np.broadcast_to(keep.sets[_OUT], node.outputs[0].shape)
        if kept.any() and not kept.all() and self._ratio(node, keep) is None:
            keep.grow(_OUT, np.ones_like(kept), "the spectral norm of the weight counts it", _OUT)

    def refit(self, node: Node, keep: NodeKeep) -> Mapping[str, torch.Tensor]:
        ratio, u = self._ratio(node, keep), node.operands[1]
        assert u is not None
        return {} if ratio is None or ratio == 1 else {"_u": u.contents() * ratio}

    @staticmethod
    def _ratio(node: Node, keep: NodeKeep) -> float | None:
        """The product of all by that of what is kept, None where that is not to be told or no number to divide by."""
        w, u, v = node.operands
        assert w is not None and u is not None and v is not None
        if not all(o.is_known and len(o.uses) == 1 for o in (w, u, v)):
            return None
        matrix = w.contents().double().movedim(node.arg("dim"), 0).flatten(1)
        summands = u.contents().double()[:, None] * matrix * v.contents().double()
        kept = torch.from_numpy(np.broadcast_to(keep.sets[_OUT], w.shape).copy()).to(matrix.device)
        left = summands * kept.movedim(node.arg("dim"), 0).flatten(1)
        if not bool(left.sum().abs() > _SMALL * summands.abs().sum()):
            return None
        return float(summands.sum() / left.sum())
