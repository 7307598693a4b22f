"""The cosine between vectors, seen as the products and norms that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from speedup import Node, Rule, SignatureError


class Cosine(Rule):
    """cosine_similarity."""

    def in_parts(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Callable[..., Any] | None:
        return similarity

    def signature(self, node: Node) -> str:
        raise SignatureError("a form of cosine_similarity that is not known")


def similarity(x1: torch.Tensor, x2: torch.Tensor, dim: int = 1, eps: float = 1e-8) -> torch.Tensor:
    """``F.cosine_similarity``."""
    one, other = (torch.linalg.vector_norm(x, 2, dim, True).clamp_min(eps) for x in (x1, x2))
    return torch.sum(x1 / one * (x2 / other), dim)
