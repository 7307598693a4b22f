"""Which hidden units stay, and the smaller module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced

import numpy as np
import torch
from torch import nn

from speedup import Bools, Floats, Kept, Node, NodeFacts, NodeKeep
from speedup_plugin_recurrent.analysis import cells_of, constants, reads
from speedup_plugin_recurrent.call import Call, features, gate_rows
from speedup_plugin_recurrent.known import CELLS

_WHY_READ = "a hidden unit reads it, and it is not constant, or there is no bias that could take it up"
_WHY_LINKED = "its hidden unit stays"
_WHY_COUNT = "every layer and direction keeps the same count"


@dataclass(eq=False)
class Sets:
    """What is kept.

    Attributes:
        input: features of the input.
        h: (cells, width), entries of the state.
        made: (cells, units), units; the same as ``h`` without a projection.
    """

    input: Bools
    h: Bools
    made: Bools

    def columns(self, call: Call, number: int) -> Bools:
        """The columns of a cell's input weight that stay."""
        layer = number // call.directions
        return self.input if layer == 0 else self.h[(layer - 1) * call.directions : layer * call.directions].reshape(-1)

    def weight(self, call: Call, number: int, role: int) -> Bools:
        """What stays of a weight of a cell; ``role`` is its place in ``call.WEIGHTS``."""
        if role == 4:
            return np.asarray(self.h[number][:, None] & self.made[number])
        rows = gate_rows(self.made[number], CELLS[call.kind][0])
        if role in (2, 3):
            return rows
        return np.asarray(rows[:, None] & (self.columns(call, number) if role == 0 else self.h[number]))


def sets_of(call: Call, node: Node, sets: Sequence[Bools]) -> Sets:
    """What the input and the last states say is kept: they have all features and units."""
    size = node.operands[0].shape[-1]  # type: ignore[union-attr]
    h = call.rows(sets[call.h], call.width)
    return Sets(features(sets[0], size), h, call.rows(sets[call.c], call.units) if call.projected and call.c else h)


def required(call: Call, node: Node, facts: NodeFacts) -> Sets:
    """What is read and can neither be left out nor folded into a bias."""
    cells = cells_of(call, node, facts)
    known = constants(call, cells, facts)
    read = reads(call, cells, known, facts)
    takes = [[k is not None and is_own(node, k) for k in row[2:4]] for row in call.weights]
    h = np.zeros((len(cells), call.width), dtype=bool)
    made = np.zeros((len(cells), call.units), dtype=bool)
    size = node.operands[0].shape[-1]  # type: ignore[union-attr]
    input = np.zeros(size, dtype=bool)
    for number, (cell, at, its) in enumerate(zip(cells, known, read, strict=True)):
        into_ih, into_hh = takes[number]
        h[number] |= its.state & ~(at.steady.mask if into_hh else at.steady.zero)
        if cell.hr is not None:
            made[number] |= cell.hr.read_by(its.h) & ~at.step.made.zero
        if number < call.directions:
            free = at.x.mask if into_ih and facts.from_input(0) else at.x.zero
            input |= its.input & ~free
        else:
            below = number // call.directions * call.directions - call.directions
            lower = its.input & ~(at.x.mask if into_ih else at.x.zero)
            h[below : below + call.directions] |= lower.reshape(call.directions, -1)
    return Sets(input, h, made if call.projected else h)


def is_own(node: Node, k: int) -> bool:
    """Whether an operand is a weight that this call alone reads."""
    value = node.operands[k]
    return value is not None and value.is_of_one_call


def own_weights(call: Call, node: Node) -> set[int]:
    return {k for row in call.weights for k in row if k is not None and is_own(node, k)}


