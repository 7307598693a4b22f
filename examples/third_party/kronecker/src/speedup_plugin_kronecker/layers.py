"""A linear layer whose weight is the Kronecker product of two small matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class KroneckerLinear(nn.Module):
    """y = x kron(left, right)^T + bias, with left (p, a) and right (q, b): p·a + q·b weights in place of p·q·a·b."""

    def __init__(self, p: int, a: int, q: int, b: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = a * b, p * q
        self.left = nn.Parameter(torch.randn(p, a) / a**0.5)
        self.right = nn.Parameter(torch.randn(q, b) / b**0.5)
        self.bias = nn.Parameter(torch.zeros(p * q)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, torch.kron(self.left, self.right), self.bias)
