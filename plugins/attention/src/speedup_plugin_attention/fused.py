"""The rule of the fused function: softmax(scale · query @ key^T + mask) @ value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from speedup import (
    Affine,
    Bools,
    Constant,
    Fact,
    Floats,
    Node,
    NodeFacts,
    NodeKeep,
    Rule,
    SignatureError,
    kept_shape,
    unused_operands,
    variants,
)

Q, K, V, MASK, OUT = range(5)


class ScaledDotProductAttention(Rule):
    """out[l, d] = sum over s of p[l, s] · v[s, d], with p = softmax over s of scale · sum over e of q[l, e] · k[s, e].

    * ``d`` passes through: the weights of one row sum to 1, so a value that is constant over s comes out as it is.
    * ``e`` is summed over. Where k is constant over s it adds the same to all of a row, and the softmax does not see
      it: such an index can go, like one where q or k is 0.
    * A head goes when all that it gives is constant or unread.

    The default scale is made of the size of e: a call that has fewer gets the original's as an argument.
    """

    name = "scaled_dot_product_attention"
    functions = variants("scaled_dot_product_attention")
    call = "query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False"
    operands = ("query", "key", "value", "attn_mask")

    def signature(self, node: Node) -> str:
        mask = node.operands[MASK]
        # Grouped queries: r heads of the query for each of key and value.
        many, one = (["(h r)"], ["h"]) if node.arg("enable_gqa") else ([], [])
        rank = 0 if mask is None else mask.ndim
        if rank == 1:
            raise SignatureError("a mask with one axis")
        query, key = (" ".join(["*", *heads]) for heads in (many, one))
        mask_heads = "" if rank == 2 else f"{query} "
        return f"{query} ~1 e, {key} ~1 e, {key} ~1 d, {mask_heads}~1 ~1? -> {query} ~1 d"

    def check(self, node: Node) -> None:
        if node.arg("dropout_p"):
            raise SignatureError("dropout of attention weights, in eval mode too")
        super().check(node)

    # -- inference ------------------------------------------------------------------------------------------------

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """The output has the facts of the value that are the same at all positions."""
        layout = node.layout
        mask, terms, offset = _values(facts)
        if not _rows_are_open(node, facts):
            # A row that may attend to nothing gives 0: the constant times an unknown that is 1 or 0.
            terms, offset = (*terms, offset), np.zeros((1,) * offset.ndim)
        if not mask.any():
            return {}
        mask, offset, *factors = (layout.from_named(OUT, layout.to_named(V, a)) for a in (mask, offset, *terms))
        name = "output" if len(node.outputs) == 1 else "output0"
        if not factors:
            return {name: Constant(*np.broadcast_arrays(mask, offset))}
        return {name: Affine(mask.ndim - 1, mask, tuple(factors), offset)}

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        unread = _unread(node, facts)
        idle, key_flat, query_zero = self.idle(node, facts), _flat_key(node, facts), _zero(node, facts, Q)
        closed = not _rows_are_open(node, facts)
        masks = {Q: idle | key_flat, K: idle | query_zero, V: unread, MASK: self.idle(node, facts, zeros=closed)}
        return unused_operands(node, masks)

    def idle(self, node: Node, facts: NodeFacts, zeros: bool = False) -> Bools:
        """Heads whose weights make no difference: every value is constant (or 0), or what comes of it unread."""
        mask, terms, offset = _values(facts)
        for term in (*terms, offset) if zeros else terms:
            mask = mask & (term == 0)
        steady = node.layout.to_named(V, mask) | _unread(node, facts)
        idle: Bools = np.logical_and.reduce(steady, node.layout.axes({"d"}), keepdims=True)
        return idle

    # -- keep sets ------------------------------------------------------------------------------------------------

    def folds(self, node: Node) -> bool:
        return False

    def derived(self, node: Node) -> set[int]:
        return set()

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        super().constrain(node, keep)
        counts = ~(self.idle(node, keep.facts) | _flat_key(node, keep.facts) | _zero(node, keep.facts, Q))
        for k in (Q, K):
            products = node.layout.from_named(k, node.layout.project_any(k, counts))
            keep.grow(k, products, "its products with the other factor are counted", 1 - k)

    # -- the smaller call -----------------------------------------------------------------------------------------

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        query = node.values[Q]
        assert query is not None
        same = kept_shape(keep[Q], query.shape)[-1] == query.shape[-1]
        return {} if same or node.arg("scale") is not None else {"scale": _scale(node)}

    def fits(self, node: Node, keep: Sequence[Bools], call: Node | None = None) -> bool:
        return call is None or math.isclose(_scale(node), _scale(call), rel_tol=1e-5)

    def multiply_accumulates(self, node: Node, shapes: Sequence[tuple[int, ...] | None]) -> int:
        query, key, out = (shapes[k] or () for k in (Q, K, OUT))
        return prod(out[:-1]) * key[-2] * (query[-1] + out[-1])


def _scale(node: Node) -> float:
    scale, query = node.arg("scale"), node.values[Q]
    assert query is not None
    return float(query.shape[-1] ** -0.5 if scale is None else scale)


def _flat(mask: Bools, *numbers: Floats) -> Bools:
    """Where a fact holds at all positions, with the same numbers (those axes get size 1)."""
    flat: Bools = np.logical_and.reduce(mask, axis=-2, keepdims=True)
    for array in numbers:
        array = np.where(mask, array, 0.0)
        flat = flat & (array.max(-2, keepdims=True) == array.min(-2, keepdims=True))
    return flat


def _known(facts: NodeFacts, k: int) -> tuple[Bools, Floats]:
    """Constants; of what is made of parameters alone only zeros, since no mask asked for its end."""
    if facts.from_input(k):
        return facts.mask(k), facts.value(k)
    zero = facts.zero(k)
    return zero, np.zeros((1,) * zero.ndim)


def _values(facts: NodeFacts) -> tuple[Bools, tuple[Floats, ...], Floats]:
    """What is known of the value at all positions alike: where, with which factors of unknowns, with which constant."""
    mask, offset = _known(facts, V)
    terms: tuple[Floats, ...] = ()
    known = facts.affine(V)
    if known is not None and facts.from_input(V) and known.axis == mask.ndim - 1:
        mask, offset, terms = known.mask, known.offset, known.terms
    flat = _flat(mask, offset, *terms)
    first = (..., slice(0, 1), slice(None))
    numbers = [np.where(flat, np.where(mask, a, 0.0)[first], 0.0) for a in (offset, *terms)]
    return flat, tuple(numbers[1:]), numbers[0]


def _rows_are_open(node: Node, facts: NodeFacts) -> bool:
    """Whether every row is known to attend to some position."""
    if not facts.present(MASK):
        return True
    value = node.operands[MASK]
    assert value is not None
    numbers = facts.value(MASK)
    here = numbers != 0 if not value.dtype.is_floating_point else np.isfinite(numbers)
    return bool((facts.mask(MASK) & here).any(-1).all())


def _unread(node: Node, facts: NodeFacts) -> Bools:
    """Outputs that nobody reads, whatever the position; in named space, as all that follows."""
    return node.layout.project_all(OUT, node.layout.to_named(OUT, facts.unused(OUT)))


def _flat_key(node: Node, facts: NodeFacts) -> Bools:
    return node.layout.to_named(K, _flat(*_known(facts, K)))


def _zero(node: Node, facts: NodeFacts, k: int) -> Bools:
    return node.layout.to_named(k, _flat(facts.zero(k)))
