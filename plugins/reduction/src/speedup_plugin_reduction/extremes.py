"""The largest or smallest of several entries, as in the spatial attention of CBAM (a maximum over channels).

max(x1, ..., xn, c1, ..., cm) = max(x1, ..., xn, max(c)): of constants the largest one is enough. It stays, and carries
the others.

Source: Woo et al., CBAM: Convolutional Block Attention Module (2018), https://arxiv.org/abs/1807.06521.
"""

from __future__ import annotations

import numpy as np

from speedup import Bools, Constant, Fact, Labels, Node, NodeFacts, NodeKeep, Rule


class ExtremeOver(Rule):
    """Of a reduction to one of its entries: what is constant, and which constants must stay.

    Attributes:
        largest: whether it is the largest entry, and not the smallest.
    """

    largest = True
    counts = True

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """Where all entries that are read together are constant, so is the extreme one, but not where it stands."""
        axes = self.reduced(node)
        if facts.is_weight(0) or not facts.mask(0).any():
            return {}
        mask, value = np.broadcast_arrays(facts.mask(0), facts.value(0))
        whole: Bools = np.all(mask, axis=axes, keepdims=True)
        extreme = (value.max if self.largest else value.min)(axis=axes, keepdims=True)
        if node.outputs[0].ndim < value.ndim:
            whole, extreme = whole.squeeze(axes), extreme.squeeze(axes)
        return {node.output_names[0]: Constant(whole, np.where(whole, extreme, 0.0))} if whole.any() else {}

    def folds(self, node: Node) -> bool:
        return False

    def tie(self, node: Node, labels: Labels) -> None:
        super().tie(node, labels)
        value = node.operands[0]
        if value is not None and _places_are_read(node):
            labels.freeze(value)

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        """Of the constants that go, the extreme one stays, unless one that is as extreme stays anyhow."""
        super().constrain(node, keep)
        value = node.operands[0]
        if value is None:
            return
        if _places_are_read(node):
            keep.grow(0, np.ones_like(keep.sets[0]), "where the extreme entry stands is read", 0)
            return
        while (missing := self._missing(node, keep)) is not None:
            mask, why = missing
            if not keep.grow(0, mask, why, 0):
                break

    def _missing(self, node: Node, keep: NodeKeep) -> tuple[Bools, str] | None:
        """What must stay too, and why; None where the result is that of all entries."""
        axes = self.reduced(node)
        facts = keep.facts
        # Of a parameter only what is masked, for the rest may be trained further.
        constants = (facts.zero(0), np.zeros((1,) * keep.sets[0].ndim)) if facts.is_weight(0) else None
        kept, known, number = np.broadcast_arrays(keep.sets[0], *(constants or (facts.mask(0), facts.value(0))))
        gone = ~kept & kept.any(axis=axes, keepdims=True)
        if (gone & ~known).any():
            return self._lines(keep, gone & ~known), "it is read and not constant"
        number = number if self.largest else -number
        went, left = (np.where(these, number, -np.inf) for these in (gone, kept & known))
        most = went.max(axis=axes, keepdims=True)
        wanted = (went == most) & (most > left.max(axis=axes, keepdims=True))
        if not wanted.any():
            return None
        # The entry that stands for the others at most places.
        counts = wanted.sum(axis=tuple(a for a in range(wanted.ndim) if a not in axes), keepdims=True)
        first = np.arange(counts.size).reshape(counts.shape) == counts.argmax()
        return self._lines(keep, wanted & first), "carries what was removed"

    @staticmethod
    def _lines(keep: NodeKeep, mask: Bools) -> Bools:
        """Of size 1 along the axes along which the keep set is."""
        lines: Bools = np.any(mask, axis=tuple(a for a, s in enumerate(keep.sets[0].shape) if s == 1), keepdims=True)
        return lines

    def reduced(self, node: Node) -> tuple[int, ...]:
        """The axes whose entries are read together."""
        dims = node.layout.operands[0] or ()
        return tuple(a for a, dim in enumerate(dims) if dim and node.layout.contracted.issuperset(dim))


def _places_are_read(node: Node) -> bool:
    """Whether a second output, which says where the entry was found, is used."""
    return any(v.uses or v.is_output for v in node.outputs[1:])
