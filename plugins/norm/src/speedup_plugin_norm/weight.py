"""Weight normalisation: weight = v * g / norm(v), with the norm over all axes of v but one.

Entries of v that go are missing from the norm. g takes that up: g * norm(kept v) / norm(v) gives the same weight,
without a change of the layer, which trains on as it was.

Source: Salimans and Kingma, Weight Normalization (2016), https://arxiv.org/abs/1602.07868;
``torch.nn.utils.parametrizations.weight_norm`` and ``torch.nn.utils.weight_norm`` call ``torch._weight_norm``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from speedup import Bools, Labels, Node, NodeKeep, Rule

_OUT = 2


class WeightNorm(Rule):
    """A parameter made of a direction and a length."""

    name = "weight_norm"
    functions = (torch._weight_norm,)
    call = "v, g, dim=0"
    operands = ("v", "g")
    annihilates = {"g": ("v",), "v": ("g",)}  # noqa: RUF012

    def signature(self, node: Node) -> str:
        v, g = node.operands
        assert v is not None and g is not None
        names = [f"a{i}" for i in range(v.ndim)]
        length = [n if size > 1 else "1" for n, size in zip(names, g.shape, strict=False)]
        return f"{' '.join(names)}, {' '.join(length)} -> {' '.join(names)}"

    def tie(self, node: Node, labels: Labels) -> None:
        """What g has a length for is masked there: v without entries has no norm to be divided by."""
        v, g = node.operands
        assert v is not None and g is not None
        for axis, size in enumerate(v.shape):
            if size > 1:
                numbers = labels.fresh([size if a == axis else 1 for a in range(v.ndim)])
                labels.add(node.outputs[0], numbers)
                labels.add(v if axis in self._over(node) else g, numbers)
        labels.computed.add(node.outputs[0])

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        """No norm may become 0, and a length that is not this call's own stays the norm of the same entries."""
        super().constrain(node, keep)
        kept = self._kept(keep.sets[_OUT], node)
        v = keep.facts.value(0)
        axes = self._over(node)
        if self._own(node):
            lost = ((v * kept) == 0).all(axis=axes, keepdims=True) & kept.any(axis=axes, keepdims=True) & (v != 0)
        else:
            lost = kept.any(axis=axes, keepdims=True) & (v != 0)
        missing = lost & ~kept
        if missing.any():
            keep.grow(_OUT, missing, "the norm of the weight counts it", _OUT)

    def refit(self, node: Node, keep: NodeKeep) -> Mapping[str, torch.Tensor]:
        v, g = node.operands
        assert v is not None and g is not None
        kept = self._kept(keep.sets[_OUT], node)
        if kept.all() or not self._own(node) or v.tensor is None or g.tensor is None:
            return {}
        axes = self._over(node)
        whole = v.contents()
        left = whole * torch.from_numpy(kept).to(whole.device)
        norms = [torch.linalg.vector_norm(t, dim=axes, keepdim=True) for t in (left, whole)]
        ratio = torch.where(norms[0] > 0, norms[0] / norms[1], torch.ones_like(norms[0]))
        return {"g": g.contents() * ratio.reshape(g.shape)}

    @staticmethod
    def _kept(mask: Bools, node: Node) -> Bools:
        return np.broadcast_to(mask, node.outputs[0].shape).copy()

    @staticmethod
    def _own(node: Node) -> bool:
        return all(v is not None and v.is_of_one_call for v in node.operands)

    @staticmethod
    def _over(node: Node) -> tuple[int, ...]:
        """The axes of the norm."""
        v, g = node.operands
        assert v is not None and g is not None
        return tuple(a for a in range(v.ndim) if a >= g.ndim or g.shape[a] == 1)
