"""The facts at a call in named space: arrays with one axis per name of its signature (see ``speedup.layout``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from speedup.arrays import ZERO, Bools, Floats, any_of, everything, nothing, zeros
from speedup.cached import cached_property
from speedup.layout import Layout
from speedup.node import Node

if TYPE_CHECKING:
    from speedup.known import NodeFacts


class _Lasting:
    """What stays the same at a node while more and more is known of it; kept with its facts.

    Attributes:
        weights: the operands of which every entry is constant.
        live: the others that are there.
        zeros: where the weights are 0 all along the mixed axes, of those that were asked for.
    """

    def __init__(self, layout: Layout, facts: NodeFacts) -> None:
        self.layout = layout
        self.weights = [k for k in layout.inputs if facts.is_weight(k)]
        self.live = [k for k in layout.inputs if k not in self.weights] if self.weights else layout.inputs
        self.zeros: dict[int, Bools] = {}


def _lasting(layout: Layout, facts: NodeFacts) -> _Lasting:
    kept: dict[str, Any] = facts.__dict__
    found: _Lasting | None = kept.get("_lasting")
    if found is None or found.layout is not layout:
        found = kept["_lasting"] = _Lasting(layout, facts)
    return found


class Named:
    """The facts at a node in named space; mixed axes are reduced: a fact must hold, and be the same, all along them.

    Attributes:
        inputs: the operands that are there.
        weights: those of which every entry is constant.
        live: the others.
        nowhere: the empty set.
        weights_only: whether nothing is asked of the others.
    """

    def __init__(self, node: Node, facts: NodeFacts, weights_only: bool = False) -> None:
        self.node = node
        self.facts = facts
        self.layout: Layout = node.layout
        self.inputs = self.layout.inputs
        lasting = _lasting(self.layout, facts)
        self.weights: Sequence[int] = lasting.weights
        self.live: Sequence[int] = lasting.live
        self.weights_only = weights_only
        self.nowhere = nothing(len(self.layout.names))
        self._masks: dict[int, Bools] = {}
        self._zeros: dict[int, Bools] = {}
        self._weights_zeros = lasting.zeros

    def own_mask(self, k: int) -> Bools:
        """What is constant along the axes of the operand itself."""
        return self.facts.mask(k) if not self.weights_only or k in self.weights else nothing(self.layout.ndim(k))

    def mask(self, k: int) -> Bools:
        """Constant along all mixed axes with one value."""
        mask = self._masks.get(k)
        if mask is None:
            mask = self._masks[k] = self._mask(k)
        return mask

    def _mask(self, k: int) -> Bools:
        if k in self.weights:
            return everything(len(self.layout.names))
        mask = self.facts.mask(k) if not self.weights_only else self.nowhere
        if mask is nothing(mask.ndim):
            return self.nowhere
        layout = self.layout
        named: Bools = layout.to_named(k, mask)
        if not layout.mixed:
            return named
        value = self.facts.value(k)
        if layout.is_even(k, mask.shape) and layout.is_even(k, value.shape):
            return named
        axes = layout.mixed_axes
        same = np.where(named, layout.to_named(k, value), 0)
        same = np.equal(same.max(axis=axes, keepdims=True), same.min(axis=axes, keepdims=True))
        result: Bools = np.logical_and(layout.project_all(k, named), same)
        return result

    def value(self, k: int) -> Floats:
        """Values where ``mask``, 0 elsewhere (weights: all of them, mixed axes included)."""
        value = self.facts.value(k)
        named: Floats = self.layout.to_named(k, value)
        if k in self.weights:
            return named
        if not self.layout.is_even(k, value.shape):
            named = named[tuple([slice(0, 1) if n in self.layout.mixed else slice(None) for n in self.layout.names])]
        return np.where(self.mask(k), named, ZERO)

    def own_value(self, k: int) -> Floats:
        """The same along the axes of the operand itself."""
        value = self.facts.value(k)
        if k in self.weights:
            return value
        mask = self.facts.mask(k)
        layout = self.layout
        if not layout.mixed or (layout.is_even(k, value.shape) and layout.is_even(k, mask.shape)):
            return np.where(mask, value, ZERO)
        return self.layout.from_named(k, self.value(k))

    def same(self, k: int) -> tuple[Bools, Floats]:
        """Where operand ``k`` is constant and the same all along its mixed axes, and its value there.

        Of a parameter only what masks made so, for the rest may be trained further; or what has one entry there.
        """
        value = self.node.values[k]
        if value is None or value.tensor is None or not self.facts.is_weight(k):
            return self.mask(k), self.value(k)
        dims = [a for a, dim in enumerate(self.layout.operands[k] or ()) if self.layout.mixed.intersection(dim)]
        made = any_of(self.facts.zero(k), tuple(dims)) | all(value.shape[a] == 1 for a in dims)
        if not dims or not made.any() or not value.tensor.numel() or value.tensor.is_complex():
            return self.nowhere, np.zeros(self.nowhere.shape)
        tensor = value.contents()
        low, high = (f(tensor, dims, keepdim=True) for f in (torch.amin, torch.amax))
        mask = made & (low == high).cpu().numpy()
        return self.layout.to_named(k, mask), self.layout.to_named(k, low.to("cpu", torch.float64).numpy())

    def zero(self, k: int) -> Bools:
        """Zero all along the mixed axes."""
        known = self._weights_zeros if k in self.weights else self._zeros
        zero = known.get(k)
        if zero is None:
            zero = self.facts.zero(k) if not self.weights_only or k in self.weights else self.nowhere
            if zero is nothing(zero.ndim):
                zero = self.nowhere
            else:
                zero = self.layout.project_all(k, self.layout.to_named(k, zero))
            known[k] = zero
        return zero

    @property
    def no_value(self) -> Floats:
        """Zeros all along."""
        return zeros(self.nowhere.ndim)

    @cached_property
    def unused(self) -> Bools:
        """Entries of the output(s) that nobody reads, per shared name; none where only weights are asked about."""
        layout = self.layout
        if self.weights_only:
            return self.nowhere
        unused = [self.facts.unused(k) for k in range(layout.n_inputs, len(layout.operands))]
        if any([mask is nothing(mask.ndim) for mask in unused]):
            return self.nowhere
        first, *more = [
            layout.project_all(k, layout.to_named(k, mask)) for k, mask in enumerate(unused, layout.n_inputs)
        ]
        for other in more:
            first = first & other
        return first
