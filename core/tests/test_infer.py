"""Inference: what facts reach, and what the engine does about rules that break their contract."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup import Constant, Node, NodeFacts, Registry, Rule, Unused, default_registry
from speedup.errors import CheckError, RuleError
from speedup.facts import affine
from speedup.graph import Graph
from speedup.infer import infer
from speedup.known import Facts
from speedup.masks import normalize_masks
from speedup.testing import check_equal, mask_indices, randomize
from speedup.trace import sandbox, trace


def facts_of(model: nn.Module, given: torch.Tensor, masks: Any, rules: Registry | None = None) -> tuple[Graph, Facts]:
    keep = normalize_masks(model, masks)
    with sandbox(model, keep):
        graph = trace(model, (given,), {}, rules or default_registry())
        return graph, infer(graph, keep)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.out(F.relu(self.norm(self.conv(x))))
        return result


class Haar(nn.Module):
    """Differences of neighbours, from far away: no rule enters it, and a constant comes out as 0, except at the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - F.pad(x[..., 1:], (0, 1))


class Precise(nn.Module):
    """Of two types of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.last = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.net(x).double())
        return result


# -- what is found ----------------------------------------------------------------------------------------------------


def test_the_numbers_of_a_model_are_those_of_its_masked_tensors_whatever_their_type() -> None:
    model = randomize(Precise())
    masks = mask_indices(model, {"net.norm.bias": [1], "last.1.bias": [0], "last.0.weight": [0]})
    graph, facts = facts_of(model, torch.randn(2, 3, 9, 9), masks)
    held = [v for v in graph.values if v.tensor is not None]
    assert {v.dtype for v in held} >= {torch.float32, torch.float64}
    with sandbox(model, normalize_masks(model, masks)):
        for value in held:
            numbers = facts.value(value)
            assert np.array_equal(numbers, value.contents().double().numpy()) and not numbers.flags.writeable


def test_a_masked_filter_is_its_bias_and_goes_through_norm_and_activation_with_its_value() -> None:
    model = randomize(Net()).double().eval()
    graph, facts = facts_of(model, torch.randn(2, 3, 8, 8).double(), mask_indices(model, {"conv.weight": (1, 4)}))
    conv, norm, relu = (n.outputs[0] for n in graph.nodes[:3])
    for value in (conv, norm, relu):
        assert facts.mask(value).shape == (1, 6, 1, 1)
        assert np.flatnonzero(facts.mask(value)).tolist() == [1, 4]
    assert facts.value(conv)[0, 4, 0, 0] == pytest.approx(model.conv.bias[4].item())
    with torch.no_grad():
        b = model.conv.bias.reshape(1, 6, 1, 1)
        wanted = model.norm(b)
    assert facts.value(norm)[0, [1, 4], 0, 0] == pytest.approx(wanted[0, [1, 4], 0, 0].numpy())
    assert facts.value(relu)[0, [1, 4], 0, 0] == pytest.approx(wanted.relu()[0, [1, 4], 0, 0].numpy())


def test_a_masked_column_makes_the_input_unused_all_the_way_up() -> None:
    model = randomize(Net()).double().eval()
    graph, facts = facts_of(
        model, torch.randn(2, 3, 8, 8).double(), mask_indices(model, {"out.weight": (0, 5)}, axis=1)
    )
    for node in graph.nodes[:3]:
        assert np.flatnonzero(facts.unused(node.outputs[0])).tolist() == [0, 5]
    # What a call alone reads is not asked about: it keeps what the other operands keep.
    assert all(len(v.uses) > 1 for v, _, _ in facts.claims if v.is_source)


def test_combinations_that_several_rules_are_shown_are_read_only() -> None:
    model = randomize(nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2)))
    graph, facts = facts_of(model, torch.randn(4, 3), mask_indices(model, {"0.weight": [1, 3]}))
    (reader,) = (n for n in graph.nodes if n.path == "2")
    shown = NodeFacts(facts, reader).affine(0)
    assert shown is not None and shown.mask.ravel().tolist() == [False, True, False, True, False, False]
    for array in (shown.mask, *shown.numbers):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_a_combination_that_turns_out_to_be_a_constant_is_shown_as_one() -> None:
    model = randomize(nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2)))
    graph, facts = facts_of(model, torch.randn(4, 3), mask_indices(model, {"0.weight": [1, 3]}))
    (reader,) = (n for n in graph.nodes if n.path == "2")
    value = reader.operands[0]
    assert value is not None and value.producer is not None
    before, at = NodeFacts(facts, reader).affine(0), np.arange(6)[None] == 1
    assert before is not None and not before.constant.any()
    assert facts.add_constant(value.producer, value, Constant(at, np.where(at, 2.0, 0.0)))
    shown = NodeFacts(facts, reader).affine(0)
    assert shown is not None and shown.constant.tolist() == at.tolist()
    assert shown.offset[0, 1] == 2 and shown.mask.tolist() == before.mask.tolist()
    for term, known in zip(shown.terms, before.terms, strict=True):
        assert np.array_equal(term, np.where(at, 0.0, known))


def test_no_number_is_left_of_a_combination_that_does_not_count() -> None:
    model = randomize(nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2)))
    graph, _ = facts_of(model, torch.randn(4, 3), mask_indices(model, {"0.weight": [1]}))
    (maker,) = (n for n in graph.nodes if n.path == "1")
    (value,) = maker.outputs
    line = np.arange(6.0)[None]
    said = affine(1, line > 2, [line, np.where(line == 3, 2.0, 0.0)], line)
    facts = Facts(graph, {}, {value: line == 3})
    assert said is not None and facts.add_affine(maker, value, said)
    known = facts.affine[value]
    assert known.mask.tolist() == (line > 3).tolist()
    assert known.stacked.tolist() == [np.where(line > 3, line, 0.0).tolist()] * 2, "the other unknown is none of theirs"


def test_an_output_of_the_model_is_never_unused() -> None:
    model = randomize(Net()).double().eval()
    graph, facts = facts_of(model, torch.randn(2, 3, 8, 8).double(), mask_indices(model, {"out.weight": (0,)}))
    assert facts.mask(graph.outputs[0]).any() and not facts.unused(graph.outputs[0]).any()


def test_a_value_is_unused_only_where_none_of_its_readers_reads_it() -> None:
    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Conv2d(6, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            result: torch.Tensor = self.out(y) + self.other(y)
            return result

    model = randomize(Two()).double().eval()
    masks = mask_indices(model, {"out.weight": (0, 1, 2), "other.weight": (1, 2, 3)}, axis=1)
    graph, facts = facts_of(model, torch.randn(2, 3, 8, 8).double(), masks)
    assert np.flatnonzero(facts.unused(graph.nodes[0].outputs[0])).tolist() == [1, 2]


def test_zero_times_anything_is_zero_and_its_partner_unused() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.out(self.a(x) * self.b(x))
            return result

    model = randomize(Product()).double().eval()
    masks = mask_indices(model, {"a.weight": (0, 3), "a.bias": (0, 3)})
    graph, facts = facts_of(model, torch.randn(2, 4).double(), masks)
    b = next(n.outputs[0] for n in graph.nodes if n.path == "b")
    assert np.flatnonzero(facts.unused(b)).tolist() == [0, 3]
    assert check_equal(model, torch.randn(2, 4), masks).shape("b.weight") == (4, 4)


@pytest.mark.parametrize("zeros", [False, True])
def test_a_rule_that_keeps_zeros_says_nothing_of_other_constants(zeros: bool) -> None:
    haar = Rule(name="haar", modules=(Haar,), axes="n c ~ -> n c ~", keeps_zeros=True)
    rules = Registry.from_rules(*default_registry().rules, haar)
    model = randomize(nn.Sequential(nn.Conv1d(3, 6, 1), Haar(), nn.Conv1d(6, 2, 1))).double().eval()
    masks = mask_indices(model, {"0.weight": (1, 4), **({"0.bias": (1, 4)} if zeros else {})})
    x = torch.randn(2, 3, 8).double()
    graph, facts = facts_of(model, x, masks, rules)
    known = facts.zero(graph.nodes[1].outputs[0])
    assert np.flatnonzero(known).tolist() == ([1, 4] if zeros else [])
    small = speedup.ModelSpeedup(model, x, masks, registry=rules).speedup_model()
    assert small[0].weight.shape[0] == (4 if zeros else 6)  # type: ignore[index, union-attr]


def test_without_masks_nothing_that_depends_on_the_input_is_constant() -> None:
    model = randomize(Net()).double().eval()
    masks = {"conv": {"weight": torch.ones_like(model.conv.weight)}}
    graph, facts = facts_of(model, torch.randn(2, 3, 8, 8).double(), masks)
    assert not any(facts.mask(v).any() for n in graph.nodes for v in n.outputs)


def test_a_true_zero_in_a_weight_is_no_mask() -> None:
    """The weight may be trained further: only what is masked is known to stay 0."""
    model = randomize(Net()).eval()
    with torch.no_grad():
        model.conv.weight[2] = 0
    result = check_equal(model, torch.randn(2, 3, 8, 8), mask_indices(model, {"conv.weight": (1,)}))
    assert result.shape("conv.weight")[0] == 5


class Table(nn.Module):
    """Rows of a table, at indices that are data."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, 5, generator=torch.Generator().manual_seed(0)))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[ids]


