"""speedup rules for embeddings: rows of a table, chosen by indices that are data.

Rows stay, since any index may come in. Columns go: one that is the same in all rows is a constant, one that nobody
reads is unused.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from speedup import Node, Rule, SignatureError, hookimpl


class Embedding(Rule):
    """out[..., d] = weight[input[...], d]."""

    operands = ("weight", "input")
    axes = "~v d, * -> * d"
    sizes = {"embedding_dim": "d"}  # noqa: RUF012
    indices = ("input",)

    def check(self, node: Node) -> None:
        if node.arg("max_norm") is not None:
            raise SignatureError("max_norm: rows are scaled, in place, by a norm over all columns")
        super().check(node)


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
    ]
