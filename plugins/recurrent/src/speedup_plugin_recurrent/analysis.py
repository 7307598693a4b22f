"""Which hidden units are constant, and which are read: per layer and direction, through the recurrence.

*Constant*, forward in time: a state that is known at the start and comes out of a step as it went in never changes. So
all states that are known at the start are taken to be steady, and those that a step would change, given the others,
are taken out until none is left to take out. One more step then tells what the cell makes at all times. For an RNN
that may be another number than the initial state: constant in the output, but not steady.

*Read*, backward: a unit is needed if an output is read that it makes, or if a needed unit reads it: through the
recurrent weights, or as the next layer's input. Gates without influence (see ``known.Step.matters``) read nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from speedup import Bools, Floats, Node, NodeFacts
from speedup_plugin_recurrent.call import Call, features
from speedup_plugin_recurrent.known import CELLS, Known, Step, joined, uniform


@dataclass(frozen=True, eq=False)
class Weight:
    """A matrix, where it is not masked, and where its numbers may be counted on."""

    value: Floats
    live: Bools
    known: Bools

    def times(self, x: Known, bias: Known | None = None) -> Known:
        """Known where every column that is not masked meets a known number: 0, where the column is not known."""
        mask = ~np.asarray(self.live[:, ~x.mask].any(axis=1))
        if not self.known.all():
            mask = mask & ~np.asarray((self.live & ~self.known)[:, ~x.zero].any(axis=1))
        value = self.value @ x.value
        if bias is not None:
            mask, value = mask & bias.mask, value + bias.value
        return Known(mask, np.where(mask, value, 0.0))

    def read_by(self, rows: Bools) -> Bools:
        """The columns that these rows read."""
        return np.asarray(self.live[rows].any(axis=0))


@dataclass(frozen=True, eq=False)
class Cell:
    """The weights of one layer and direction."""

    kind: str
    ih: Weight
    hh: Weight
    b_ih: Known | None
    b_hh: Known | None
    hr: Weight | None

    def step(self, x: Known, h: Known, c: Known | None) -> Step:
        gates, formula = CELLS[self.kind]
        x, s = self.ih.times(x, self.b_ih), self.hh.times(h, self.b_hh)
        by_gate = (gates, -1)
        x, s = (Known(a.mask.reshape(by_gate), a.value.reshape(by_gate)) for a in (x, s))
        return formula(x, s, h, c)

    def state(self, step: Step) -> Known:
        """h as the step makes it."""
        return step.made if self.hr is None else self.hr.times(step.made)


@dataclass(frozen=True, eq=False)
class Constants:
    """What is known of one cell.

    Attributes:
        x: its input.
        steady: h where it is one number from the initial state on.
        h: where it is one number from the first step on.
        step: the step at any time.
    """

    x: Known
    steady: Known
    h: Known
    step: Step


def cells_of(call: Call, node: Node, facts: NodeFacts) -> list[Cell]:
    def weight(k: int | None) -> Weight | None:
        if k is None:
            return None
        shape = node.operands[k].shape  # type: ignore[union-attr]
        value, zero, known = (np.broadcast_to(a, shape) for a in (facts.value(k), facts.zero(k), facts.mask(k)))
        return Weight(np.nan_to_num(value) if not known.all() else value, ~zero, known)

    def bias(k: int | None) -> Known | None:
        if k is None:
            return None
        shape = node.operands[k].shape  # type: ignore[union-attr]
        value, known = (np.broadcast_to(a, shape) for a in (facts.value(k), facts.mask(k)))
        return Known(known, np.where(known, value, 0.0))

    cells = []
    for ih, hh, b_ih, b_hh, hr in call.weights:
        own, recurrent = weight(ih), weight(hh)
        assert own is not None and recurrent is not None
        cells.append(Cell(call.kind, own, recurrent, bias(b_ih), bias(b_hh), weight(hr)))
    return cells


def constants(
    call: Call, cells: list[Cell], facts: NodeFacts, input: bool = True, states: bool = True
) -> list[Constants]:
    """What is known of every cell.

    Args:
        input, states: whether what is known of the input, and of initial states that are given, counts.
    """
    size = cells[0].ih.value.shape[1]
    x = _input(facts, size) if input else Known.nothing(size)
    found: list[Constants] = []
    for layer in range(call.layers):
        here = []
        for direction in range(call.directions):
            number = layer * call.directions + direction
            h = _initial(call, facts, call.h0, number, call.width, states)
            c = _initial(call, facts, call.c0, number, call.units, states) if call.c is not None else None
            here.append(_run(call, cells[number], x, h, c))
        x = joined([each.h for each in here])
        found += here
    return found


def _run(call: Call, cell: Cell, x: Known, h: Known, c: Known | None) -> Constants:
    step = cell.step(x, h, c)
    while not call.once:
        left = h.where_same(cell.state(step))
        other = c.where_same(step.c) if c is not None and step.c is not None else None
        if left.mask.sum() == h.mask.sum() and (c is None or other is None or other.mask.sum() == c.mask.sum()):
            break
        h, c = left, other
        step = cell.step(x, h, c)
    return Constants(x, h, cell.state(step), step)


def _input(facts: NodeFacts, size: int) -> Known:
    mask, value = np.broadcast_arrays(facts.mask(0), facts.value(0))
    known = uniform(mask, value, tuple(range(mask.ndim - 1)))
    return Known(np.broadcast_to(known.mask, (size,)), np.broadcast_to(known.value, (size,)))


def _initial(call: Call, facts: NodeFacts, k: int | None, number: int, size: int, given: bool) -> Known:
    if k is None:
        return Known.zeros(size)
    if not given:
        return Known.nothing(size)
    mask, value = np.broadcast_arrays(facts.mask(k), facts.value(k))
    known = uniform(mask, value, call.over(mask.ndim))
    if not call.once:
        known = known[number if known.mask.shape[0] > 1 else 0]
    return Known(np.broadcast_to(known.mask, (size,)), np.broadcast_to(known.value, (size,)))


@dataclass(frozen=True, eq=False)
class Reads:
    """What is read, per cell.

    Attributes:
        made: units whose h (in front of a projection) or c is needed.
        h: entries of h that are needed.
        rows: rows of the weights that matter.
        state, input: entries of the state before, and of the input, that these rows read.
    """

    made: Bools
    h: Bools
    rows: Bools
    state: Bools
    input: Bools


def reads(call: Call, cells: list[Cell], known: list[Constants], facts: NodeFacts) -> list[Reads]:
    """What is read of every cell, given what is not read of the outputs."""
    used_h = call.rows(~facts.unused(call.h), call.width)
    used_c = call.rows(~facts.unused(call.c), call.units) if call.c is not None else None
    size = call.directions * call.width
    above = features(~facts.unused(call.out), size) if call.out is not None else np.zeros(size, dtype=bool)
    found: list[Reads] = []
    for layer in reversed(range(call.layers)):
        here = []
        for direction in range(call.directions):
            number = layer * call.directions + direction
            wanted = used_h[number] | above[direction * call.width : (direction + 1) * call.width]
            kept = used_c[number] if used_c is not None else np.zeros(call.units, dtype=bool)
            here.append(_read(call, cells[number], known[number], wanted, kept))
        above = np.logical_or.reduce([each.input for each in here])
        found = here + found
    return found


def _read(call: Call, cell: Cell, known: Constants, h: Bools, c: Bools) -> Reads:
    while True:
        made = c | (h if cell.hr is None else cell.hr.read_by(h))
        rows = (known.step.matters & made).reshape(-1)
        state = cell.hh.read_by(rows)
        if call.once or not (state & ~h).any():
            return Reads(made, h, rows, state, cell.ih.read_by(rows))
        h = h | state