TABLE = Rule(name="table", modules=(Table,), operands=("weight", "ids"), axes="~v d, * -> * d", indices=("ids",))


@pytest.mark.parametrize(("rows", "constant"), [(4, [1]), (1, [0, 1, 2, 3, 4])])
def test_what_is_the_same_wherever_an_index_points_comes_out(rows: int, constant: list[int]) -> None:
    model = Table(rows)
    model.weight.data[:, 2] = 0.5  # equal, but no mask says that it must be
    mask = torch.ones(rows, 5)
    mask[:, 1], mask[1:, 3] = 0, 0
    graph, facts = facts_of(model, torch.tensor([[0, 0, 0]]), {"": {"weight": mask}}, Registry.from_rules(TABLE))
    (node,) = graph.nodes
    known = np.broadcast_to(facts.mask(node.outputs[0]), (1, 1, 5))[0, 0]
    assert np.flatnonzero(known).tolist() == constant
    masked = np.where(mask[0].numpy() == 0, 0, model.weight.detach()[0].numpy())
    assert np.broadcast_to(facts.value(node.outputs[0]), (1, 1, 5))[0, 0, known] == pytest.approx(masked[known])


# -- rules that break the contract ------------------------------------------------------------------------------------


class Mul(nn.Module):
    """A layer that the test's own rule claims."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.mul, self.again, self.two = nn.Linear(4, 6), Mul(), Mul(), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mul(self.one(x))
        result: torch.Tensor = self.two(self.again(y))
        return result


def with_rule(rule: Rule) -> Registry:
    return Registry.from_rules(*default_registry().rules, rule)


def plan_with(rule: Rule) -> speedup.Plan:
    model = randomize(Chain())
    masks = mask_indices(model, {"one.weight": (1, 2), "two.weight": (0,)})
    return speedup.plan(model, torch.randn(2, 4), masks, registry=with_rule(rule))


class Base(Rule):
    name = "the faulty one"
    modules = (Mul,)
    operands = ("input", "weight")
    axes = "* c, c -> * c"


def test_the_rule_of_these_tests_is_right_when_it_is_not_broken() -> None:
    model = randomize(Chain())
    result = check_equal(
        model, torch.randn(2, 4), mask_indices(model, {"one.weight": (1, 2)}), registry=with_rule(Base())
    )
    assert result.shape("one.weight") == (4, 4) and result.shape("mul.weight") == (4,)


FUNCTIONS = ("infer_from_weight", "infer_from_input", "infer_from_output")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_exception_in_a_rule_names_rule_function_node_and_line(function: str) -> None:
    def fail(self: Rule, node: Node, facts: NodeFacts) -> Any:
        raise ZeroDivisionError("oh")

    fail.__name__ = function
    rule = type("Broken", (Base,), {function: fail})()
    with pytest.raises(RuleError) as caught:
        plan_with(rule)
    message = str(caught.value)
    assert "'the faulty one' at " in message and ".Mul" in message and function in message
    assert "ZeroDivisionError" in message and "test_infer.py:" in message
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


RUBBISH: dict[str, Any] = {
    "None": None,
    "a list": [1],
    "an unknown name": {"nonsense": Unused(np.ones((1, 6), dtype=bool))},
    "a constant for an operand": {"input": Constant(np.ones((1, 6), dtype=bool), np.ones((1, 6)))},
    "unused for an output": {"output": Unused(np.ones((1, 6), dtype=bool))},
    "no fact at all": {"output": 7},
    "wrong rank": {"output": Constant(np.ones(6, dtype=bool), np.ones(6))},
    "wrong size": {"output": Constant(np.ones((1, 5), dtype=bool), np.ones((1, 5)))},
}


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_a_rule_that_returns_rubbish_is_named(rubbish: str) -> None:
    class Broken(Base):
        def infer_from_input(self, node: Node, facts: NodeFacts) -> Any:
            return RUBBISH[rubbish]

    with pytest.raises(RuleError, match="the faulty one"):
        plan_with(Broken())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_mask_or_value_that_is_no_array_of_the_right_kind_is_named(function: str) -> None:
    class Broken(Base):
        pass

    fact: Any = {"input": Unused("yes")} if function != "infer_from_input" else {"output": Constant("yes", "no")}  # type: ignore[arg-type]
    setattr(Broken, function, lambda self, node, facts: fact)
    with pytest.raises(RuleError, match="the faulty one"):
        plan_with(Broken())


def test_taking_back_a_constant_is_caught_and_named() -> None:
    class Forgetful(Base):
        def __init__(self) -> None:
            super().__init__()
            self.asked = 0

        def infer_from_weight(self, node: Node, facts: NodeFacts) -> Any:
            return {"output": Constant(np.array([[1, 1, 0, 0, 0, 0]], dtype=bool), np.zeros((1, 6)))}

        def infer_from_input(self, node: Node, facts: NodeFacts) -> Any:
            return {"output": Constant(np.array([[1, 0, 0, 0, 0, 0]], dtype=bool), np.zeros((1, 6)))}

    with pytest.raises(RuleError, match=r"'the faulty one' at mul .*takes back a constant"):
        plan_with(Forgetful())


def test_taking_back_an_unused_entry_is_caught_and_named() -> None:
    class Forgetful(Base):
        def infer_from_weight(self, node: Node, facts: NodeFacts) -> Any:
            return {"input": Unused(np.array([[1, 1, 0, 0, 0, 0]], dtype=bool))}

        def infer_from_output(self, node: Node, facts: NodeFacts) -> Any:
            return {"input": Unused(np.array([[1, 0, 0, 0, 0, 0]], dtype=bool))}

    with pytest.raises(RuleError, match=r"'the faulty one' at again .*takes back an unused entry"):
        plan_with(Forgetful())


def test_a_constant_that_changes_its_value_is_caught_and_named() -> None:
    class Fickle(Base):
        def infer_from_weight(self, node: Node, facts: NodeFacts) -> Any:
            return {"output": Constant(np.array([[1, 0, 0, 0, 0, 0]], dtype=bool), np.zeros((1, 6)))}

        def infer_from_input(self, node: Node, facts: NodeFacts) -> Any:
            return {"output": Constant(np.array([[1, 0, 0, 0, 0, 0]], dtype=bool), np.ones((1, 6)))}

    with pytest.raises(RuleError, match=r"'the faulty one'.*another constant"):
        plan_with(Fickle())


def test_inference_ends_for_a_rule_that_counts_its_calls() -> None:
    calls = 0

    class Counting(Base):
        def infer_from_input(self, node: Node, facts: NodeFacts) -> Any:
            nonlocal calls
            calls += 1
            return super().infer_from_input(node, facts)

    plan_with(Counting())
    # Two nodes, and a graph without cycles: one sweep forward (each at most once more after its producer).
    assert 2 <= calls <= 6


class Dot(nn.Module):
    """A weighted sum along the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).sum(-1)


