"""All or nothing: a failure at any stage leaves the model as it was, bit for bit, and the message names the culprit."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import speedup
from speedup import Kept, Node, NodeKeep, Registry, Rule, SignatureError, default_registry
from speedup.build import Parts
from speedup.commit import Transaction
from speedup.errors import CheckError, RuleError, SpeedupError
from speedup.testing import mask_indices, masked_copy, randomize


class Scale(nn.Module):
    """A layer that no installed rule claims; the tests' own rule does."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class ScaleRule(Rule):
    name = "scale of the test"
    modules = (Scale,)
    operands = ("input", "weight")
    axes = "* c, c -> * c"
    sizes = {"features": "c"}  # noqa: RUF012


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.scale, self.two = nn.Linear(4, 8), Scale(8), nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.two(self.scale(self.one(x)))
        self.seen += y.mean(0)
        result: torch.Tensor = y
        return result


def net() -> Net:
    model = randomize(Net())
    model.train()
    model.scale.eval()
    model.two.weight.requires_grad_(False)
    model.one.weight.grad = torch.ones(8, 4)
    model.one.register_forward_hook(lambda m, args, out: None)
    return model


MASKED = {"one.weight": (1, 4), "two.weight": (0,)}


def snapshot(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {"rng": torch.get_rng_state().tolist()}
    for name, module in model.named_modules(remove_duplicate=False):
        found[name] = (id(module), type(module), module.training, sorted(map(str, module.__dict__)))
        found[name, "hooks"] = [(id(k), list(map(id, d.values()))) for k, d in _hooks(module)]
        found[name, "plain"] = {k: copy.copy(v) for k, v in module.__dict__.items() if not k.startswith("_")}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        grad = tensor.grad
        found[name] = (id(tensor), tensor.data_ptr(), tensor.requires_grad, tensor.detach().tolist())
        found[name, "grad"] = (id(grad), None if grad is None else grad.tolist())
    return found


def _hooks(module: nn.Module) -> list[tuple[str, dict[int, Any]]]:
    return [(k, v) for k, v in module.__dict__.items() if "hooks" in k and isinstance(v, dict)]


def registry(rule: Rule) -> Registry:
    return Registry.from_rules(*default_registry().rules, rule)


def refuse(rule: Rule | None = None, error: type[Exception] = SpeedupError) -> str:
    """Run the whole job, which must fail; the model must be as it was. Gives the message."""
    model = net()
    masks = mask_indices(model, MASKED)
    given = torch.randn(2, 4)
    before = snapshot(model)
    job = speedup.ModelSpeedup(model, given, masks, registry=registry(rule or ScaleRule()))
    with pytest.raises(error) as caught:
        job.speedup_model()
    assert snapshot(model) == before
    return str(caught.value)


def test_the_job_of_these_tests_succeeds_when_nothing_is_broken() -> None:
    model = net()
    reference = copy.deepcopy(model).eval()
    with torch.no_grad():
        reference.one.weight[[1, 4]] = 0
        reference.two.weight[0] = 0
    masks = mask_indices(model, MASKED)
    small: Any = speedup.ModelSpeedup(model, torch.randn(2, 4), masks, registry=registry(ScaleRule())).speedup_model()
    assert small.one.weight.shape == (6, 4) and small.scale.features == 6
    x = torch.randn(5, 4)
    assert torch.allclose(small.eval()(x), reference(x), atol=1e-5)


# -- a failure in every function of a rule ----------------------------------------------------------------------------

STAGES = [
    "signature", "held", "infer_from_weight", "infer_from_input", "infer_from_output", "evaluate", "constrain",
    "derived", "derive", "rigid", "fits", "folds", "multiply_accumulates", "replace",
]  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_an_exception_in_a_rule_leaves_the_model_alone_and_is_named(stage: str) -> None:
    def fail(self: Rule, *args: Any, **kwargs: Any) -> Any:
        raise LookupError("broken on purpose")

    fail.__name__ = stage
    message = refuse(type("Broken", (ScaleRule,), {stage: fail})(), RuleError)
    assert "scale of the test" in message and "broken on purpose" in message
    assert "scale (" in message, "the node"
    assert re.search(r"test_transaction\.py:\d+", message), "file and line"


def test_an_error_of_speedup_itself_raised_by_a_rule_passes_through() -> None:
    class Refuses(ScaleRule):
        def constrain(self, node: Node, keep: NodeKeep) -> None:
            raise RuleError("this plugin wants more")

    assert refuse(Refuses(), RuleError) == "this plugin wants more"


def test_a_keyboard_interrupt_in_a_rule_leaves_the_model_alone() -> None:
    class Slow(ScaleRule):
        def replace(self, node: Node, keep: Kept) -> nn.Module:
            raise KeyboardInterrupt

    model, given = net(), torch.randn(2, 4)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        speedup.plan(model, given, mask_indices(model, MASKED), registry=registry(Slow()))
    assert snapshot(model) == before


# -- answers that are wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [None, 3, "module", torch.zeros(2)])
def test_a_replace_that_returns_no_module_is_named(answer: Any) -> None:
    class Broken(ScaleRule):
        def replace(self, node: Node, keep: Kept) -> Any:
            return answer

    message = refuse(Broken(), RuleError)
    assert "scale of the test" in message and "replace" in message and "scale (" in message


def test_a_replace_that_changes_the_numbers_is_refused_and_named() -> None:
    class Wrong(ScaleRule):
        def replace(self, node: Node, keep: Kept) -> nn.Module:
            module = super().replace(node, keep)
            module.weight = nn.Parameter(keep.tensors["weight"] * 1.01)
            return module

    message = refuse(Wrong(), CheckError)
    assert "scale of the test" in message and "scale (" in message and "test_transaction.py" in message


def test_a_replace_of_the_wrong_size_never_reaches_the_user() -> None:
    class Wrong(ScaleRule):
        def replace(self, node: Node, keep: Kept) -> nn.Module:
            return Scale(3).to(keep.tensors["weight"])

    model = net()
    masks = mask_indices(model, MASKED)
    given, before = torch.randn(2, 4), snapshot(model)
    try:
        small = speedup.ModelSpeedup(model, given, masks, registry=registry(Wrong())).speedup_model()
    except SpeedupError:
        assert snapshot(model) == before
    else:
        assert small(torch.randn(5, 4)).shape == (5, 3), "or everything around it was kept"


def test_a_replace_that_writes_into_the_module_is_undone_or_refused() -> None:
    """The module that a rule is given is the caller's own: if a rule changes it all the same, nothing is lost."""

    class Careless(ScaleRule):
        def replace(self, node: Node, keep: Kept) -> nn.Module:
            keep.module.features = 17
            raise RuleError("and then it fails")

    refuse(Careless(), RuleError)


class Join(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.join, self.two = nn.Linear(4, 8), nn.Linear(4, 8), Join(), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.two(self.join(self.one(x), self.other(x)))
        return result


def test_a_constrain_that_keeps_too_little_gives_a_right_model_or_none() -> None:
    class Loose(Rule):
        name, modules, axes = "loose", (Join,), "* c, * c -> * c"

        def constrain(self, node: Node, keep: NodeKeep) -> None:
            pass

    model, given = randomize(Branches()), torch.randn(2, 4)
    masks = mask_indices(
        model, {f"{m}.{p}": r for m, r in (("one", (0, 1)), ("other", (5,))) for p in ("weight", "bias")}
    )
    reference, before = masked_copy(model, masks), snapshot(model)
    try:
        small = speedup.ModelSpeedup(model, given, masks, registry=registry(Loose())).speedup_model()
    except SpeedupError as error:
        assert "loose" in str(error) and snapshot(model) == before
    else:
        assert torch.allclose(small(given), reference(given), atol=1e-5)


def test_a_wrong_fact_is_refused() -> None:
    class Wrong(ScaleRule):
        def infer_from_input(self, node: Node, facts: speedup.NodeFacts) -> Any:
            found = super().infer_from_input(node, facts)
            return {k: speedup.Constant(f.mask, f.value - 0.25) for k, f in found.items()}

    message = refuse(Wrong(), CheckError)
    assert "scale of the test" in message


# -- failures of the engine's own stages ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "solve.first_trace", "sizes.infer", "ways.keep_sets", "settle.arrange", "settle.build", "settle.mend",
        "tries.check", "check.difference", "fold.fold", "fold.demand", "keep.cut_indices", "planned.summarize",
        "commit.Transaction._move_into", "planned.run", "planned.compare",
    ],
)  # fmt: skip
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_any_exception_in_any_stage_leaves_the_model_alone(
    target: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    masks, given = mask_indices(model, MASKED), torch.randn(2, 4)
    before = snapshot(model)
    calls = 0

    def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        raise error

    module, _, name = target.partition(".")
    owner: Any = importlib.import_module(f"speedup.{module}")
    *classes, name = name.split(".")
    for each in classes:
        owner = getattr(owner, each)
    monkeypatch.setattr(owner, name, fail)
    job = speedup.ModelSpeedup(model, given, masks, registry=registry(ScaleRule()), verify=True)
    with pytest.raises((error, SpeedupError)):
        job.speedup_model()
    assert calls
    assert snapshot(model) == before


@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_a_failure_in_the_middle_of_swapping_takes_back_what_was_swapped(
    fail_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    plan = speedup.plan(model, torch.randn(2, 4), mask_indices(model, MASKED), registry=registry(ScaleRule()))
    before = snapshot(model)
    original: Callable[..., None] = Transaction._move_into
    calls = 0

    def sometimes(self: Transaction, old: nn.Module, made: nn.Module) -> None:
        nonlocal calls
        calls += 1
        original(self, old, made)
        if calls == fail_at + 1:
            raise MemoryError("in the middle")

    monkeypatch.setattr(Transaction, "_move_into", sometimes)
    with pytest.raises(MemoryError):
        plan.apply()
    assert calls == fail_at + 1
    assert snapshot(model) == before
    monkeypatch.undo()
    small: Any = plan.apply()
    assert small.one.weight.shape == (6, 4), "the plan can be applied after all"


def test_a_module_of_another_class_takes_the_place_of_the_old_one_everywhere() -> None:
    class Slim(nn.Module):
        def __init__(self, weight: nn.Parameter) -> None:
            super().__init__()
            self.w, self.calls = weight, 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x * self.w

    class Swaps(ScaleRule):
        def replace(self, node: Node, keep: Kept) -> nn.Module:
            weight = keep.tensors["weight"]
            assert isinstance(weight, nn.Parameter)
            return Slim(weight)

    model = net()
    model.alias = model.scale
    small: Any = speedup.ModelSpeedup(
        model, torch.randn(2, 4), mask_indices(model, MASKED), registry=registry(Swaps())
    ).speedup_model()
    assert isinstance(small.scale, Slim) and small.alias is small.scale and not small.scale.training
    assert small.scale.w.shape == (6,) and small.scale.calls == 0, "the check leaves no trace in it either"


def test_the_model_itself_cannot_change_its_class_and_is_left_alone() -> None:
    class Swaps(ScaleRule):
        def replace(self, node: Node, keep: Kept) -> nn.Module:
            return nn.Identity()

        def signature(self, node: Node) -> str:
            return "* c, c -> *"

    class Sum(Scale):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.weight).sum(-1)

    Swaps.modules = (Sum,)
    model, given = Sum(6), torch.randn(2, 6)
    before = snapshot(model)
    with pytest.raises(SpeedupError, match="the model itself"):
        speedup.plan(model, given, mask_indices(model, {"weight": (1,)}), registry=Registry.from_rules(Swaps()))
    assert snapshot(model) == before


def test_a_plan_is_applied_once() -> None:
    model = net()
    plan = speedup.plan(model, torch.randn(2, 4), mask_indices(model, MASKED), registry=registry(ScaleRule()))
    plan.apply()
    with pytest.raises(SpeedupError, match="applied already"):
        plan.apply()


def test_a_plan_for_weights_that_changed_since_is_refused() -> None:
    model = net()
    plan = speedup.plan(model, torch.randn(2, 4), mask_indices(model, MASKED), registry=registry(ScaleRule()))
    with torch.no_grad():
        model.two.weight.mul_(2)
    before = snapshot(model)
    with pytest.raises(SpeedupError, match="plan again"):
        plan.apply()
    assert snapshot(model) == before


def test_numbers_do_not_depend_on_the_global_random_state() -> None:
    shapes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        model = net()
        given = torch.ones(2, 4)
        plan = speedup.plan(model, given, mask_indices(model, MASKED), registry=registry(ScaleRule()))
        shapes.append(plan.to_dict())
    assert shapes[0] == shapes[1]


def test_hooks_of_a_layer_follow_the_user_and_not_the_plan() -> None:
    model = randomize(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))).eval()
    seen: list[str] = []
    early = model[0].register_forward_hook(lambda *args: seen.append("early"))
    plan = speedup.plan(model, torch.randn(1, 4), mask_indices(model, {"0.weight": (1,)}))
    early.remove()
    model[0].register_forward_hook(lambda *args: seen.append("late"))
    plan.apply()
    seen.clear()
    model(torch.randn(1, 4))
    assert model[0].out_features == 3 and seen == ["late"]


