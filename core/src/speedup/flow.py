"""The flow of both facts through an op, derived from its axes signature.

Three kinds of op, of which a rule says the last (``Rule.indices``), and the signature tells the others apart:

* *pointwise*: every shared axis of the inputs is in the output. An output entry is constant where all operands are, or
  where one that is 0 makes the others irrelevant (``annihilates``); its value is found by running the call.
* *contraction*: out[o] = sum over i of x[i] · w[o, i] + bias[o]. A term is constant where a factor is 0 or all are
  constant; an output is constant where all its terms are; x[i] is unused where every w[o, i] is 0 or out[o] unused.
* *choice*: an output entry is an entry of the first operand, at an index that is data. It is constant where all that
  may be chosen are the same.

All of it is computed in named space (see ``speedup.axes``), where arrays have size 1 along names that do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

from speedup.axes import Layout
from speedup.facts import (
    Affine,
    Bools,
    Constant,
    Fact,
    Floats,
    Indices,
    Unused,
    affine,
    alike_shaped,
    along,
    any_of,
    any_product,
    compact_axes,
    constant,
    everything,
    nothing,
    sum_product,
)
from speedup.graph import Node
from speedup.pieces import is_own
from speedup.regular import take

if TYPE_CHECKING:
    from speedup.infer import NodeFacts
    from speedup.rule import Rule


def from_weight(rule: Rule, node: Node, facts: NodeFacts) -> dict[str, Fact]:
    """Constant outputs and unused inputs that the masks of the weights alone make."""
    found = _constants(rule, node, _Named(node, facts, weights_only=True))
    found.update(_unused(rule, node, _Named(node, facts, weights_only=True), outputs=False))
    return found


def from_input(rule: Rule, node: Node, facts: NodeFacts) -> dict[str, Fact]:
    """Constant outputs, and affine ones where the call averages."""
    found = _constants(rule, node, _Named(node, facts))
    known = facts.affine(0) if node.operands and facts.present(0) and rule.averaging(node) else None
    if known is not None:
        found.update(_averaged(node, known))
    return found


def from_output(rule: Rule, node: Node, facts: NodeFacts) -> dict[str, Fact]:
    """Unused operands."""
    return _unused(rule, node, _Named(node, facts), outputs=True)


class _Named:
    """The facts at a node in named space; mixed axes are reduced: a fact must hold, and be the same, all along them."""

    def __init__(self, node: Node, facts: NodeFacts, weights_only: bool = False) -> None:
        self.node = node
        self.facts = facts
        self.layout: Layout = node.layout
        self.weights_only = weights_only
        self.inputs = [k for k in range(self.layout.n_inputs) if self.layout.present(k)]
        self._nowhere = nothing(len(self.layout.names))
        self._masks: dict[int, Bools] = {}

    def _known(self, k: int) -> bool:
        return not self.weights_only or self.facts.is_weight(k)

    def mask(self, k: int) -> Bools:
        """Constant along all mixed axes with one value."""
        if k not in self._masks:
            self._masks[k] = self._mask(k)
        return self._masks[k]

    def _mask(self, k: int) -> Bools:
        if not self._known(k):
            return self._nowhere
        if self.facts.is_weight(k):
            return everything(len(self.layout.names))
        mask = self.facts.mask(k)
        if not mask.any():
            return self._nowhere
        axes = self.layout.mixed_axes
        named: Bools = self.layout.to_named(k, mask)
        value = self.layout.to_named(k, self.facts.value(k))
        if all(a.shape[p] == 1 for a in (named, value) for p in axes):
            return named
        same = np.where(named, value, 0)
        same = np.equal(same.max(axis=axes, keepdims=True), same.min(axis=axes, keepdims=True))
        result: Bools = np.logical_and(self.layout.project_all(k, named), same)
        return result

    def value(self, k: int) -> Floats:
        """Values where ``mask``, 0 elsewhere (weights: all of them, mixed axes included)."""
        value = self.layout.to_named(k, self.facts.value(k))
        if self.facts.is_weight(k):
            return value
        if all(value.shape[p] == 1 for p in self.layout.mixed_axes):
            return np.where(self.mask(k), value, 0.0)
        first = tuple(slice(0, 1) if n in self.layout.mixed else slice(None) for n in self.layout.names)
        return np.where(self.mask(k), value[first], 0.0)

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
            return self._nowhere, np.zeros(self._nowhere.shape)
        tensor = value.contents()
        low, high = (f(tensor, dims, keepdim=True) for f in (torch.amin, torch.amax))
        mask = made & (low == high).cpu().numpy()
        return self.layout.to_named(k, mask), self.layout.to_named(k, low.to("cpu", torch.float64).numpy())

    def zero(self, k: int) -> Bools:
        if not self._known(k):
            return self._nowhere
        zero = self.facts.zero(k)
        if not zero.any():
            return self._nowhere
        return self.layout.project_all(k, self.layout.to_named(k, zero))

    def unused_output(self) -> Bools:
        """Entries of the output(s) that nobody reads, per shared name."""
        result = everything(len(self.layout.names))
        for k in range(self.layout.n_inputs, len(self.layout.operands)):
            result = result & self.layout.project_all(k, self.layout.to_named(k, self.facts.unused(k)))
        return result


# -- constants --------------------------------------------------------------------------------------------------------


def _constants(rule: Rule, node: Node, named: _Named) -> dict[str, Fact]:
    kind = _chosen if rule.indices else _contracted if named.layout.contracted else _pointwise
    found = kind(rule, named)
    outputs = ["output"] if len(node.outputs) == 1 else [f"output{i}" for i in range(len(node.outputs))]
    return {name: fact for name, fact in zip(outputs, found, strict=False) if fact is not None}


def _averaged(node: Node, known: Affine) -> dict[str, Fact]:
    """An average over positions keeps what is the same at all of them; its unknowns are averaged too."""
    layout, out = node.layout, node.layout.n_inputs
    dim = (layout.operands[0] or ())[known.axis]
    axes = [a for a, d in enumerate(layout.operands[out] or ()) if d == dim and dim]
    arrays = [layout.to_named(0, a) for a in (known.mask, known.offset, *known.terms)]
    over = layout.axes(set(layout.names) - layout.shared(out))
    if len(axes) != 1 or any(a.shape[p] > 1 for a in arrays for p in over):
        return {}
    mask, offset, *terms = (layout.from_named(out, a) for a in arrays)
    fact = affine(axes[0], mask, terms, offset)
    return {"output" if len(node.outputs) == 1 else "output0": fact} if fact is not None else {}


def _chosen(rule: Rule, named: _Named) -> list[Constant | None]:
    """Entries of the first operand, nobody knows which: what is the same for all that may be chosen."""
    out = named.layout.n_inputs
    mask, value = (named.layout.from_named(out, a) for a in np.broadcast_arrays(*named.same(0)))
    return [constant(mask, value)]


def _pointwise(rule: Rule, named: _Named) -> list[Constant | None]:
    layout, inputs = named.layout, named.inputs
    names = dict(zip(range(layout.n_inputs), named.node.operand_names, strict=False))
    holds = everything(len(layout.names))
    for k in inputs:
        ok = named.mask(k)
        for j in inputs:
            if names[k] in rule.annihilates.get(names[j], ()):
                ok = ok | named.zero(j)
        holds = holds & ok
        if not holds.any():
            return []
    if named.node.others and not all(v.is_known for v in named.node.others):
        return []
    arrays: list[Floats | None] = [None] * layout.n_inputs
    for k in inputs:
        arrays[k] = layout.from_named(k, named.value(k))
    results = rule.evaluate(named.node, arrays)
    if results is None:
        return []
    if len(results) != layout.n_outputs:
        raise ValueError(f"evaluate returned {len(results)} arrays for {layout.n_outputs} output")
    found: list[Constant | None] = []
    for k, result in zip(range(layout.n_inputs, len(layout.operands)), results, strict=True):
        mask = layout.from_named(k, layout.project_all(k, holds))
        found.append(constant(*alike_shaped(mask, np.asarray(result, dtype=np.float64))))
    return found


def _contracted(rule: Rule, named: _Named) -> list[Constant | None]:
    layout, out = named.layout, named.layout.n_inputs
    factors = layout.factors
    addends = [k for k in named.inputs if k not in factors]
    if named.facts.is_weight(factors[0]) and layout.names_of(factors[0]) & layout.mixed:
        return []
    over = layout.axes(layout.contracted)
    varies = _any_nonconstant(rule, named, factors, over)
    if varies is None:
        return []
    holds = layout.project_all(out, ~varies)
    for k in addends:
        holds = holds & named.mask(k)
    if not holds.any():
        return []
    value = np.zeros((1,) * len(layout.names))
    value = value + _constant_terms(named, factors, holds)
    for k in addends:
        value = value + named.value(k)
    mask, values = (layout.from_named(out, a) for a in np.broadcast_arrays(holds, np.where(holds, value, 0.0)))
    return [constant(mask.astype(bool), values)]


def _any_nonconstant(rule: Rule, named: _Named, factors: Sequence[int], over: tuple[int, ...]) -> Bools | None:
    """For every output entry: is there a term that is neither 0 nor a product of constants?"""
    nonzero = [~named.zero(k) for k in factors]
    # Where positions differ (zero padding), only a constant 0 comes out the same everywhere.
    uniform = rule.uniform(named.node)
    unknown = [~named.mask(k) if uniform or k != factors[0] else ~named.zero(k) for k in factors]
    if len(factors) == 1:
        return any_of(unknown[0], over)
    if len(factors) != 2:
        return None
    left = any_product(unknown[0], nonzero[1], over)
    return left | any_product(nonzero[0], unknown[1], over)


def _constant_terms(named: _Named, factors: Sequence[int], holds: Bools) -> Floats:
    """The sum of the constant terms, for outputs that have no others: those where ``holds``."""
    layout = named.layout
    live = [k for k in factors if not named.facts.is_weight(k)]
    known = {k: named.mask(k) & (named.value(k) != 0) for k in live}
    if live and not any(known[k].any() for k in live):
        return np.zeros((1,) * len(layout.names))
    over = layout.axes(layout.contracted)
    if len(live) == 1 and len(factors) == 2:
        weight = next(k for k in factors if k not in live)
        wanted = holds & any_of(~named.zero(weight), over)  # what masks have made 0 gives 0
        return response(named.node, live[0], weight, named.value(live[0]), wanted)
    whole = [named.value(k).sum(axis=layout.axes(layout.mixed), keepdims=True) for k in factors]
    whole += [np.ones((1,) * len(layout.names))] * (2 - len(whole))
    return sum_product(whole[0], whole[1], over) * _repeats(layout, over, *whole)


def _repeats(layout: Layout, over: tuple[int, ...], *arrays: Floats) -> int:
    """How many terms a summed entry stands for along contracted names that no array writes out."""
    return prod(layout.sizes[layout.names[p]] for p in over if all(a.shape[p] == 1 for a in arrays))


def response(
    node: Node, k: int, weight: int, values: Floats, wanted: Bools, contents: torch.Tensor | None = None
) -> Floats:
    """What a contraction adds to its output for operand ``k`` at these constant values (named space; zero elsewhere).

    Only the columns of the weight with a nonzero value are read, and the rows of the outputs that are asked for.

    Args:
        wanted: the outputs that are asked for; others may be 0.
        contents: of the weight, if others than its own.
    """
    layout = node.layout
    source = node.values[weight]
    assert source is not None
    names = [n for dim in layout.operands[weight] or () for n in dim]
    if not values.any() or not wanted.any():
        return np.zeros((1,) * len(layout.names))
    mask = None
    if contents is None:
        assert source.tensor is not None
        contents = source.tensor.detach()
        if contents.is_meta:  # asked where, not what: see ``infer.unseen``
            contents = torch.zeros(()).expand(contents.shape)
        mask = _by_names(layout, weight, names, source.mask)
    tensor = contents.reshape([layout.sizes[n] for n in names])
    # To select rows and columns keeps the work at what is constant and asked for.
    rows: dict[int, Indices] = {}
    for name in names:
        p = layout.names.index(name)
        chosen = values != 0 if name in layout.contracted else wanted
        if name in layout.mixed or chosen.shape[p] == 1:
            continue
        at = np.flatnonzero(along(chosen, p))
        if not len(at):  # all nonzero values are in groups that are not asked for
            return np.zeros((1,) * len(layout.names))
        if len(at) == layout.sizes[name]:
            continue
        tensor = take(tensor, names.index(name), at)
        if mask is not None and mask.shape[names.index(name)] > 1:
            mask = np.take(mask, at, axis=names.index(name))
        values = np.take(values, at, axis=p) if values.shape[p] > 1 else values
        if name not in layout.contracted:
            rows[p] = at
    mixed = [i for i, n in enumerate(names) if n in layout.mixed]
    tensor = tensor.to("cpu")
    if mask is not None and not mask.all():
        tensor = tensor * torch.from_numpy(mask)
    tensor = tensor.sum(mixed, dtype=torch.float64) if mixed else tensor.to(torch.float64)
    if mixed:
        names = [n for n in names if n not in layout.mixed]
    matrix = tensor.numpy().transpose([names.index(n) for n in layout.names if n in names])
    shape = iter(matrix.shape)
    matrix = matrix.reshape([next(shape) if n in names else 1 for n in layout.names])
    # The weight writes all its contracted names out, so every term is there once.
    result = sum_product(matrix, values, layout.axes(layout.contracted))
    for p, at in rows.items():
        spread = np.zeros([layout.sizes[layout.names[p]] if q == p else s for q, s in enumerate(result.shape)])
        spread[(slice(None),) * p + (at,)] = result
        result = spread
    return result


def _by_names(layout: Layout, k: int, names: Sequence[str], mask: torch.Tensor | None) -> Bools | None:
    """The mask of operand ``k`` with one axis for each of its names."""
    if mask is None:
        return None
    named = layout.to_named(k, mask.cpu().numpy())
    order = [layout.names.index(n) for n in names]
    rest = [a for a in range(named.ndim) if a not in order]
    return np.ascontiguousarray(named.transpose([*order, *rest]).reshape([named.shape[a] for a in order]))


def run_on_constants(node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
    """Run the call in float64 on constants. Mixed axes get two small extents: only what is the same for both counts.

    Where the rule says that the number of entries counts, they have the extent that they have (None).
    """
    results = None
    layout = node.layout
    assert node.rule is not None
    wide = {n for k, a in enumerate(arrays) if a is not None for n in layout.varying(k, a.shape)}
    number_of = {v: k for k, v in enumerate(node.operands) if v is not None}
    for extent in (1,) if not layout.mixed else (None,) if node.rule.counts else (2, 3):
        tensors: list[torch.Tensor] = []
        for value in node.tensors:
            k = number_of.get(value)
            if k is not None:
                array = arrays[k]
                assert array is not None
                tensors.append(_operand_tensor(layout, k, array, value.dtype, extent, wide))
            elif value.is_known:
                tensors.append(value.contents())
            else:
                return None
        try:
            found = node.run(tensors)
        except (RuntimeError, ValueError, TypeError, IndexError):
            return None
        now = _uniform_outputs(node, [found] if isinstance(found, torch.Tensor) else list(found))
        if now is None or (results is not None and not all(map(_alike, now, results))):
            return None
        results = now
    return results


def _alike(a: Floats, b: Floats) -> bool:
    return a.shape == b.shape and (np.array_equal(a, b) or bool(np.allclose(a, b, rtol=1e-12, atol=0, equal_nan=True)))


@dataclass(frozen=True)
class _Extent:
    """An axis of an operand when a call is tried on constants.

    Attributes:
        names: that stand behind it.
        full: its size.
        named: whether it counts in full, as it is neither mixed nor of the ``*``.
        mixed: whether all of it is.
    """

    names: tuple[str, ...]
    full: int
    named: bool
    mixed: bool


def _extents(layout: Layout, k: int) -> list[_Extent]:
    found: list[_Extent] = layout.once(
        "extents",
        k,
        lambda: [
            _Extent(
                dim,
                prod(layout.sizes[n] for n in dim),
                any("*" not in n and n not in layout.mixed for n in dim),
                bool(dim) and layout.mixed.issuperset(dim),
            )
            for dim in layout.operands[k] or ()
        ],
    )
    return found


def _operand_tensor(
    layout: Layout, k: int, array: Floats, dtype: torch.dtype, extent: int | None, wide: set[str]
) -> torch.Tensor:
    """An operand of the smallest shape at which the call makes sense: names that any operand varies along in full."""
    shape = []
    for size, axis in zip(array.shape, _extents(layout, k), strict=True):
        if size > 1 or axis.named or not wide.isdisjoint(axis.names) or (axis.mixed and extent is None):
            shape.append(axis.full)
        else:
            shape.append(extent if axis.mixed and extent is not None else 1)
    whole = array if array.shape == tuple(shape) else np.broadcast_to(array, shape)
    tensor = torch.from_numpy(whole.copy())
    return tensor if dtype.is_floating_point else tensor.to(dtype)


def _uniform_outputs(node: Node, outputs: Sequence[torch.Tensor]) -> list[Floats] | None:
    """The outputs with their mixed axes reduced to size 1; None where they are not the same along them."""
    layout = node.layout
    results = []
    for k, out in enumerate(outputs, layout.n_inputs):
        if out.is_complex():
            return None
        array = out.detach().to("cpu", torch.float64).numpy()
        axes = _extents(layout, k)
        if array.ndim != len(axes):
            return None
        for number, axis in enumerate(axes):
            size = array.shape[number]
            if axis.mixed and size != 1:
                first = array.take([0], axis=number)
                if not np.allclose(array, first, rtol=1e-12, atol=0, equal_nan=True):
                    return None
                array = first
            elif size not in (1, axis.full):
                return None
        results.append(array)
    return results


# -- unused -----------------------------------------------------------------------------------------------------------


def _unused(rule: Rule, node: Node, named: _Named, outputs: bool) -> dict[str, Fact]:
    layout = named.layout
    unused = named.unused_output() if outputs else named._nowhere
    found: dict[str, Fact] = {}
    factors = layout.factors
    for k in named.inputs:
        name = node.operand_names[k]
        if k in factors and len(factors) == 2:
            if _follows(node, k):
                continue
            other = factors[1 - factors.index(k)]
            used = any_product(~unused, ~named.zero(other), layout.private(k))
            mask = layout.project_all(k, ~used)
        else:
            idle = unused
            for j in named.inputs:
                if name in rule.annihilates.get(node.operand_names[j], ()):
                    idle = idle | named.zero(j)
            mask = layout.project_all(k, idle)
        if mask.any():
            found[name] = Unused(compact_axes(layout.from_named(k, mask))[0].astype(bool))
    return found


def _follows(node: Node, k: int) -> bool:
    """Whether nobody asks which entries of an operand are read: of a weight of this call alone, which keeps what the
    other operands keep. That fact would be of the weight's size."""
    value = node.values[k]
    return value is not None and value.is_source and is_own(node, k)


# -- cost -------------------------------------------------------------------------------------------------------------


def multiply_accumulates(node: Node, shapes: Sequence[tuple[int, ...] | None]) -> int:
    """MACs of a contraction: one per output entry and term; other ops count none."""
    layout = node.layout
    factors = layout.factors
    if len(factors) != 2:
        return 0
    now = layout_at(node, shapes)
    out = shapes[layout.n_inputs]
    window = 1
    for dim in layout.operands[factors[1]] or ():
        window *= prod(now.sizes[n] for n in dim if n in layout.mixed or n in layout.contracted)
    return prod(out or ()) * window


def layout_at(node: Node, shapes: Sequence[tuple[int, ...] | None]) -> Layout:
    """The layout of the call at other shapes."""
    from speedup.axes import parse

    assert node.rule is not None
    n = len(node.operands)
    if all(s == (None if v is None else v.shape) for s, v in zip(shapes, node.values, strict=True)):
        return node.layout
    return parse(node.rule.signature(node)).bind(list(shapes[:n]), [s or () for s in shapes[n:]])
