"""Calls that become plainer ones, since the calls around them make them right, see ``Plain``.

A layer norm that lost channels goes on counting them: it is corrected by two numbers per position. Where one of its
channels is a constant, that can be another one, a sum of the others, with which a plain layer norm gives the same up to
a multiple of that channel. The layers behind it add that multiple: it is a column of their weights. What makes the
channels in front of it makes that one too: it is a row of their weights. All that read these channels have to be such
norms, and to agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from speedup.arrays import Floats
from speedup.ask import ask, culprit
from speedup.errors import RuleError, SignatureError
from speedup.fast.edits import Edits
from speedup.fast.hooks import has_hooks
from speedup.fast.plain import Plain
from speedup.fast.streams import Stream, Unfit, alone, name_of
from speedup.graph import Graph
from speedup.infer import infer
from speedup.known import NodeFacts
from speedup.node import Node, Value
from speedup.rule import Rule

_NO_CARRIER = "no channel is left that is the constant which the others were"


@dataclass(frozen=True, eq=False)
class Restated:
    """Calls that become plainer together.

    Attributes:
        calls: with what each leaves to which modules behind it, their paths.
        modules: all new ones, by path, each behind those that it is in.
    """

    calls: Mapping[Node, tuple[str, ...]]
    modules: Mapping[str, nn.Module]


def may_restate(node: Node) -> bool:
    """Whether the rule of a call may know a plainer one."""
    return node.rule is not None and type(node.rule).plain is not Rule.plain


def restated(graph: Graph, model: nn.Module, able: Sequence[Node]) -> Iterator[tuple[Sequence[Node], Restated | str]]:
    """Calls that can become plainer, or why they cannot.

    Args:
        able: those that may change.
    """
    answers = _asked(graph, able)
    for node in [n for n, found in answers.items() if not found]:
        del answers[node]
        yield [node], _NO_CARRIER
    unseen = _unseen(graph, model) if answers else None
    while answers:
        node, found = next(iter(answers.items()))
        together: Sequence[Node] = [node]
        try:
            if unseen is not None:
                raise Unfit(unseen)
            value = node.operands[0]
            assert value is not None
            stream = Stream.of(value, found[0].axis)
            together = [n for n, number in stream.readers if n in answers and number == 0]
            result: Restated | str = _restated(model, stream, _agreed(stream, answers))
        except Unfit as unfit:
            result = str(unfit)
        for each in together:
            del answers[each]
        yield together, result


def _unseen(graph: Graph, model: nn.Module) -> str | None:
    """What may read or make channels that this run does not show: hooks, and what is not read with this input."""
    for path in graph.uncalled:
        return f"{path} is not called with this input"
    for value in graph.sources:
        if value.kind == "parameter" and not value.is_read:
            return f"{value.label} is not read with this input"
    for path, module in model.named_modules():
        if path and has_hooks(module):
            return f"{path} has hooks"
    return None


def _asked(graph: Graph, able: Sequence[Node]) -> dict[Node, Sequence[Plain]]:
    """What the rules say of each call."""
    if not able:
        return {}
    # What holds 0 was masked, or is as good as that: such a model does not train on.
    masks = {v.names[0]: v.contents() != 0 for v in graph.sources if v.is_known and v.names}
    facts = infer(graph, masks, backwards=False)
    answers = {n: ask(n, "plain", NodeFacts(facts, n)) for n in able}
    for node, found in answers.items():
        if not all(isinstance(each, Plain) for each in found):
            raise RuleError(f"{culprit(node)}: plain returned {found!r}, not a list of speedup.Plain")
    return answers


def _agreed(stream: Stream, answers: Mapping[Node, Sequence[Plain]]) -> dict[Node, Plain]:
    """What the readers of a stream become: all of them, with the same channel."""
    for node, number in stream.readers:
        if node not in answers and may_restate(node):
            raise Unfit(f"{node.path} reads what goes into it too, and stays as it is")
        if node not in answers or number != 0:
            raise Unfit(f"{node.op_name} ({node.where}) reads what goes into it too")
    nodes = [node for node, _ in stream.readers]
    for first in answers[nodes[0]]:
        chosen = [next((p for p in answers[n] if _is_alike(first, p)), None) for n in nodes]
        if None not in chosen:
            return {n: p for n, p in zip(nodes, chosen, strict=True) if p is not None}
    raise Unfit("others that read the same channels need another one of them")


def _is_alike(one: Plain, other: Plain) -> bool:
    return one.carrier == other.carrier and np.allclose(one.sums, other.sums, rtol=1e-12, atol=0)


def _restated(model: nn.Module, stream: Stream, chosen: Mapping[Node, Plain]) -> Restated:
    edits, calls = Edits(model), {}
    for node, plain in chosen.items():
        weights = _read_by(node, plain.axis)
        for weight, axis in weights.items():
            edits.change(weight, partial(_with_more, onto=plain.onto, carrier=plain.carrier, axis=axis))
        calls[node] = tuple(weight.names[0].rpartition(".")[0] for weight in weights)
    plain = next(iter(chosen.values()))
    for factor in {f for factors in stream.factors.values() for f in factors}:
        edits.change(factor, partial(_with_one, carrier=plain.carrier))
    for maker, (axis, factors) in stream.makers.items():
        edits.change(maker, partial(_with_sum, sums=_in_front(plain.sums, factors), carrier=plain.carrier, axis=axis))
    modules = {**edits.modules(), **{node.path: plain.module for node, plain in chosen.items()}}
    return Restated(calls, dict(sorted(modules.items())))


def _in_front(sums: Floats, factors: Sequence[Value]) -> Floats:
    """What each channel counts before it is multiplied."""
    for factor in factors:
        sums = sums * factor.contents().to("cpu", torch.float64).numpy().reshape(-1)
    return sums


def _read_by(node: Node, axis: int) -> dict[Value, int]:
    """The weights that alone read what a call gives, with the axis of its channels.

    Raises:
        Unfit: something else reads it.
    """
    behind = Stream.behind(node.outputs[0], axis)
    if not behind.readers:
        raise Unfit("nothing reads it")
    found = {}
    for reader, number in behind.readers:
        weight, a = _weight_of(reader, number, behind.axes)
        found[weight] = a
    return found


def _weight_of(reader: Node, number: int, axes: Mapping[Value, int]) -> tuple[Value, int]:
    """The parameter by which a call contracts the channels of an operand, with its axis."""
    unfit = Unfit(f"{reader.op_name} ({reader.where}) reads it, which is no layer with a weight of its own")
    value = reader.operands[number] if number < len(reader.operands) else None
    if reader.rule is None or value is None:
        raise unfit
    try:
        layout = reader.layout
    except SignatureError:
        raise unfit from None
    name = name_of(reader, number, axes[value])
    others = [k for k in layout.factors if k != number]
    if name not in layout.contracted or len(others) != 1:
        raise unfit
    weight = reader.operands[others[0]]
    assert weight is not None
    found = [a for a in range(weight.ndim) if name_of(reader, others[0], a) == name]
    if len(found) != 1 or not weight.is_source:
        raise unfit
    return alone(weight), found[0]


def _with_more(weight: torch.Tensor, onto: Floats, carrier: int, axis: int) -> torch.Tensor:
    """A weight that reads the multiple of the carrier that the other channels lack."""
    new = weight.clone()
    new.select(axis, carrier).add_(_weighted(weight, onto, axis))
    return new


def _with_sum(tensor: torch.Tensor, sums: Floats, carrier: int, axis: int) -> torch.Tensor:
    """What makes the channels makes the carrier a sum of them."""
    new = tensor.clone()
    new.select(axis, carrier).copy_(_weighted(tensor, sums, axis))
    return new


def _with_one(factor: torch.Tensor, carrier: int) -> torch.Tensor:
    new = factor.clone()
    new.view(-1)[carrier] = 1.0
    return new


def _weighted(tensor: torch.Tensor, by: Floats, axis: int) -> torch.Tensor:
    """The sum of the indices along an axis, each times a number."""
    numbers = torch.from_numpy(by.copy()).to(tensor.device)
    return torch.tensordot(numbers, tensor, dims=([0], [axis]))  # type: ignore[no-any-return]
