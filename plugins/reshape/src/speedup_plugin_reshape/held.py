"""Channels in an order that a buffer of the model holds, ``x[:, perm]``: the smaller buffer holds the places at which
the same channels stand then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from speedup import (
    Affine,
    Bools,
    Constant,
    Fact,
    Floats,
    Labels,
    Node,
    NodeFacts,
    NodeKeep,
    Rule,
    SignatureError,
    Unused,
    along,
)
from speedup_plugin_reshape.lookup import ByIndex, LookupAlong, indexed


class ByHeld(Rule):
    """Entries along one axis at the places that a buffer holds."""

    def place(self, node: Node) -> int:
        """The axis that is indexed."""
        source = node.operands[0]
        assert source is not None
        if isinstance(node.args[1], int):  # index_select
            return node.args[1] % source.ndim
        return indexed(node, source)[2]

    def signature(self, node: Node) -> str:
        source, index = node.operands
        if source is None or index is None:
            raise SignatureError("a tensor and an index are wanted")
        axes = [f"a{n}" for n in range(source.ndim)]
        at = self.place(node)
        before, after = " ".join(axes[:at]), " ".join(axes[at + 1 :])
        return f"{before} i {after}, j -> {before} j {after}"

    def index(self, node: Node) -> np.ndarray[Any, Any]:
        """The places, counted from the start."""
        source, index = node.operands
        assert source is not None and index is not None
        found: np.ndarray[Any, Any] = index.contents().cpu().numpy() % source.shape[self.place(node)]
        return found

    def moved(self, node: Node, array: Bools | Floats) -> Bools | Floats:
        """An array about the tensor, as it is about the output."""
        at = self.place(node)
        return array if array.shape[at] == 1 else np.take(array, self.index(node), at)

    def taken(self, node: Node, array: Bools) -> Bools:
        """Which entries of the tensor go to the true entries of an array about the output."""
        source, at = node.operands[0], self.place(node)
        assert source is not None
        wide = np.broadcast_to(array, [len(self.index(node)) if a == at else s for a, s in enumerate(array.shape)])
        found = np.zeros([source.shape[at] if a == at else s for a, s in enumerate(array.shape)], dtype=bool)
        np.logical_or.at(np.moveaxis(found, at, 0), self.index(node), np.moveaxis(wide, at, 0))
        return found

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        known = facts.affine(0)
        if known is not None:
            mask, offset, *terms = (self.moved(node, a) for a in (known.mask, *known.numbers))
            return {"output": Affine(known.axis, mask, tuple(terms), offset, one_hot=known.one_hot)}
        mask, value = (self.moved(node, a) for a in np.broadcast_arrays(facts.mask(0), facts.value(0)))
        return {"output": Constant(mask, value)} if mask.any() else {}

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        unused = ~self.taken(node, ~facts.unused(len(node.operands)))
        return {node.operand_names[0]: Unused(unused)} if unused.any() else {}

    def folds(self, node: Node) -> bool:
        return False

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        index, at = node.operands[1], self.place(node)
        assert index is not None
        grown = True
        while grown:
            super().constrain(node, keep)
            grown = False
            for k, wanted in ((0, self.taken(node, keep.sets[2])), (2, keep.sets[2])):
                # One buffer serves all positions, and all calls.
                line = along(wanted, at) if len(index.uses) == 1 else np.ones(wanted.shape[at], dtype=bool)
                wanted = wanted | line.reshape([-1 if a == at else 1 for a in range(wanted.ndim)])
                grown |= keep.grow(k, wanted, "moved to a tensor that keeps it", 2 - k)

    def arrange(
        self, node: Node, keep: Sequence[Bools], orders: Sequence[Any], call: Node | None = None
    ) -> Sequence[Any] | None:
        return None if any(orders) else orders

    def refit(self, node: Node, keep: NodeKeep) -> Mapping[str, torch.Tensor]:
        source, index = node.operands
        assert source is not None and index is not None and index.tensor is not None
        line = np.broadcast_to(along(keep.sets[0], self.place(node)), source.shape[self.place(node)])
        if line.all():
            return {}
        places = np.maximum(np.cumsum(line) - 1, 0)[self.index(node)]
        return {node.operand_names[1]: torch.from_numpy(places).to(index.tensor)}

    def tie(self, node: Node, labels: Labels) -> None:
        source, index = node.operands
        assert source is not None and index is not None
        if len(index.uses) > 1:
            labels.freeze(source)
        for numbers in labels.arrays(source):
            labels.add(node.outputs[0], self.moved(node, numbers))


def is_held(node: Node) -> bool:
    """Whether one line of a computed tensor's axis is chosen by a buffer."""
    if len(node.tensors) != 2 or len(node.args) < 2 or node.kwargs:
        return False
    source, index = node.tensors
    plain = index.kind == "buffer" and index.ndim == 1 and index.dtype in (torch.int64, torch.int32) and index.is_known
    return source.kind == "activation" and plain and bool(index.shape[0])


class IndexSelect(ByIndex):
    """index_select: one index along the axis."""

    call = "input, dim, index"
    of_data = LookupAlong

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.by_buffer = ByHeld(name=f"{self.name} by a buffer")

    def claim(self, node: Node) -> None:
        if is_held(node):
            self.by_buffer.claim(node)
        if node.rule is None:
            super().claim(node)