def constrain(call: Call, node: Node, keep: NodeKeep) -> None:
    """Grow everything to what is required, equal counts per cell, and what states and shared weights keep."""
    needed = required(call, node, keep.facts)
    kept = sets_of(call, node, keep.sets)
    kept.input |= needed.input
    kept.h |= needed.h
    kept.made |= needed.made
    alike = {k for k in (call.h0, call.c0) if k is not None and _alike(keep.facts, k)}
    _from_states(call, keep, kept, alike)
    _from_weights(call, keep, kept)
    if not keep.patient and not kept.input.any():
        kept.input[0] = True
    linked = replaced(kept, h=kept.h.copy(), made=kept.made.copy())
    _even(call, kept, keep, alike)
    _grow(call, keep, (needed, linked, kept), alike)


def _alike(facts: NodeFacts, k: int) -> bool:
    """Whether all entries of an initial state are one number (zeros): then it only matters how many stay."""
    value = facts.value(k)
    return bool(facts.mask(k).all() and np.isfinite(value).all() and value.max() == value.min())


def _from_states(call: Call, keep: NodeKeep, kept: Sets, alike: set[int]) -> None:
    for k, rows in ((call.h0, kept.h), (call.c0, kept.made), (call.c, kept.made)):
        if k is not None and k not in alike:
            rows |= call.rows(keep.sets[k], rows.shape[1])
    if call.out is not None:
        top = kept.h[-call.directions :]
        top |= features(keep.sets[call.out], top.size).reshape(top.shape)


def _from_weights(call: Call, keep: NodeKeep, kept: Sets) -> None:
    """Weights that other calls read too keep what those need."""
    gates = CELLS[call.kind][0]
    for number, row in enumerate(call.weights):
        for role, k in enumerate(row):
            if k is None or k in keep.derived or not keep.sets[k].any():
                continue
            mask = np.broadcast_to(keep.sets[k], kept.weight(call, number, role).shape)
            rows = mask if mask.ndim == 1 else mask.any(axis=1)
            if role == 4:
                kept.h[number] |= rows
                kept.made[number] |= mask.any(axis=0)
                continue
            kept.made[number] |= rows.reshape(gates, -1).any(axis=0)
            if role == 1:
                kept.h[number] |= mask.any(axis=0)
            if role == 0 and number < call.directions:
                kept.input |= mask.any(axis=0)
            elif role == 0:
                below = number // call.directions * call.directions - call.directions
                kept.h[below : below + call.directions] |= mask.any(axis=0).reshape(call.directions, -1)


def _even(call: Call, kept: Sets, keep: NodeKeep, alike: set[int]) -> None:
    """Fill up every cell to the count of the largest; a projection stays smaller than what it projects."""
    least = 0 if keep.patient else 1
    counts = [
        max(least, _count(rows), _count(call.rows(keep.sets[k], rows.shape[1])) if k in alike else 0)
        for rows, k in ((kept.h, call.h0), (kept.made, call.c0))
    ]
    _fill(kept.h, counts[0] if call.projected else max(counts))
    if call.projected:
        _fill(kept.made, max(counts[1], counts[0] + 1 if counts[0] else 0))


def _count(rows: Bools) -> int:
    return int(rows.sum(axis=1).max())


def _fill(rows: Bools, count: int) -> None:
    elsewhere = rows.any(axis=0)
    for row in rows:
        missing = count - int(row.sum())
        if missing > 0:
            order = np.argsort(~elsewhere, kind="stable")
            row[order[~row[order]][:missing]] = True


