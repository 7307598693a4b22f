"""Weights that a call has for its own: a parameter that nothing else reads, or a piece of one.

A projection for queries, keys and values at once is one parameter; where each reads another tensor, the code splits it.
No entry then belongs to two of the pieces, so what is folded into one can be written back where it came from.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from speedup.node import Node, Value

_STEPS = 4  # that parameters are moved in


def is_own(node: Node, k: int) -> bool:
    """Whether operand ``k`` is a weight, or a piece of one, that this call alone reads, and that no call changes."""
    value = node.values[k]
    if value is None or len(value.uses) != 1 or value.next is not None:
        return False
    return value.is_source or is_piece(value)


def is_piece(value: Value) -> bool:
    """Whether a value is a part of a parameter, or put together of several, and every entry is moved to one place."""
    return value in _pieces(value) or (not value.is_source and is_spread(value))


def contents(value: Value, wholes: Mapping[Value, torch.Tensor] | None = None) -> torch.Tensor:
    """The numbers of a parameter or of a piece of one.

    Args:
        wholes: contents of parameters, if others than their own.
    """
    if value.tensor is not None:
        return value.contents()
    at = _places(value)
    given = wholes or {}
    flat = at[0][0].contents().new_empty(sum(len(own) for _, own, _ in at))
    for source, own, there in at:
        whole = given[source] if source in given else source.contents()
        flat[own] = whole.reshape(-1)[there].to(flat)
    return flat.reshape(value.shape)


def sources_of(value: Value) -> list[Value]:
    """The parameters that a piece is of, or a parameter itself."""
    return [value] if value.is_source else [source for source, _, _ in _places(value)]


def put_back(value: Value, new: torch.Tensor, wholes: dict[Value, torch.Tensor]) -> None:
    """Put new numbers of a piece where they stand in its parameters, full-size contents of which are collected."""
    for source, own, there in _places(value):
        whole = wholes.get(source, source.contents()).reshape(-1).clone()
        whole[there] = new.reshape(-1)[own].to(whole)
        wholes[source] = whole.reshape(source.shape)


def _places(value: Value) -> list[tuple[Value, torch.Tensor, torch.Tensor]]:
    """Which entries of a piece (flat) stand where in which parameter."""
    known = _pieces(value)
    if value in known:
        return [(_source_of(value), torch.arange(len(known[value])), known[value])]
    return places_of(value) or []


def _source_of(value: Value) -> Value:
    assert value.producer is not None
    source = value.producer.operands[0]
    assert source is not None
    return source


def is_spread(value: Value) -> bool:
    """Whether every entry of a value stands in a parameter, at one place and read by nothing else.

    So it is with parameters that are put together and taken apart again.
    """
    return places_of(value) is not None


def places_of(value: Value) -> list[tuple[Value, torch.Tensor, torch.Tensor]] | None:
    """The parameters that a value is made of by moving entries: which entries of it (flat), and where they stand there.

    Returns:
        None where something else is computed, or an entry is read elsewhere too.
    """
    if "_places" not in value.__dict__:
        starts: dict[Value, int] = {}
        numbers = _numbered(value, starts) if len(value.uses) == 1 else None
        if numbers is not None and len(torch.unique(numbers)) == numbers.numel():
            flat = numbers.reshape(-1)
            ends = [start + source.contents().numel() for source, start in starts.items()]
            found = [torch.nonzero((flat >= a) & (flat < b))[:, 0] for a, b in zip(starts.values(), ends, strict=True)]
            value.__dict__["_places"] = [
                (source, at, flat[at] - start)
                for (source, start), at in zip(starts.items(), found, strict=True)
                if at.numel()
            ]
        else:
            value.__dict__["_places"] = None
    places: list[tuple[Value, torch.Tensor, torch.Tensor]] | None = value.__dict__["_places"]
    return places


def _is_ours(value: Value) -> bool:
    return value.is_source or (value.kind == "activation" and value.producer is not None)


def _numbered(value: Value, starts: dict[Value, int], depth: int = 0) -> torch.Tensor | None:
    """The value with a number for every entry of the parameters that it is moved from, in a few steps."""
    if value.is_source:
        if not value.is_known or value in starts:
            return None
        starts[value] = sum(s.contents().numel() for s in starts)
        return torch.arange(value.contents().numel()).reshape(value.shape) + starts[value]
    node = value.producer
    if node is None or node.rule is None or not node.rule.moves or getattr(node.rule, "fills", False):
        return None
    if depth >= _STEPS or not node.tensors or not all(map(_is_ours, node.tensors)):
        return None
    if any(len(t.uses) != 1 for t in node.tensors):
        return None
    given = [_numbered(t, starts, depth + 1) for t in node.tensors]
    if any(g is None for g in given):
        return None
    made = node.run([g for g in given if g is not None])
    outputs = [made] if isinstance(made, torch.Tensor) else list(made)
    every = torch.cat([t.reshape(-1) for t in outputs])
    return outputs[node.outputs.index(value)] if len(torch.unique(every)) == len(every) else None


def _pieces(value: Value) -> dict[Value, torch.Tensor]:
    """All pieces of the parameter that a value comes from, with the flat positions of their entries in it."""
    made = value.producer
    if made is None or not _moves_one(made):
        return {}
    source = _source_of(value)
    if not source.is_source or source.next is not None or not all(_moves_one(n) for n, _ in source.uses):
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
