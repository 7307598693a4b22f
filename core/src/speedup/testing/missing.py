"""What a rule could have said and did not: no error, but indices that stay though they could go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from speedup.arrays import Bools, along, nothing
from speedup.errors import SignatureError
from speedup.facts import Unused
from speedup.flow import follows
from speedup.infer import _returned, infer
from speedup.inputs import resolve_inputs
from speedup.known import Facts, NodeFacts
from speedup.masks import normalize_masks
from speedup.node import Node, Value
from speedup.registry import Registry
from speedup.rigid import rigid_axes
from speedup.rule import Rule
from speedup.testing.contents import in_float64
from speedup.testing.given import Given, Maker
from speedup.testing.laws import _samples
from speedup.testing.masks import masked_copy
from speedup.testing.running import number_of, numbers, perturbed, run
from speedup.trace import sandbox, trace

_DRAWS = 6
_FUNCTIONS = ("infer_from_weight", "infer_from_input", "infer_from_output")


def find_missing(
    model: nn.Module,
    dummy_input: Any,
    masks: Mapping[str, Any],
    *,
    registry: Registry,
    rules: Sequence[Rule],
    seed: int = 0,
    rounds: int = 3,
) -> list[str]:
    """Run the calls of some rules on random numbers, and list what holds in every run though no rule says it.

    At each call, for random facts about its operands and outputs: an index of an output that is the same in every run
    for which these facts hold is a constant that could be known; an index of an operand that changes nothing which is
    read, whatever stands there, is unused. What the rule says of neither stays in the small model.

    Only axes along which an index can go are looked at: not those of the model's inputs, nor mixed ones.

    This looks at a few runs, so that a line may be wrong where an op hardly ever depends on its input. It is a report,
    to be read; rules that say too little are exact all the same.

    Args:
        rules: those that are looked at.
        rounds: how many facts per call.

    Returns:
        one line per call and operand or output, empty when nothing is missing.
    """
    masked = masked_copy(model, masks).double().eval()
    keep = normalize_masks(masked, masks)
    inputs = in_float64(resolve_inputs(dummy_input))
    found: dict[tuple[str, str, str], str] = {}
    with sandbox(masked, keep):
        log: list[list[torch.Tensor]] = []
        args, kwargs = inputs
        graph = trace(masked, args, kwargs, registry, log=log)
        samples = _samples(graph, inputs, log)
        real = infer(graph, keep)
        rigid = rigid_axes(graph)
        for node in graph.nodes:
            known = node.rule is not None and any(node.rule is rule for rule in rules)
            if not known or not all(v in samples for v in node.tensors):
                continue
            maker, rng = Maker(real, seed + node.index), np.random.default_rng([seed, node.index])
            for number in range(rounds):
                given = Given(real) if number == 0 else maker.pair(node, samples)[1]
                for what, line in _at(node, given, samples, rigid, rng):
                    found.setdefault((node.op_name, node.path, what), line)
    return list(found.values())


def _at(
    node: Node,
    facts: Facts,
    samples: Mapping[Value, torch.Tensor],
    rigid: Mapping[Value, Sequence[bool]],
    rng: np.random.Generator,
) -> Iterator[tuple[str, str]]:
    """The lines of one call for these facts, with what each is about."""
    constant, unused = _said(node, facts)
    given = [_drawn(node, facts, samples, rng) for _ in range(_DRAWS)]
    runs = [run(node, each) for each in given]
    if any(r is None for r in runs):
        return
    whole = [r for r in runs if r is not None]
    for k, value in enumerate(node.outputs):
        outputs = [r[k] for r in whole]
        if value not in facts.graph.from_input or not value.dtype.is_floating_point:
            continue
        same = np.logical_and.reduce([_equal(outputs[0], o) for o in outputs[1:]])
        for axis, index in _lines(same, constant[value], rigid[value]):
            name = "output" if len(node.outputs) == 1 else f"output{k}"
            why = "is constant whatever the input, and neither infer_from_weight nor infer_from_input says so"
            yield name, _text(node, index, axis, name, why)
            break
    for number, (operand, name) in enumerate(zip(node.operands, node.operand_names, strict=True)):
        place = number_of(node, number) if operand is not None else None
        if operand is None or place is None or not operand.dtype.is_floating_point or follows(node, number):
            continue
        fixed = [a or b for a, b in zip(rigid[operand], _mixed(node, number), strict=True)]
        for axis, index in _lines(np.ones(operand.shape, dtype=bool), unused[number], fixed):
            line = [-1 if a == axis else 1 for a in range(operand.ndim)]
            mask = (np.arange(operand.shape[axis]) == index).reshape(line)
            if all(_unread(node, facts, g, r, place, mask, rng) for g, r in zip(given, whole, strict=True)):
                why = "is read by nobody, and neither infer_from_weight nor infer_from_output says so"
                yield name, _text(node, index, axis, f"operand {name!r}", why)
                break


def _said(node: Node, facts: Facts) -> tuple[dict[Value, Bools], dict[int, Bools]]:
    """What the rule says: of outputs what is known, of operands what is unused."""
    known = {value: nothing(value.ndim) for value in node.outputs}
    unused = {k: nothing(v.ndim) for k, v in enumerate(node.operands) if v is not None}
    for function in _FUNCTIONS:
        for value, number, fact in _returned(node, function, NodeFacts(facts, node)):
            if isinstance(fact, Unused):
                unused[number] = unused[number] | fact.mask
            else:
                known[value] = known[value] | fact.mask
    return known, unused


def _drawn(
    node: Node, facts: Facts, samples: Mapping[Value, torch.Tensor], rng: np.random.Generator
) -> dict[Value, torch.Tensor]:
    moves = facts.graph.from_input
    return {v: numbers(v, samples[v], facts, rng) if v in moves else samples[v] for v in node.tensors}


def _unread(
    node: Node,
    facts: Facts,
    given: Mapping[Value, torch.Tensor],
    outputs: list[torch.Tensor],
    place: int,
    mask: Bools,
    rng: np.random.Generator,
) -> bool:
    """Whether other numbers in these entries change no output that is read."""
    other = perturbed(given[node.tensors[place]], mask, rng)
    again = run(node, given, {place: other})
    if again is None:
        return False
    pairs = zip(node.outputs, outputs, again, strict=True)
    return all(bool((_equal(a, b) | facts.unused(value)).all()) for value, a, b in pairs)


def _equal(a: torch.Tensor, b: torch.Tensor) -> Bools:
    # Where one of them is not a finite number, nothing can be known.
    same = torch.isclose(a, b, rtol=1e-9, atol=1e-12) & torch.isfinite(a)
    return np.asarray(same.numpy())


def _mixed(node: Node, number: int) -> list[bool]:
    """The axes of an operand that its rule keeps whole, whatever is known."""
    assert node.rule is not None
    value = node.operands[number]
    assert value is not None
    try:
        layout = node.layout
    except SignatureError:  # the rule has no axes
        return [False] * value.ndim
    return [bool(dim) and layout.mixed.issuperset(dim) for dim in layout.operands[number] or ()]


def _lines(holds: Bools, said: Bools, fixed: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """(axis, index) for which something holds all along, though it is not said all along; of axes that can shrink."""
    said = np.broadcast_to(said, holds.shape)
    for axis, size in enumerate(holds.shape):
        if size > 1 and not fixed[axis]:
            for index in np.flatnonzero(~along(~holds, axis) & along(~said, axis)):
                yield axis, int(index)


def _text(node: Node, index: int, axis: int, name: str, why: str) -> str:
    assert node.rule is not None
    return f"{node.rule.label} at {node.label} ({node.where}): index {index} of axis {axis} of {name} {why}"