def _grow(call: Call, keep: NodeKeep, sets: tuple[Sets, Sets, Sets], alike: set[int]) -> None:
    """Grow what is read, what states and shared weights keep with it, and what comes to equal counts, in this order."""
    needed, linked, kept = sets

    def grow(k: int, mask: Bools, why: str, cause: int) -> None:
        if mask.any():
            keep.grow(k, mask, why, cause)

    def last(mask: Bools, k: int) -> Bools:
        return mask.reshape([1] * (len(keep.rigid[k]) - 1) + [-1])

    def state(k: int, rows: Bools, why: str, cause: int) -> None:
        grow(k, call.batched(rows, len(keep.rigid[k])), why, cause)

    grow(0, last(needed.input, 0), _WHY_READ, call.h)
    grow(0, last(kept.input, 0), _WHY_LINKED, call.h)
    state(call.h, needed.h, _WHY_READ, call.h)
    state(call.h, linked.h, _WHY_LINKED, call.c if call.c is not None and not call.projected else call.h)
    state(call.h, kept.h, _WHY_COUNT, call.h)
    if call.c is not None:
        state(call.c, needed.made, _WHY_READ, call.c)
        state(call.c, linked.made, _WHY_LINKED, call.h)
        state(call.c, kept.made, _WHY_COUNT, call.h)
    for k, rows in ((call.h0, kept.h), (call.c0, kept.made)):
        if k in alike:
            count, rows = _count(rows), call.rows(keep.sets[k], rows.shape[1])
            _fill(rows, count)
        if k is not None:
            state(k, rows, _WHY_LINKED, call.h)
    if call.out is not None:
        grow(call.out, last(kept.h[-call.directions :].reshape(-1), call.out), _WHY_LINKED, call.h)
    for number, row in enumerate(call.weights):
        for role, k in enumerate(row):
            if k is not None and k not in keep.derived:
                grow(k, kept.weight(call, number, role), _WHY_LINKED, call.h)


# -- the smaller module -----------------------------------------------------------------------------------------------


def folded(call: Call, node: Node, keep: Kept) -> dict[str, nn.Parameter]:
    """New biases that take up the constants that go, already cut.

    b_ih takes weight_ih · x of features and units of the layer below that go, b_hh takes weight_hh · h of units that
    go. (For a GRU it matters which: its gate r multiplies what comes of b_hh.)
    """
    cells = cells_of(call, node, keep.facts)
    known = constants(call, cells, keep.facts)
    kept = sets_of(call, node, keep.sets)
    new: dict[str, nn.Parameter] = {}
    for number, (cell, at) in enumerate(zip(cells, known, strict=True)):
        for role, weight, vector, stays in (
            (2, cell.ih, at.x, kept.columns(call, number)),
            (3, cell.hh, at.steady, kept.h[number]),
        ):
            k = call.weights[number][role]
            gone = np.where(stays, 0.0, vector.value)
            if k is None or not gone.any() or not is_own(node, k):
                continue
            rows = kept.weight(call, number, role)
            new[node.operand_names[k]] = _added(node, k, weight.value @ gone, rows)
    return new


def _added(node: Node, k: int, shift: Floats, rows: Bools) -> nn.Parameter:
    value = node.operands[k]
    assert value is not None and value.tensor is not None
    old = value.contents()
    wide = old.to(torch.float64) + torch.from_numpy(shift).to(old.device)
    at = torch.from_numpy(np.flatnonzero(rows)).to(old.device)
    made = nn.Parameter(wide.index_select(0, at).to(old.dtype), value.tensor.requires_grad)
    made.__dict__.update(value.tensor.__dict__)
    return made


def replace(call: Call, node: Node, keep: Kept, module: nn.Module) -> nn.Module:
    """Put weights and sizes into a module that has those of the original."""
    for name, tensor in {**keep.tensors, **folded(call, node, keep)}.items():
        assert isinstance(tensor, nn.Parameter)
        module.register_parameter(name, tensor)
    kept = sets_of(call, node, keep.sets)
    for name, count in (
        ("input_size", kept.input.sum()),
        ("hidden_size", kept.made[0].sum()),
        ("proj_size", kept.h[0].sum() if call.projected else 0),
    ):
        if hasattr(module, name):
            setattr(module, name, int(count))
    if isinstance(module, nn.RNNBase):
        _flatten(module, keep.module)
    return module


def _flatten(module: nn.RNNBase, original: nn.Module) -> None:
    """Renew the list of weights that the layer's forward uses; for cuDNN in one piece of memory, if all are new."""
    own = [getattr(module, name, None) for name in module._flat_weights_names]
    old = {id(p) for p in original.parameters()}
    if all(id(w) not in old for w in own):
        module._init_flat_weights()
    else:
        module._flat_weights = own
