"""What the recorder sees of a model, whatever Python its forward is made of: nothing that reads a tensor may be missed.

Most tests ask through the front door: the small model must give the same answers, and what could go must be gone.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import speedup
from speedup.errors import SpeedupError, TraceError
from speedup.graph import Graph
from speedup.registry import default_registry
from speedup.testing import Result, check_equal, mask_indices, randomize
from speedup.trace import sandbox, trace


class Base(nn.Module):
    """Two linear layers; ``forward`` says what happens between them. Of the 8 hidden entries 3 are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 8)
        self.two = nn.Linear(8, 3)

    dropped = (1, 4, 6)


def check(model: nn.Module, *others: Any, given: Any = None, **masks: tuple[int, ...]) -> Result:
    randomize(model)
    dropped = {name.replace("__", "."): rows for name, rows in masks.items()} or {
        "one.weight": Base.dropped,
        "one.bias": Base.dropped,
    }
    given = torch.randn(2, 4) if given is None else given
    return check_equal(model, given, mask_indices(model, dropped), others or [torch.randn(5, 4)])


def graph_of(model: nn.Module, *args: Any) -> Graph:
    with sandbox(model):
        return trace(model, args, {}, default_registry())


def between(forward: Callable[[Base, torch.Tensor], torch.Tensor]) -> type[Base]:
    """A model with this forward between the two layers."""

    class Model(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.two(forward(self, self.one(x)))
            return result

    return Model


# -- in-place ops and views -------------------------------------------------------------------------------------------


def relu_in_place(_: Base, y: torch.Tensor) -> torch.Tensor:
    F.relu(y, inplace=True)
    return y


def augmented_assignment(_: Base, y: torch.Tensor) -> torch.Tensor:
    y += 1
    y *= 0.5
    y -= y * 0.1
    return y


def chain_of_methods(_: Base, y: torch.Tensor) -> torch.Tensor:
    return y.mul_(2).add_(1).tanh_()


def module_in_place(self: Base, y: torch.Tensor) -> torch.Tensor:
    return nn.ReLU(inplace=True)(y)


@pytest.mark.parametrize("step", [relu_in_place, augmented_assignment, chain_of_methods, module_in_place])
def test_in_place_ops_pass_facts_on(step: Callable[[Base, torch.Tensor], torch.Tensor]) -> None:
    result = check(between(step)())
    assert result.shape("one.weight") == (5, 4) and result.shape("two.weight") == (3, 5)


def write_through_a_view(_: Base, y: torch.Tensor) -> torch.Tensor:
    half = y[:, 2:5]
    half.mul_(3)
    half.add_(0.5)
    return y


def write_into_a_column(_: Base, y: torch.Tensor) -> torch.Tensor:
    y[:, 1] = 2.0
    return y


def write_a_tensor(_: Base, y: torch.Tensor) -> torch.Tensor:
    y[:, 1:3] = y[:, 5:7].clone() + 1
    return y


def view_made_before_its_base_changes(_: Base, y: torch.Tensor) -> torch.Tensor:
    flat = y.view(-1)
    y.add_(1)
    return flat.view(y.shape) + y


def base_read_after_a_view_of_a_view_changed(_: Base, y: torch.Tensor) -> torch.Tensor:
    y.t()[1:].transpose(0, 1)[:, :2].zero_()
    return y


def augmented_slice(_: Base, y: torch.Tensor) -> torch.Tensor:
    y[:, 2:] += 1
    return y


def out_argument(_: Base, y: torch.Tensor) -> torch.Tensor:
    buffer = torch.empty_like(y)
    torch.add(y, 1, out=buffer)
    torch.mul(buffer, y, out=buffer)
    return buffer


def copy_into_new(_: Base, y: torch.Tensor) -> torch.Tensor:
    fresh = y.new_zeros(y.shape)
    fresh.copy_(y)
    fresh[:, 0] += 1
    return fresh


def set_data(_: Base, y: torch.Tensor) -> torch.Tensor:
    z = y.clone()
    z.data = (y * 2).data
    return z


def swap_in_a_list(_: Base, y: torch.Tensor) -> torch.Tensor:
    parts = list(y.unbind(1))
    parts[0], parts[1] = parts[1], parts[0] * 2
    return torch.stack(parts, 1)


def numpy_that_shares_memory(_: Base, y: torch.Tensor) -> torch.Tensor:
    array = y.numpy()
    array += 1.0
    return y


@pytest.mark.parametrize(
    "step",
    [
        write_through_a_view,
        write_into_a_column,
        write_a_tensor,
        view_made_before_its_base_changes,
        base_read_after_a_view_of_a_view_changed,
        augmented_slice,
        out_argument,
        copy_into_new,
        set_data,
        swap_in_a_list,
        numpy_that_shares_memory,
    ],
)
def test_writing_through_views_and_into_others_tensors_stays_right(
    step: Callable[[Base, torch.Tensor], torch.Tensor],
) -> None:
    check(between(step)())


class Converted(nn.Module):
    """A layer that is brought to a type at every call, which changes nothing where it has that type."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one.to(x.dtype)(x))


def test_data_that_are_set_to_what_they_are() -> None:
    model = randomize(Converted())
    masks = mask_indices(model, {"one.weight": [1, 3], "one.bias": [1, 3]})
    result = check_equal(model, torch.randn(3, 4), masks)
    assert result.shape("one.weight") == (4, 4)


# -- calls that the function mode does not see ------------------------------------------------------------------------


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x) * 2 + x.mean(1, keepdim=True)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2 + x.roll(1, 1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * 2


def by_script(_: Base, y: torch.Tensor) -> torch.Tensor:
    return scripted(y)


def by_autograd_function(_: Base, y: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = Doubled.apply(y)
    return result


def by_aten(_: Base, y: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.ops.aten.mul.Tensor(y, y)
    return result


def by_numpy(_: Base, y: torch.Tensor) -> torch.Tensor:
    return y + torch.from_numpy(y.detach().numpy().cumsum(axis=1))


def by_tolist(_: Base, y: torch.Tensor) -> torch.Tensor:
    return y * torch.tensor([[math.tanh(v) for v in row] for row in y.tolist()], dtype=y.dtype)


def by_item(_: Base, y: torch.Tensor) -> torch.Tensor:
    return y * y[0, 1].item() + float(y[0, 4])


def by_iteration(_: Base, y: torch.Tensor) -> torch.Tensor:
    return torch.stack([row / (1 + row.abs().sum()) for row in y])


def by_vmap(_: Base, y: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.vmap(lambda row: row * row.sum())(y)
    return result


@pytest.mark.parametrize(
    "step", [by_script, by_autograd_function, by_aten, by_numpy, by_tolist, by_item, by_iteration, by_vmap]
)
def test_reads_that_leave_torch_functions_are_not_missed(step: Callable[[Base, torch.Tensor], torch.Tensor]) -> None:
    """Every entry of y is read here in a way that no rule describes; a missed read would drop masked constants."""
    # Same batch size as planned: by_item depends on a single row.
    check(between(step)(), torch.randn(2, 4))


@pytest.mark.filterwarnings("ignore")  # it asks to be compiled
def test_a_function_of_functions_runs_and_keeps_what_it_reads() -> None:
    from torch.nn.attention.flex_attention import flex_attention  # loads the compiler

    def attended(_: Base, y: torch.Tensor) -> torch.Tensor:
        t = y[None, None]
        result: torch.Tensor = flex_attention(t, t, t, score_mod=lambda s, b, h, i, j: s - y[j, 0])[0, 0]  # type: ignore[assignment]
        return result

    assert check(between(attended)(), torch.randn(2, 4)).shape("one.weight") == (8, 4)


def test_a_scripted_helper_keeps_what_it_reads_and_says_so() -> None:
    model = randomize(between(by_script)())
    plan = speedup.plan(model, torch.randn(2, 4), mask_indices(model, {"one.weight": (1,), "one.bias": (1,)}))
    assert plan.report.parameters[0] == plan.report.parameters[1]
    assert any("sigmoid" in b or "mul" in b or "mean" in b for b in plan.report.barriers)


def test_checkpointing_is_looked_through() -> None:
    class Model(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = checkpoint(lambda t: F.relu(self.one(t)), x, use_reentrant=False)
            result: torch.Tensor = self.two(y)
            return result

    assert check(Model()).shape("one.weight") == (5, 4)


def test_a_decorated_forward_is_looked_through() -> None:
    class Model(Base):
        @torch.no_grad()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", enabled=False):
                result: torch.Tensor = self.two(self.one(x).relu())
            return result

    assert check(Model()).shape("one.weight") == (5, 4)


# -- tensors from elsewhere -------------------------------------------------------------------------------------------


def test_a_plain_tensor_attribute_joins_the_graph() -> None:
    class Model(Base):
        def __init__(self) -> None:
            super().__init__()
            self.shift = torch.linspace(-1, 1, 8, dtype=torch.float64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.two(self.one(x) + self.shift)
            return result

    check(Model())


def test_a_tensor_in_a_closure_or_a_constant_list_joins_the_graph() -> None:
    outside = torch.linspace(1, 2, 8, dtype=torch.float64)

    class Model(Base):
        def __init__(self) -> None:
            super().__init__()
            self.table = [outside * 2]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one(x) * outside
            result: torch.Tensor = self.two(y - self.table[0] + torch.tensor([0.5] * 8))
            return result

    check(Model())


def test_a_buffer_made_smaller_keeps_step() -> None:
    class Model(Base):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.linspace(1, 2, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.two(self.one(x) * self.scale)
            return result

    result = check(Model())
    assert result.shape("one.weight") == (5, 4) and result.shape("scale") == (5,)


def test_a_buffer_that_the_forward_writes_and_reads_keeps_step() -> None:
    class Model(Base):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one(x)
            self.last.copy_(y.mean(0))
            result: torch.Tensor = self.two(y + self.last)
            return result

    assert check(Model()).shape("last") == (5,)


def test_a_buffer_that_the_forward_writes_for_others_stays_whole() -> None:
    class Model(Base):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one(x)
            self.last.copy_(y.mean(0))
            result: torch.Tensor = self.two(y)
            return result

    assert check(Model()).shape("last") == (8,)


def test_a_parameter_that_is_an_output_stays_whole() -> None:
    class Model(Base):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.two(self.one(x)), self.one.weight

    assert check(Model()).shape("one.weight") == (8, 4)


# -- shared and tied --------------------------------------------------------------------------------------------------


def test_a_module_called_twice_keeps_what_either_call_needs() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.shared, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.out(self.shared(self.a(x)) + self.shared(self.b(x)))
            return result

    model = randomize(Model())
    rows = {f"{m}.{p}": (0, 2, 3) for m in ("a", "b", "shared") for p in ("weight", "bias")}
    result = check_equal(model, torch.randn(2, 4), mask_indices(model, rows), [torch.randn(5, 4)])
    assert result.shape("shared.weight") == (3, 3) and result.shape("a.weight") == (3, 4)


def test_a_module_called_on_its_own_output_is_right() -> None:
    class Model(Base):
        def __init__(self) -> None:
            super().__init__()
            self.loop = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one(x)
            for _ in range(3):
                y = self.loop(y).tanh()
            result: torch.Tensor = self.two(y)
            return result

    model = randomize(Model())
    rows: dict[str, tuple[int, ...]] = {f"{m}.{p}": (1, 4, 6) for m in ("one", "loop") for p in ("weight", "bias")}
    result = check_equal(model, torch.randn(2, 4), mask_indices(model, rows), [torch.randn(5, 4)])
    assert result.shape("loop.weight") == (5, 5)


def test_one_module_under_two_names_is_one_module_after_it() -> None:
    class Model(Base):
        def __init__(self) -> None:
            super().__init__()
            self.alias = self.one

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.two(self.one(x) + self.alias(x).relu())
            return result

    result = check(Model())
    small: Any = result.model
    assert small.alias is small.one and small.one.weight.shape == (5, 4)


def test_tied_parameters_stay_tied() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(6, 8, bias=False), nn.Linear(6, 8)
            self.leave.weight = self.enter.weight
            self.out = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.out(self.enter(x) * self.leave(x))
            return result

    model = randomize(Model())
    masks = mask_indices(model, {"enter.weight": (0, 5), "leave.bias": (0, 5)})
    result = check_equal(model, torch.randn(2, 6), masks, [torch.randn(5, 6)])
    small: Any = result.model
    assert small.enter.weight is small.leave.weight and small.enter.weight.shape == (6, 6)


def test_a_weight_tied_as_its_own_transpose_is_right() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(6, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(self.one(x).relu(), self.one.weight.t())

    model = randomize(Model())
    masks = mask_indices(model, {"one.weight": (0, 5), "one.bias": (0, 5)})
    assert check_equal(model, torch.randn(2, 6), masks, [torch.randn(5, 6)]).shape("one.weight") == (6, 6)


# -- hooks ------------------------------------------------------------------------------------------------------------


def test_hooks_that_change_outputs_and_inputs_are_part_of_the_model() -> None:
    class Model(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.two(self.one(x))
            return result

    model = Model()
    model.one.register_forward_hook(lambda m, args, out: out + 0.75)
    model.two.register_forward_pre_hook(lambda m, args: (args[0].relu(),))
    result = check(model)
    assert result.shape("one.weight") == (5, 4) and result.shape("two.weight") == (3, 5)


@pytest.mark.parametrize("kind", [nn.Linear, nn.Sigmoid, nn.LayerNorm])
def test_what_a_call_makes_of_constants_leaves_hooks_out(kind: type[nn.Module]) -> None:
    """They are calls of their own, which count once."""
    sizes = {nn.Linear: (8, 8), nn.LayerNorm: (8,), nn.Sigmoid: ()}[kind]
    net = randomize(nn.Sequential(nn.Linear(4, 8), kind(*sizes), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 3)))
    net[1].register_forward_hook(lambda module, args, output: 3 * output + 1)
    masks = mask_indices(net, {"0.weight": [1, 4], "2.weight": [0, 7]})
    result = check_equal(net, torch.randn(5, 4), masks, [torch.randn(2, 4)])
    assert result.shape("4.weight") == (3, 6)


def test_a_hook_that_reads_an_activation_sees_the_shape_it_is_told() -> None:
    """A hook is user code: the small model calls it with the small activation."""
    seen: list[torch.Size] = []

    class Model(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.two(self.one(x))
            return result

    model = randomize(Model())
    model.one.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    masks = mask_indices(model, {"one.weight": Base.dropped, "one.bias": Base.dropped})
    small = speedup.ModelSpeedup(model, torch.randn(2, 4), masks).speedup_model()
    seen.clear()
    small(torch.randn(2, 4))
    assert seen == [torch.Size((2, 5))]


def test_a_global_forward_hook_still_works() -> None:
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, args, out: out * 2 if isinstance(m, nn.Linear) else None
    )
    try:
        check(between(relu_in_place)())
    finally:
        handle.remove()


# -- inputs and outputs of all forms ----------------------------------------------------------------------------------


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    hidden: list[torch.Tensor]


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value


Pair = collections.namedtuple("Pair", "left right")

FORMS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "tuple": lambda a, b: (a, b),
    "named tuple": Pair,
    "dict": lambda a, b: {"a": a, "nested": {"b": [b]}},
    "ordered dict": lambda a, b: collections.OrderedDict(a=a, b=b),
    "dataclass": lambda a, b: Answer(a, [b]),
    "object": lambda a, b: (a, Slotted(b)),
    "set apart": lambda a, b: [a, None, "text", 3, (b,)],
}


@pytest.mark.parametrize("form", FORMS)
def test_an_output_keeps_its_shape_wherever_it_is_nested(form: str) -> None:
    """The hidden entries are an output themselves, so nothing of them may go."""

    class Model(Base):
        def forward(self, x: torch.Tensor) -> Any:
            y = self.one(x)
            return FORMS[form](self.two(y.relu()), y)

    model = randomize(Model())
    masks = mask_indices(model, {"one.weight": Base.dropped, "one.bias": Base.dropped})
    small: Any = speedup.ModelSpeedup(model, torch.randn(2, 4), masks).speedup_model()
    assert small.one.weight.shape == (8, 4), form
    assert small.two.weight.shape == (3, 5) or small.two.weight.shape == (3, 8)


def test_inputs_in_dicts_and_keyword_arguments_arrive() -> None:
    class Model(Base):
        def forward(self, batch: dict[str, torch.Tensor], *, scale: torch.Tensor, flag: bool = False) -> torch.Tensor:
            y = self.one(batch["x"]) * scale
            result: torch.Tensor = self.two(y if flag else -y)
            return result

    model = randomize(Model())
    masks = mask_indices(model, {"one.weight": Base.dropped, "one.bias": Base.dropped})
    given = {"batch": {"x": torch.randn(2, 4)}, "scale": torch.tensor(2.0), "flag": True}
    result = check_equal(
        model, given, masks, [{"batch": {"x": torch.randn(5, 4)}, "scale": torch.tensor(-1.0), "flag": True}]
    )
    assert result.shape("one.weight") == (5, 4)


def test_a_model_that_returns_its_input_still_makes_the_rest_smaller() -> None:
    class Model(Base):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, self.two(self.one(x).relu())

    assert check(Model()).shape("one.weight") == (5, 4)


def test_a_child_that_returns_its_input_is_looked_through() -> None:
    class Pass(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    class Model(Base):
        def __init__(self) -> None:
            super().__init__()
            self.skip, self.same = Pass(), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.two(self.same(self.skip(self.one(x))))
            return result

    assert check(Model()).shape("one.weight") == (5, 4)


def test_a_model_without_tensors_in_its_output_is_left_alone() -> None:
    class Model(Base):
        def forward(self, x: torch.Tensor) -> float:
            return float(self.two(self.one(x)).sum())

    model = randomize(Model())
    plan = speedup.plan(model, torch.randn(2, 4), mask_indices(model, {"one.weight": (1,)}))
    small = plan.apply()
    assert isinstance(small(torch.randn(2, 4)), float)


# -- Python around the tensors ----------------------------------------------------------------------------------------


def test_a_branch_on_data_is_decided_as_in_the_masked_model() -> None:
    class Model(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one(x)
            y = y * 2 if y.sum() > -1e9 else y.flip(1)
            if bool((y > 1e9).any()):
                return self.two(y).abs()
            result: torch.Tensor = self.two(y)
            return result

    check(Model())


def test_recursion_and_loops_over_children_work() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)])
            self.by_name = nn.ModuleDict({"act": nn.ReLU()})

        def forward(self, x: torch.Tensor, depth: int = 0) -> torch.Tensor:
            y = self.layers[depth](x)
            return y if depth == 2 else self.forward(self.by_name["act"](y), depth + 1)

    model = randomize(Model())
    rows = {f"layers.{i}.{p}": (0, 3) for i in (0, 1) for p in ("weight", "bias")}
    result = check_equal(model, torch.randn(2, 4), mask_indices(model, rows), [torch.randn(5, 4)])
    assert [result.shape(f"layers.{i}.weight") for i in range(3)] == [(4, 4), (4, 4), (2, 4)]


def test_a_python_level_torch_function_is_entered() -> None:
    graph = graph_of(between(lambda s, y: F.normalize(y, dim=1))().double(), torch.randn(2, 4).double())
    assert not any("normalize" in n.op_name for n in graph.nodes)
    assert len(graph.nodes) > 3


def test_every_node_knows_its_scope_and_its_line_of_source() -> None:
    graph = graph_of(between(lambda s, y: y.relu())(), torch.randn(2, 4))
    assert [n.path for n in graph.nodes if n.module is not None] == ["one", "two"]
    for node in graph.nodes:
        path, _, line = node.where.rpartition(":")
        assert path == __file__ and line.isdigit()


def test_the_graph_is_in_order_and_values_know_their_uses() -> None:
    graph = graph_of(between(lambda s, y: y + y.relu())(), torch.randn(2, 4))
    made = {id(v) for v in graph.values if v.producer is None}
    for node in graph.nodes:
        assert all(id(v) in made for v in node.tensors)
        made |= {id(v) for v in node.outputs}
        assert all((node, k) in v.uses for k, v in enumerate(node.operands) if v is not None)


def test_a_question_about_a_shape_is_no_use() -> None:
    graph = graph_of(
        between(lambda s, y: y.reshape(y.size(0), y.shape[1], len(y) // len(y)).squeeze(2))(), torch.randn(2, 4)
    )
    assert [n.op_name.rpartition(".")[2] for n in graph.nodes] == ["Linear", "reshape", "squeeze", "Linear"]


def test_what_the_model_raises_is_told_with_the_call_under_way() -> None:
    class Model(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.two(torch.cat([self.one(x), x], 1))
            return result

    model = Model()
    with pytest.raises(TraceError, match=r"does not run on the dummy input.*Linear.*test_trace\.py:\d+"):
        speedup.plan(model, torch.randn(2, 4), mask_indices(model, {"one.weight": (1,)}))


def test_after_an_error_the_recorder_is_gone() -> None:
    class Model(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.one(x)
            raise KeyError("mine")

    model = Model()
    before = nn.Module.__call__.__code__
    with pytest.raises(SpeedupError) as caught:
        speedup.plan(model, torch.randn(2, 4), mask_indices(model, {"one.weight": (1,)}))
    assert isinstance(caught.value.__cause__, KeyError)
    assert nn.Module.__call__.__code__ is before
    assert torch.overrides._get_current_function_mode_stack() == []
    assert model.one(torch.randn(2, 4)).shape == (2, 8)


class Fields(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Pair(Fields):
    """Refuses anything but tensors of one size, as a packed sequence does."""

    def __new__(cls, left: torch.Tensor, right: torch.Tensor) -> Pair:
        assert left.shape == right.shape
        return super().__new__(cls, left, right)


def test_a_copy_that_only_the_original_needs_is_no_other_path() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 2), nn.Conv1d(2, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.one(x).transpose(1, 2).contiguous()  # with one channel it is contiguous as it is
            return self.two(x.relu())

    model = randomize(Net())
    result = check_equal(model, torch.randn(2, 5, 4), mask_indices(model, {"one.weight": [1]}), [torch.randn(3, 7, 4)])
    assert result.shape("one.weight") == (1, 4) and result.shape("two.weight") == (3, 1, 1)


def test_named_tuples_with_a_constructor_go_in_and_come_out() -> None:
    class Swap(nn.Module):
        def forward(self, pair: Pair) -> Pair:
            return Pair(pair.right * 2, pair.left - 1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.swap, self.b = nn.Linear(4, 6), Swap(), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            pair = self.swap(Pair(y, y + 1))
            return self.b(pair.left + pair.right)

    swap = speedup.Rule(name="swap", modules=(Swap,), operands=("left", "right"), axes="* c, * c -> * c, * c")
    registry = speedup.Registry.from_rules(*speedup.default_registry().rules, swap)
    model = randomize(Model())
    result = check_equal(model, torch.randn(3, 4), mask_indices(model, {"a.weight": [1, 2]}), registry=registry)
    assert result.shape("b.weight") == (2, 4)
