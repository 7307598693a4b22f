"""Products by equation. Of two operands the equation is the signature; any other is taken apart into such products.

"bi,ij,jk->bk"   "bi,ij->bj", then "bj,jk->bk"      from the left, as torch does it by itself
"bi,bj->b"       a letter that one operand alone has, and the output has not: summed before
"bii->bi"        a letter twice in one operand: its diagonal
"ij,jk"          without an arrow: the letters that stand once, in their order
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from speedup import Node, Rule, SignatureError, variants

_REST = "\0"  # in the place of "...", so that every axis is one character


class Einsum(Rule):
    """Two operands whose summed letters are in both."""

    name = "einsum"
    functions = variants("einsum")
    # The operands have no names but their numbers.
    annihilates = {"0": ("1",), "1": ("0",)}  # noqa: RUF012

    def signature(self, node: Node) -> str:
        equation = node.args[0]
        if not isinstance(equation, str):
            raise SignatureError("einsum without an equation")
        sides, out = _sides(equation)
        if not _plain(sides, out):
            raise SignatureError(f"einsum {equation!r} is no product of two operands")
        a, b, c = (" ".join(side.replace(_REST, "*")) for side in (*sides, out))
        return f"{a}, {b} -> {c}"

    def in_parts(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Callable[..., Any] | None:
        if not args or not isinstance(args[0], str) or _plain(*_sides(args[0])):
            return None
        return _one_by_one


def _sides(equation: str) -> tuple[list[str], str]:
    """The letters of the operands and of the output."""
    left, arrow, out = equation.replace(" ", "").replace("...", _REST).partition("->")
    if not arrow:
        counts = Counter(left.replace(",", "").replace(_REST, ""))
        out = _REST * (_REST in left) + "".join(sorted(c for c, n in counts.items() if n == 1))
    return left.split(","), out


def _plain(sides: Sequence[str], out: str) -> bool:
    """Whether this is a product of two operands, with no letter twice in one of them and none that is summed alone."""
    if len(sides) != 2 or any(len(set(s)) != len(s) or (_REST in s and _REST not in out) for s in (*sides, out)):
        return False
    return not (set(sides[0]) ^ set(sides[1])) - set(out)


def _one_by_one(equation: str, *operands: Any) -> torch.Tensor:
    if len(operands) == 1 and not isinstance(operands[0], torch.Tensor):
        (operands,) = operands
    sides, out = _sides(equation)
    if _REST not in out and any(_REST in s for s in sides):
        result = _one_by_one(",".join(sides).replace(_REST, "...") + "->..." + out, *operands)
        return result.sum(tuple(range(result.ndim - len(out))))
    terms = list(zip(sides, operands, strict=True))
    for k, (side, tensor) in enumerate(terms):
        others = set(out).union(*(s for j, (s, _) in enumerate(terms) if j != k))
        terms[k] = _summed(*_diagonals(side, tensor), others)
    while len(terms) > 1:
        (one, x), (other, y), *rest = terms
        wanted = set(out).union(*(s for s, _ in rest))
        both = "".join(dict.fromkeys(one + other))
        made = "".join(c for c in both if c in wanted) if rest else out
        made = _REST * (_REST in made) + made.replace(_REST, "")
        terms = [(made, torch.einsum(f"{one},{other}->{made}".replace(_REST, "..."), x, y)), *rest]
    ((side, tensor),) = terms
    return tensor if side == out else _ordered(side, tensor, out)


def _axis(side: str, position: int) -> int:
    """The axis of the letter at a position; counted from the end behind "..."."""
    return position - len(side) if _REST in side[:position] else position


def _diagonals(side: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    while len(set(side)) != len(side):
        letter = next(c for c in side if side.count(c) > 1)
        first = side.index(letter)
        second = side.index(letter, first + 1)
        tensor = torch.diagonal(tensor, 0, _axis(side, first), _axis(side, second))
        side = side.replace(letter, "", 2) + letter
    return side, tensor


def _summed(side: str, tensor: torch.Tensor, wanted: set[str]) -> tuple[str, torch.Tensor]:
    alone = [c for c in side if c not in wanted]
    if not alone:
        return side, tensor
    return "".join(c for c in side if c in wanted), tensor.sum([_axis(side, side.index(c)) for c in alone])


def _ordered(side: str, tensor: torch.Tensor, out: str) -> torch.Tensor:
    rest = tensor.ndim - len(side.replace(_REST, ""))
    axes: list[int] = []
    for letter in out:
        if letter == _REST:
            axes += range(side.index(_REST), side.index(_REST) + rest)
        else:
            axes.append(_axis(side, side.index(letter)) % tensor.ndim)
    return tensor.permute(axes)
