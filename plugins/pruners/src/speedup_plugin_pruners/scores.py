"""The arithmetic of criteria, on tensors alone."""

from __future__ import annotations

import torch
from torch import Tensor


def norms(weight: Tensor, order: float = 1) -> Tensor:
    """The L1 or L2 norm of every filter: ``(filters, ...)`` to ``(filters,)``."""
    found: Tensor = torch.linalg.vector_norm(weight.flatten(1), order, dim=1)
    return found


def distance_sums(weight: Tensor) -> Tensor:
    """For every filter the sum of its L2 distances to all filters of the layer: ``(filters, ...)`` to ``(filters,)``.

    It is smallest for those nearest to the geometric median, which the others replace best.
    """
    points = weight.flatten(1).double()
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def zero_shares(activation: Tensor) -> Tensor:
    """The share of zeros in every channel: ``(channels, entries)`` to ``(channels,)``."""
    return (activation == 0).double().mean(1)
