"""Products that are other products by another name."""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from speedup import Node, Rule, SignatureError, variants


class OtherProduct(Rule):
    """A function, and what computes the same: its calls are taken apart."""

    def __init__(self, name: str, same: Callable[..., Any], *functions: Callable[..., Any]) -> None:
        super().__init__(name=name, functions=functions)
        self.same = same

    def in_parts(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Callable[..., Any] | None:
        return None if kwargs.get("out") is not None or isinstance(kwargs.get("dims"), torch.Tensor) else self.same

    def signature(self, node: Node) -> str:
        raise SignatureError(f"a form of {self.name} that is not known")


def _tensordot(a: torch.Tensor, b: torch.Tensor, dims: Any = 2, out: None = None) -> torch.Tensor:
    if isinstance(dims, int):
        dims = (range(a.ndim - dims, a.ndim), range(dims))
    here, there = ([dims] if isinstance(dims, int) else list(dims) for dims in dims)
    left, right = string.ascii_letters[: a.ndim], list(string.ascii_letters[a.ndim : a.ndim + b.ndim])
    for one, other in zip(here, there, strict=True):
        right[other] = left[one]
    kept = "".join(c for c in (*left, *right) if (c in left) != (c in right))
    return torch.einsum(f"{left},{''.join(right)}->{kept}", a, b)


def _outer(input: torch.Tensor, vec2: torch.Tensor) -> torch.Tensor:
    return input[:, None] * vec2


def _chain(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return functools.reduce(torch.matmul, tensors)


def _solved(
    A: torch.Tensor, B: torch.Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> torch.Tensor:
    unit = torch.ones(A.shape[-2:], dtype=A.dtype, device=A.device).tril().triu()
    inverse: torch.Tensor = torch.linalg.solve_triangular(A, unit, upper=upper, unitriangular=unitriangular)
    return inverse @ B if left else B @ inverse


class Solve(OtherProduct):
    """The solution of A X = B is a product with the inverse of A, and that of A X = 1 reads all of a matrix."""

    call = "A, B, *, upper, left=True, unitriangular=False"
    operands = ("A", "B")

    def signature(self, node: Node) -> str:
        return "* ~i ~j, * ~j ~k -> * ~i ~k"


RULES = [
    Solve("solve_triangular", _solved, torch.linalg.solve_triangular),
    OtherProduct("tensordot", _tensordot, torch.tensordot),
    OtherProduct("outer", _outer, *variants("outer", "ger")),
    OtherProduct("multi_dot", _chain, torch.linalg.multi_dot),
]