class DotRule(Rule):
    name = "the lying one"
    modules = (Dot,)
    operands = ("input", "weight")
    axes = "* c, c -> *"


class WrongColumn(DotRule):
    def infer_from_weight(self, node: Node, facts: NodeFacts) -> Any:
        return {"input": Unused(np.array([[0, 1, 0, 0, 0, 0]], dtype=bool))}


class WrongValue(DotRule):
    modules = (Mul,)
    axes = "* c, c -> * c"

    def infer_from_input(self, node: Node, facts: NodeFacts) -> Any:
        found = super().infer_from_input(node, facts)
        return {name: Constant(fact.mask, fact.value + 1) for name, fact in found.items()}


@pytest.mark.parametrize(("rule", "layer"), [(WrongColumn(), Dot), (WrongValue(), Mul)])
def test_a_wrong_fact_is_refused_by_the_check_and_its_rule_named(rule: Rule, layer: type[nn.Module]) -> None:
    model = randomize(nn.Sequential(nn.Linear(4, 6), layer(), nn.Linear(6, 2) if layer is Mul else nn.Identity()))
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(CheckError, match="'the lying one'"):
        speedup.plan(model, torch.randn(2, 4), mask_indices(model, {"0.weight": (2,)}), registry=with_rule(rule))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


# -- unknown ops ------------------------------------------------------------------------------------------------------


