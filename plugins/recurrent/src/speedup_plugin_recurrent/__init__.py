"""speedup rules for nn.RNN, nn.LSTM, nn.GRU and their cells.

A hidden unit goes when its state is constant, or when nobody reads it, in all its gates. Signatures cannot say this:
whether a unit is constant is a fixpoint over time (``analysis``), so the rules give their own four functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import numpy as np
import torch
from torch import nn

from speedup import Bools, Constant, Fact, Kept, Labels, Node, NodeFacts, NodeKeep, Rule, Unused, hookimpl
from speedup_plugin_recurrent import keeping
from speedup_plugin_recurrent.analysis import cells_of, constants, reads
from speedup_plugin_recurrent.call import Call, bind, held
from speedup_plugin_recurrent.known import Known
from speedup_plugin_recurrent.packing import Pack, Pad
from speedup_plugin_recurrent.tying import tie


class Recurrent(Rule):
    """h[t] = cell(x[t], h[t-1]) at all times, in several layers and one or two directions."""

    stepwise = True

    def held(self, module: nn.Module) -> dict[str, torch.Tensor]:
        return held(module)

    def check(self, node: Node) -> None:
        node.__dict__["_call"] = bind(node)

    def call_of(self, node: Node) -> Call:
        call: Call = node.__dict__["_call"]
        return call

    # -- inference ------------------------------------------------------------------------------------------------

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """States that are one number at all times."""
        call = self.call_of(node)
        known = constants(call, cells_of(call, node, facts), facts)
        found: dict[int, Known] = {call.h: _stacked([each.h for each in known])}
        if call.c is not None:
            found[call.c] = _stacked([each.step.c for each in known if each.step.c is not None])
        result: dict[str, Fact] = {}
        for k, rows in found.items():
            self._say(
                node, result, k, call.batched(rows.mask, _ndim(node, k)), call.batched(rows.value, _ndim(node, k))
            )
        if call.out is not None:
            top = found[call.h][-call.directions :]
            shape = [1] * (_ndim(node, call.out) - 1) + [-1]
            self._say(node, result, call.out, top.mask.reshape(shape), top.value.reshape(shape))
        return result

    @staticmethod
    def _say(node: Node, result: dict[str, Fact], k: int, mask: Bools, value: Bools) -> None:
        number = k - len(node.operands)
        if mask.any():
            result["output" if len(node.outputs) == 1 else f"output{number}"] = Constant(mask, value)

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """What no unit reads that is needed.

        That a unit is constant may rest on what is known of an operand, which must be read then: so for the input only
        what is known of the initial states counts, and for those only what the weights say.
        """
        call = self.call_of(node)
        cells = cells_of(call, node, facts)
        found: dict[str, Fact] = {}
        read = reads(call, cells, constants(call, cells, facts, input=False), facts)
        below = np.logical_or.reduce([each.input for each in read[: call.directions]])
        if not below.all():
            found["input"] = Unused(~below.reshape([1] * (_ndim(node, 0) - 1) + [-1]))
        if call.h0 is None:
            return found
        read = reads(call, cells, constants(call, cells, facts, input=False, states=False), facts)
        h = np.stack([each.state | (each.made if call.kind == "gru" else False) for each in read])
        for name, k, used in (("h0", call.h0, h), ("c0", call.c0, np.stack([each.made for each in read]))):
            if k is not None and not used.all():
                found[name] = Unused(~call.batched(used, _ndim(node, k)))
        return found

    # -- keep sets ------------------------------------------------------------------------------------------------

    def rigid(self, node: Node, rigid: Sequence[Sequence[bool]]) -> list[list[bool]]:
        """Times and samples stay. Along the axis of layers and directions none goes, but each may keep other units."""
        call = self.call_of(node)
        found = []
        for number, value in enumerate(node.outputs, len(node.operands)):
            flags = [True] * (value.ndim - 1) + [False]
            if not call.once and number != call.out:
                flags[0] = False
            found.append(flags)
        return found

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        keeping.constrain(self.call_of(node), node, keep)

    def tie(self, node: Node, labels: Labels) -> None:
        tie(self.call_of(node), node, labels)

    def derived(self, node: Node) -> set[int]:
        return keeping.own_weights(self.call_of(node), node)

    def derive(self, node: Node, k: int, sets: Sequence[Bools]) -> Bools:
        call = self.call_of(node)
        (place,) = [(n, row.index(k)) for n, row in enumerate(call.weights) if k in row]
        return keeping.sets_of(call, node, sets).weight(call, *place)

    def folds(self, node: Node) -> bool:
        return False  # ``replace`` does it

    def multiply_accumulates(self, node: Node, shapes: Sequence[tuple[int, ...] | None]) -> int:
        matrices = (k for row in self.call_of(node).weights for k in (row[0], row[1], row[4]) if k is not None)
        return prod((shapes[0] or ())[:-1]) * sum(prod(shapes[k] or ()) for k in matrices)

    # -- replacement ----------------------------------------------------------------------------------------------

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        return keeping.replace(self.call_of(node), node, keep, super().replace(node, keep))


def _stacked(parts: Sequence[Known]) -> Known:
    return Known(np.stack([p.mask for p in parts]), np.stack([p.value for p in parts]))


def _ndim(node: Node, k: int) -> int:
    value = node.values[k]
    assert value is not None
    return value.ndim


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    return [
        Recurrent(name="recurrent", modules=(nn.RNN, nn.LSTM, nn.GRU)),
        Recurrent(name="recurrent cell", modules=(nn.RNNCell, nn.LSTMCell, nn.GRUCell)),
        Pack(name="pack_padded_sequence", functions=(torch._pack_padded_sequence,)),
        Pad(name="pad_packed_sequence", functions=(torch._pad_packed_sequence,)),
    ]
