"""Weights that a call has for its own: a parameter that nothing else reads, or a piece of one.

A projection for queries, keys and values at once is one parameter; where each reads another tensor, the code splits it.
No entry then belongs to two of the pieces, so what is folded into one can be written back where it came from.
"""

from __future__ import annotations

import torch

from speedup.graph import Node, Value


def is_own(node: Node, k: int) -> bool:
    """Whether operand ``k`` is a weight, or a piece of one, that this call alone reads."""
    value = node.values[k]
    if value is None or len(value.uses) != 1:
        return False
    return value.is_source or is_piece(value)


def is_piece(value: Value) -> bool:
    """Whether a value is a part of a parameter of which every entry is moved to one place only."""
    return value in _pieces(value)


def contents(value: Value) -> torch.Tensor:
    """The numbers of a parameter or of a piece of one."""
    if value.tensor is not None:
        return value.contents()
    source = source_of(value)
    assert source.tensor is not None
    return source.contents().reshape(-1)[_pieces(value)[value]].reshape(value.shape)


def source_of(value: Value) -> Value:
    """The parameter that a piece is of."""
    assert value.producer is not None
    source = value.producer.operands[0]
    assert source is not None
    return source


def put_back(value: Value, new: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """The parameter with new numbers in a piece."""
    result = whole.reshape(-1).clone()
    result[_pieces(value)[value]] = new.reshape(-1).to(result)
    return result.reshape(whole.shape)


def _pieces(value: Value) -> dict[Value, torch.Tensor]:
    """All pieces of the parameter that a value comes from, with the flat positions of their entries in it."""
    made = value.producer
    if made is None or not _moves_one(made):
        return {}
    source = source_of(value)
    if not source.is_source or not all(_moves_one(n) for n, _ in source.uses):
        return {}
    known: dict[Value, torch.Tensor] | None = source.__dict__.get("_pieces")
    if known is None:
        known = source.__dict__["_pieces"] = _disjoint(source)
    return known


def _moves_one(node: Node) -> bool:
    return (
        node.rule is not None and node.rule.moves and not getattr(node.rule, "fills", False) and len(node.tensors) == 1
    )


def _disjoint(source: Value) -> dict[Value, torch.Tensor]:
    assert source.tensor is not None
    positions = torch.arange(source.tensor.numel()).reshape(source.shape)
    found: dict[Value, torch.Tensor] = {}
    for node in dict.fromkeys(n for n, _ in source.uses):
        made = node.run([positions.clone()])
        outputs = [made] if isinstance(made, torch.Tensor) else list(made)
        found.update(zip(node.outputs, (t.reshape(-1) for t in outputs), strict=True))
    every = torch.cat(list(found.values()))
    return found if len(torch.unique(every)) == len(every) else {}
