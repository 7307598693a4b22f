"""The laws that every rule obeys, checked on facts that are made up."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from speedup.arrays import Bools, nothing
from speedup.errors import RuleError
from speedup.facts import Affine, Constant, Fact, Unused
from speedup.flow import placing
from speedup.graph import Graph
from speedup.infer import _returned, infer
from speedup.inputs import resolve_inputs
from speedup.known import Facts, NodeFacts
from speedup.masks import normalize_masks
from speedup.node import Node, Value
from speedup.registry import Registry, default_registry
from speedup.testing.contents import in_float64
from speedup.testing.given import Given, Maker
from speedup.testing.masks import masked_copy
from speedup.testing.running import (
    differs,
    first,
    isfinite,
    many_at_once,
    number_of,
    numbers,
    perturbed,
    run,
    unexplained,
)
from speedup.testing.scales import wrong_scaling
from speedup.trace import sandbox, trace
from speedup.trace.outputs import tensors_in

_FUNCTIONS = ("infer_from_weight", "infer_from_input", "infer_from_output")

Answers = dict[tuple[str, Value, int], Fact]


def check_laws(
    model: nn.Module,
    dummy_input: Any,
    masks: Mapping[str, Any],
    *,
    registry: Registry | None = None,
    seed: int = 0,
    rounds: int = 10,
) -> frozenset[str]:
    """Ask every rule that the model needs about random facts, and assert the laws of inference.

    At every call, for random facts F1 and F2 about its operands and outputs, of which F2 says all that F1 does:

    * *pure*: a rule that is asked again answers the same, and changes neither the facts nor the weights;
    * *monotone*: what it answers to F1 it answers to F2 too, with the same values;
    * *sound*: in runs of the call on random numbers for which the facts hold, entries said to be constant have the
      value said, affine ones are combinations of unknowns that they share, and other numbers in entries said to be
      unused change no output, but for those that are unused themselves;
    * entries that ``sums_to_one`` speaks of are not negative, and sum up to 1;
    * where a rule says ``scales``, every output entry is the input entry times a number plus a number.

    And for the facts of the model itself: asked again at the end, no rule says more; and in runs of the model on
    random inputs, constants are constants.

    Args:
        masks: of the weights, whose masked entries are what a rule knows to be 0.
        registry: the rules to use; by default those of the installed plugins.
        seed: for the facts and the numbers.
        rounds: how many pairs of facts per call.

    Returns:
        the names of the rules that were asked.

    Raises:
        AssertionError: a law is broken; the message names the rule, the call, the law and the entry.
    """
    masked = masked_copy(model, masks).double().eval()
    keep = normalize_masks(masked, masks)
    inputs = in_float64(resolve_inputs(dummy_input))
    rules = registry if registry is not None else default_registry()
    with sandbox(masked, keep):
        log: list[list[torch.Tensor]] = []
        args, kwargs = inputs
        graph = trace(masked, args, kwargs, rules, log=log)
        samples = _samples(graph, inputs, log)
        failure, real = None, Facts(graph, keep)
        try:
            real = infer(graph, keep)
        except RuleError as error:
            failure = error  # a law tells more of what is wrong
        asked = set()
        for node in graph.nodes:
            if node.rule is not None:
                _Laws(node, real, samples, seed + node.index).check(rounds)
                asked.add(node.rule.name)
        for node in (*graph.nodes, *graph.passed):
            if node.rule is not None and node.rule.scales:
                at = wrong_scaling(node, samples, seed + node.index)
                assert at is None, _text(node, "scales", "not true", f"entry {at} is no scaled and shifted entry")
                asked.add(node.rule.name)
        if failure is not None:
            raise AssertionError(str(failure)) from failure
        _check_fixpoint(graph, real)
        _check_constants_of_runs(masked, inputs, rules, graph, real, seed)
    return frozenset(asked)


def _samples(graph: Graph, inputs: Any, log: list[list[torch.Tensor]]) -> dict[Value, torch.Tensor]:
    """The contents of every value in the traced run, as far as they are known."""
    samples = dict(zip(graph.inputs, tensors_in(inputs), strict=True))
    for node, outputs in zip(graph.nodes, log, strict=True):
        samples.update(zip(node.outputs, outputs, strict=True))
    for value in graph.values:
        if value.tensor is not None:
            samples[value] = value.tensor.detach()
    return samples


def _check_fixpoint(graph: Graph, facts: Facts) -> None:
    for node in graph.nodes:
        for function in _FUNCTIONS if node.rule is not None else ():
            for value, number, fact in _returned(node, function, NodeFacts(facts, node)):
                if isinstance(fact, Unused):
                    known = facts.claims.get((value, node, number), nothing(value.ndim))
                else:
                    known = facts.mask(value) if isinstance(fact, Constant) else facts.known(value)
                new = first(fact.mask & ~known)
                why = f"asked again at the end, it says more of entry {new} of {value.label}"
                assert new is None, _text(node, function, "not idempotent", why)


def _check_constants_of_runs(
    model: nn.Module, inputs: Any, rules: Registry, graph: Graph, facts: Facts, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor + torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    for _ in range(2):
        log: list[list[torch.Tensor]] = []
        args, kwargs = pytree.tree_map_only(torch.Tensor, moved, inputs)
        again = trace(model, args, kwargs, rules, log=log)
        for node, other, outputs in zip(graph.nodes, again.nodes, log, strict=False):
            if node.op_name != other.op_name or [v.shape for v in node.outputs] != [t.shape for t in outputs]:
                break  # the input sends Python another way
            for value, output in zip(node.outputs, outputs, strict=True):
                known = facts.constants.get(value)
                at = _not_constant(known, output) if known is not None else None
                assert at is None, _text(node, "inference", "not sound", f"entry {at} of {value.label} is no constant")


def _not_constant(known: Constant, output: torch.Tensor) -> tuple[int, ...] | None:
    if output.is_complex():
        return None
    said = torch.from_numpy(np.broadcast_to(known.value, tuple(output.shape)).copy())
    return differs(output, said, known.mask)


class _Laws:
    """The laws at one call."""

    def __init__(self, node: Node, real: Facts, samples: dict[Value, torch.Tensor], seed: int) -> None:
        self.node = node
        self.samples = samples
        self.maker = Maker(real, seed)
        self.rng = np.random.default_rng([seed, 1])
        self.runs = all(v in samples for v in node.tensors)

    def check(self, rounds: int) -> None:
        self._rows_of_one()
        nothing_known = Given(self.maker.real)
        bare = self._ask(nothing_known)
        for _ in range(rounds):
            less, more = self.maker.pair(self.node, self.samples)
            one, two = self._ask(less), self._ask(more)
            given = {v: self._numbers(v, more) for v in self.node.tensors} if self.runs else {}
            given |= {v: self.samples[v] for v in placing(self.node) if self.runs}  # others may be out of bounds
            outputs = run(self.node, given) if self.runs else None
            # An entry that is not finite (0 / 0) has no constant; only the larger facts may tell that.
            finite = (
                {} if outputs is None else {v: isfinite(t) for v, t in zip(self.node.outputs, outputs, strict=True)}
            )
            self._monotone(bare, one, finite)
            # A fact has unknowns along one axis: where a second comes in, what they make together cannot be said.
            one_axis = len({fact.axis for fact in more.affine.values()}) < 2
            self._monotone(one, two, finite, Fact if one_axis else (Constant, Unused))
            if outputs is not None:
                self._sound(more, two, given, outputs)

    def _ask(self, facts: Given) -> Answers:
        """All answers of the rule, which must be pure."""
        node = self.node
        weights = [v.tensor for v in node.tensors if v.tensor is not None]
        kept = [w.detach().clone() for w in weights]
        before = facts.snapshot()
        rounds: list[Answers] = []
        for _ in range(2):
            found: Answers = {}
            for function in _FUNCTIONS:
                for value, number, fact in _returned(node, function, NodeFacts(facts, node)):
                    self._well_formed(function, value, fact)
                    found[function, value, number] = copy.deepcopy(fact)
            rounds.append(found)
            same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, facts.snapshot(), strict=True))
            assert same, _text(node, "inference", "not pure", "it changes the facts that it is given")
            whole = all(torch.equal(a, b.detach()) or bool((a != a).any()) for a, b in zip(kept, weights, strict=True))
            assert whole, _text(node, "inference", "not pure", "it changes a weight")
        for key in rounds[0].keys() | rounds[1].keys():
            one, two = rounds[0].get(key), rounds[1].get(key)
            same = one is not None and two is not None and _equal(one, two)
            assert same, _text(node, key[0], "not pure", f"asked again it says another thing of {key[1].label}")
        return rounds[0]

    def _well_formed(self, function: str, value: Value, fact: Fact) -> None:
        for array in _arrays(fact):
            fits = array.ndim == value.ndim and all(a in (1, s) for a, s in zip(array.shape, value.shape, strict=True))
            why = f"a fact of shape {array.shape} about {value.label} of shape {value.shape}"
            assert fits, _text(self.node, function, "not well-formed", why)

    def _numbers(self, value: Value, facts: Given) -> torch.Tensor:
        """Random numbers for which the facts hold; weights and what is made of them are what they are."""
        sample = self.samples[value]
        return numbers(value, sample, facts, self.rng) if value in facts.graph.from_input else sample

    def _monotone(self, less: Answers, more: Answers, finite: Mapping[Value, Bools], kinds: Any = Fact) -> None:
        """What is said with less known is said with more known."""
        for (function, value, number), fact in less.items():
            if not isinstance(fact, kinds) or (isinstance(fact, Affine) and fact.derived):
                continue
            said = nothing(value.ndim)
            for (_, other, place), answer in more.items():
                if other is value and place == number:
                    said = said | answer.mask
            lost = first(fact.mask & ~said & finite.get(value, np.True_) if number < 0 else fact.mask & ~said)
            kind = type(fact).__name__.lower()
            name = value.label if number < 0 else f"operand {self.node.operand_names[number]!r}"
            why = f"with more facts, entry {lost} of {name} is no longer {kind}"
            assert lost is None, _text(self.node, function, "not monotone", why)
        before, after = _constants(less), _constants(more)
        for value in before.keys() & after.keys():
            one, two = before[value], after[value]
            same = np.abs(one.value - two.value) <= 1e-12 + 1e-9 * np.abs(one.value)
            changed = first(one.mask & two.mask & ~same)
            why = f"with more facts, entry {changed} of {value.label} is another constant"
            assert changed is None, _text(self.node, "inference", "not monotone", why)

    def _rows_of_one(self) -> None:
        axis = self.node.rows
        if axis is None or self.node.outputs[0] not in self.samples:
            return
        rows = self.samples[self.node.outputs[0]]
        sums = rows.sum(axis)
        weights = (rows >= 0).all(axis) & torch.isclose(sums, torch.ones_like(sums))
        wrong = first((~weights & torch.isfinite(rows).all(axis)).numpy())
        why = f"row {wrong} along axis {axis} has a negative entry, or does not sum up to 1"
        assert wrong is None, _text(self.node, "sums_to_one", "not sound", why)

    def _sound(
        self, facts: Given, answers: Answers, given: Mapping[Value, torch.Tensor], outputs: list[torch.Tensor]
    ) -> None:
        for (function, value, number), fact in answers.items():
            if isinstance(fact, Unused):
                self._sound_unused(function, number, fact, facts, given, outputs)
                continue
            output = outputs[self.node.outputs.index(value)]
            if output.is_complex():
                continue
            if isinstance(fact, Constant):
                at = _not_constant(fact, output)
            else:
                at = unexplained(output, fact.mask, fact.terms, fact.offset, fact.axis)
                at = many_at_once(output, fact) if at is None and fact.one_hot else at
            kind = "constant" if isinstance(fact, Constant) else "affine"
            assert at is None, _text(
                self.node, function, "not sound", f"entry {at} of {value.label} is not the {kind} that it is said to be"
            )

    def _sound_unused(
        self,
        function: str,
        number: int,
        fact: Unused,
        facts: Given,
        given: Mapping[Value, torch.Tensor],
        outputs: list[torch.Tensor],
    ) -> None:
        place = number_of(self.node, number)
        if place is None or not fact.mask.any():
            return
        tensor = given[self.node.tensors[place]]
        if not tensor.is_floating_point():
            return
        again = run(self.node, given, {place: perturbed(tensor, fact.mask, self.rng)})
        if again is None:
            return
        for value, a, b in zip(self.node.outputs, outputs, again, strict=True):
            at = differs(a, b, ~facts.unused(value) & isfinite(a))
            name = self.node.operand_names[number]
            why = f"entry {at} of {value.label} depends on entries of operand {name!r} that are said to be unused"
            assert at is None, _text(self.node, function, "not sound", why)


def _constants(answers: Answers) -> dict[Value, Constant]:
    """The constants among the answers; where two functions answer, those of the later one."""
    return {value: fact for (_, value, _), fact in answers.items() if isinstance(fact, Constant)}


def _arrays(fact: Fact) -> list[np.ndarray[tuple[int, ...], np.dtype[Any]]]:
    if isinstance(fact, Constant):
        return [fact.mask, fact.value]
    return [fact.mask, fact.offset, *fact.terms] if isinstance(fact, Affine) else [fact.mask]


def _equal(a: Fact, b: Fact) -> bool:
    one, two = _arrays(a), _arrays(b)
    return len(one) == len(two) and all(
        x.shape == y.shape and np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        for x, y in zip(one, two, strict=True)
    )


def _text(node: Node, function: str, law: str, why: str) -> str:
    name = node.rule.name if node.rule is not None else ""
    return f"rule {name!r} at {node.label} ({node.where}): {function} is {law}: {why}"
