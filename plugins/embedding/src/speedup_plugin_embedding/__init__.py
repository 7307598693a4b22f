"""speedup rules for embeddings: rows of a table, chosen by indices that are data.

Rows stay, since any index may come in. Columns go: one that is the same in all rows is a constant, one that nobody
reads is unused.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speedup import Constant, Fact, Node, NodeFacts, Rule, SignatureError, hookimpl


class Embedding(Rule):
    """out[..., d] = weight[input[...], d]."""

    operands: tuple[str, ...] = ("weight", "input")
    axes = "~v d, * -> * d"
    sizes = {"embedding_dim": "d"}  # noqa: RUF012
    indices: tuple[str, ...] = ("input",)
    writes_weights = "max_norm"

    def check(self, node: Node) -> None:
        if node.arg("max_norm") is not None:
            raise SignatureError("max_norm: rows are scaled, in place, by a norm over all columns")
        super().check(node)


class EmbeddingBag(Embedding):
    """out[b, d] = sum, mean or maximum over the bag b of weight[i, d] for its indices i.

    Zeros stay zeros. Other constants pass where no bag can be empty, which would give 0, and nothing is summed up.
    """

    operands = ("weight", "input", "offsets", "per_sample_weights")
    axes = "~v d, ~, ~?, ~? -> b d"
    indices = ("input", "offsets", "per_sample_weights")

    def check(self, node: Node) -> None:
        weight = node.operand("weight")
        if weight is None or not weight.dtype.is_floating_point:
            raise SignatureError("the table and the indices are given in the old order")
        super().check(node)

    def passes(self, node: Node) -> bool:
        """Whether a column that is the same in all rows comes out as it is."""
        indices = node.operand("input")
        filled = indices is not None and indices.ndim == 2 and node.arg("padding_idx") is None
        return filled and node.arg("mode") in ("mean", "max")

    def averaging(self, node: Node) -> bool:
        return self.passes(node) and node.arg("mode") == "mean"

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return self._passing(node, super().infer_from_weight(node, facts))

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return self._passing(node, super().infer_from_input(node, facts))

    def _passing(self, node: Node, found: dict[str, Fact]) -> dict[str, Fact]:
        fact = found.get("output")
        if isinstance(fact, Constant) and not self.passes(node):
            found["output"] = Constant(np.logical_and(fact.mask, fact.value == 0), fact.value)
        return found


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    return [
        Embedding(
            name="embedding",
            modules=(nn.Embedding,),
            functions=(F.embedding,),
            call="input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, "
            "sparse=False",
        ),
        Embedding(
            name="torch.embedding",
            functions=(torch.embedding,),
            call="weight, input, padding_idx=-1, scale_grad_by_freq=False, sparse=False",
        ),
        EmbeddingBag(
            name="embedding_bag",
            modules=(nn.EmbeddingBag,),
            functions=(F.embedding_bag,),
            call="input, weight, offsets=None, max_norm=None, norm_type=2, scale_grad_by_freq=False, mode='mean', "
            "sparse=False, per_sample_weights=None, include_last_offset=False, padding_idx=None",
        ),
    ]