def test_an_exception_in_the_parts_of_a_call_is_named() -> None:
    """Parts are asked for by the call of a function, which has no node yet."""

    class Fails(Rule):
        name = "parts of the test"
        functions = (torch.kron,)

        def in_parts(self, function: Any, args: Any, kwargs: Any) -> Any:
            raise LookupError("broken on purpose")

    class Distance(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.kron(x, x)

    model = nn.Sequential(nn.Linear(3, 4), Distance())
    masks = {"0": {"weight": torch.ones(4, 3)}}
    with pytest.raises(RuleError, match=r"'parts of the test'.* in_parts at torch.kron .*broken on purpose"):
        speedup.plan(model, torch.randn(2, 3), masks, registry=Registry.from_rules(*default_registry().rules, Fails()))


def test_parts_that_give_something_else_are_not_taken() -> None:
    """All runs are made in parts, so that the check would not see it."""

    class Wrong(Rule):
        name = "parts of the test"
        functions = (torch.kron,)

        def in_parts(self, function: Any, args: Any, kwargs: Any) -> Any:
            return lambda x, y: torch.einsum("ab,cd->acbd", x, y + self.error).flatten(2).flatten(0, 1)

        def signature(self, node: Any) -> str:
            raise SignatureError("another form")

    class Product(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.kron(x, x)

    for error in (0.0, 1.0):
        rule = Wrong()
        rule.error = error  # type: ignore[attr-defined]
        model = randomize(nn.Sequential(nn.Linear(3, 4), Product(), nn.Linear(16, 2))).double()
        masks = mask_indices(model, {"0.weight": [1], "0.bias": [1]})
        registry = Registry.from_rules(*default_registry().rules, rule)
        plan = speedup.plan(model, torch.randn(2, 3, dtype=torch.float64), masks, registry=registry)
        barriers = [n for n in plan.graph.nodes if n.is_barrier]
        assert [n.op_name for n in barriers] == (["torch.kron"] if error else [])
        assert all("another form" in n.note for n in barriers)


def test_modules_of_other_types_are_looked_for_once() -> None:
    walks = 0

    class Walked(nn.Sequential):
        def modules(self) -> Iterator[nn.Module]:
            nonlocal walks
            walks += 1
            return super().modules()

    norms = [nn.BatchNorm1d(4) for _ in range(3)]
    net = Walked(*norms, nn.Sequential(norms[0], nn.Linear(4, 4)))
    transaction = Transaction(net, Parts())
    counts = []
    for number in (1, 3):
        walks = 0
        transaction.put({str(i): nn.Identity() for i in range(number)})
        counts.append(walks)
        assert [type(m) for m in net[:3]] == [nn.Identity] * number + [nn.BatchNorm1d] * (3 - number)
        assert net[3][0] is net[0], "a module that stands at two places"
        transaction.undo()
        assert list(net[:3]) == norms and net[3][0] is norms[0]
    assert counts[0] == counts[1]