class Strange(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


def _barrier_cases() -> Iterable[tuple[str, Any]]:
    yield "in the middle", lambda s, x: s.two(Strange()(s.one(x)))
    yield "beside the way", lambda s, x: s.two(s.one(x)) + torch.special.bessel_j0(x).sum()
    yield "on one of two readers", lambda s, x: s.two(s.one(x) + torch.special.bessel_j0(s.one(x)))


@pytest.mark.parametrize(("where", "forward"), list(_barrier_cases()))
def test_an_unknown_op_is_a_barrier_around_which_all_else_works(where: str, forward: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.zero, self.first, self.one, self.two = (
                nn.Linear(4, 6),
                nn.Linear(6, 4),
                nn.Linear(4, 6),
                nn.Linear(6, 2),
            )

        def forward(self, x: torch.Tensor) -> Any:
            return forward(self, self.first(self.zero(x)))

    model = randomize(Model())
    masks = mask_indices(model, {f"{m}.{p}": (0, 2) for m in ("zero", "one") for p in ("weight", "bias")})
    result = check_equal(model, torch.randn(2, 4), masks, [torch.randn(5, 4)])
    assert result.shape("zero.weight") == (4, 4), "what lies before the barrier goes"
    assert any("bessel_j0" in b and "test_infer.py:" in b for b in result.plan.report.barriers)
    expected = (4, 4) if where == "beside the way" else (6, 4)
    assert result.shape("one.weight") == expected


def test_without_any_rule_nothing_goes_and_everything_is_right() -> None:
    model = randomize(Chain())
    masks = mask_indices(model, {"one.weight": (1, 2)})
    result = check_equal(model, torch.randn(2, 4), masks, registry=Registry.from_rules())
    assert result.kept == 1.0 and len(result.plan.report.barriers) >= 3
