"""Reasons: for every kind of them the place, and advice that helps when it is followed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.kinds import Kind
from speedup.report import Reason
from speedup.testing import mask_indices, randomize

Forward = Callable[..., torch.Tensor]


class Net(nn.Module):
    """Layers by name, and a forward."""

    def __init__(self, forward: Forward, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


def plan(forward: Forward, dropped: dict[str, tuple[int, ...]], **layers: nn.Module) -> speedup.Plan:
    torch.manual_seed(0)
    model = randomize(Net(forward, **layers)).eval()
    return speedup.plan(model, torch.randn(2, 4), mask_indices(model, dropped))


def only(made: speedup.Plan) -> Reason:
    (reason,) = made.report.reasons
    return reason


def linear(i: int, o: int) -> nn.Linear:
    return nn.Linear(i, o, bias=False)


def test_a_branch_names_the_layers_to_mask_and_masking_them_helps() -> None:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        a = F.relu(m.get_submodule("a")(x))
        b = m.get_submodule("b2")(m.get_submodule("b1")(x))
        result: torch.Tensor = m.get_submodule("c")(a + b)
        return result

    layers = {"a": linear(4, 8), "b1": linear(4, 5), "b2": linear(5, 8), "c": linear(8, 3)}
    before = plan(forward, {"a.weight": (0, 1, 2)}, **layers)
    reason = only(before)
    assert reason.kind is Kind.NEEDED and reason.op == "torch.Tensor.add"
    assert reason.indices == 3 and reason.parameters == 12 and reason.layers == ("a.weight",)
    assert "Mask the same indices of b2 too" in reason.advice and "test_reasons.py:" in reason.where
    after = plan(forward, {"a.weight": (0, 1, 2), "b2.weight": (0, 1, 2)}, **layers)
    assert after.report.reasons == []
    assert after.report.parameters[1] < before.report.parameters[1]


def test_a_reason_is_followed_through_a_whole_residual_stream() -> None:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.get_submodule("stem")(x)
        for name in "abc":
            x = x + m.get_submodule(name)(x)
        result: torch.Tensor = m.get_submodule("head")(x)
        return result

    layers = {"stem": linear(4, 8), **{n: linear(8, 8) for n in "abc"}, "head": linear(8, 3)}
    reason = only(plan(forward, {"stem.weight": (1,), "a.weight": (1,), "c.weight": (1,)}, **layers))
    assert "Mask the same indices of b too" in reason.advice
    assert reason.layers[0] in ("a.weight", "c.weight", "stem.weight") and len(reason.layers) == 3


def test_a_branch_is_followed_where_it_is_broadcast() -> None:
    """A gate of one number per channel: what it multiplies has an image."""

    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.get_submodule("a")(x.reshape(2, 1, 2, 2))
        gate = torch.sigmoid(m.get_submodule("b")(x.mean((2, 3), keepdim=True)))
        result: torch.Tensor = m.get_submodule("c")(x * gate).flatten(1)
        return result

    layers = {"a": nn.Conv2d(1, 6, 1), "b": nn.Conv2d(6, 6, 1), "c": nn.Conv2d(6, 2, 1)}
    reason = only(plan(forward, {"b.weight": (0, 1)}, **layers))
    assert reason.kind is Kind.NEEDED and reason.op == "torch.Tensor.mul"
    assert "Mask the same indices of a too" in reason.advice


def test_a_barrier_names_its_op_and_the_guide() -> None:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = m.get_submodule("b")(torch.special.bessel_j0(m.get_submodule("a")(x)))
        return result

    reason = only(plan(forward, {"a.weight": (0,)}, a=linear(4, 6), b=linear(6, 2)))
    assert reason.kind is Kind.BARRIER and reason.op.endswith("bessel_j0")
    assert "docs/write-a-plugin.md" in reason.advice and "test_reasons.py:" in reason.where


def test_what_a_barrier_makes_whole_further_on_is_its_doing() -> None:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        y = torch.special.bessel_j0(m.get_submodule("b")(x)) + m.get_submodule("a")(x)
        result: torch.Tensor = m.get_submodule("c")(F.relu(y) + m.get_submodule("d")(x))
        return result

    layers = {n: linear(4, 6) for n in "abd"}
    made = plan(forward, {"a.weight": (0,), "d.weight": (0,)}, **layers, c=linear(6, 2))
    assert {r.kind for r in made.report.reasons} == {Kind.BARRIER}
    assert {r.op for r in made.report.reasons} == {"torch.special.bessel_j0"}


def test_rows_of_a_table_stay_since_any_may_be_read() -> None:
    """Also where the table makes logits as well: no other mask would help."""
    for tied in (False, True):
        layers = {"table": nn.Embedding(7, 6), "a": linear(6, 6), "b": linear(6, 7)}
        if tied:
            layers["b"].weight = layers["table"].weight

        def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
            ids = torch.zeros_like(x, dtype=torch.long)
            result: torch.Tensor = m.get_submodule("b")(m.get_submodule("a")(m.get_submodule("table")(ids)))
            return result

        reason = only(plan(forward, {"table.weight": (1, 2)}, **layers))
        assert reason.kind is Kind.RIGID and reason.op == "torch.nn.Embedding" and reason.indices == 2
        assert "reads all of it" in reason.advice


def test_a_gate_is_asked_for_beside_its_value_and_masking_both_helps() -> None:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = m.get_submodule("b")(F.glu(m.get_submodule("a")(x)))
        return result

    layers = {"a": linear(4, 12), "b": linear(6, 2)}
    reason = only(plan(forward, {"a.weight": (7,)}, **layers))
    assert reason.kind is Kind.RULE and "together with another index" in reason.why
    assert "Mask what it reads alike" in reason.advice
    assert plan(forward, {"a.weight": (1, 7)}, **layers).report.reasons == []


OUTSIDE = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("where", ["scale", "scales", "a tensor from outside of the model"])
def test_a_tensor_that_is_no_buffer_is_named_and_can_become_one(where: str) -> None:
    def reasons(register: bool) -> list[Reason]:
        def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
            scale = vars(m)["scales"][0] if where == "scales" else getattr(m, "scale", OUTSIDE)
            result: torch.Tensor = m.get_submodule("b")(m.get_submodule("a")(x) * scale)
            return result

        model = randomize(Net(forward, a=linear(4, 6), b=linear(6, 2))).eval()
        if register:
            model.register_buffer("scale", OUTSIDE.clone(), persistent=False)
        else:
            vars(model)[where] = OUTSIDE.clone() if where == "scale" else [OUTSIDE.clone()]
        return speedup.plan(model, torch.randn(2, 4), mask_indices(model, {"a.weight": (1,)})).report.reasons

    (reason,) = reasons(register=False)
    assert reason.kind is Kind.ATTRIBUTE and reason.why.startswith(f"joined with {where}, which")
    assert "register_buffer" in reason.advice
    if where == "scale":
        assert reasons(register=True) == []


def test_a_softmax_reads_all_of_its_axis() -> None:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = m.get_submodule("b")(m.get_submodule("a")(x).softmax(-1))
        return result

    reason = only(plan(forward, {"a.weight": (1,)}, a=linear(4, 6), b=linear(6, 2)))
    assert reason.kind is Kind.RIGID and "reads all" in reason.why


def test_a_transform_of_torch_is_no_lack_of_a_rule() -> None:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        y = m.get_submodule("a")(x)
        weight = m.get_submodule("b").get_parameter("weight")
        result: torch.Tensor = torch.vmap(lambda row: F.linear(row, weight))(y)
        return result

    made = plan(forward, {"a.weight": (1,), "b.weight": (0,)}, a=linear(4, 6), b=linear(6, 2))
    assert len(made.report.reasons) == 2
    for reason in made.report.reasons:
        assert reason.kind is Kind.BARRIER and "transform of torch.func" in reason.advice
        assert "new-plugin" not in reason.advice and "data" not in reason.advice


def test_a_pinned_output_says_so() -> None:
    reason = only(plan(lambda m, x: m.get_submodule("a")(x), {"a.weight": (0,)}, a=linear(4, 6)))
    assert reason.kind is Kind.OUTPUT and "Outputs keep their shape" in reason.advice


def _deep(x: torch.Tensor) -> torch.Tensor:
    return _view(x)


def _view(x: torch.Tensor) -> torch.Tensor:
    return x.view(-1, 6)


def test_a_size_in_the_code_names_its_line() -> None:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = m.get_submodule("b")(_deep(m.get_submodule("a")(x)))
        return result

    reason = only(plan(forward, {"a.weight": (0,)}, a=linear(4, 6), b=linear(6, 2)))
    assert reason.kind is Kind.SIZE
    assert "holds a size that could not be repaired" in reason.advice and "test_reasons.py:" in reason.advice


def test_parts_of_equal_size_ask_for_equal_counts_and_masking_so_helps() -> None:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        left, right = m.get_submodule("a")(x).chunk(2, -1)
        result: torch.Tensor = m.get_submodule("b")(left) + m.get_submodule("c")(right)
        return result

    layers = {"a": linear(4, 6), "b": linear(3, 2), "c": linear(3, 2)}
    reason = only(plan(forward, {"a.weight": (0, 1, 3)}, **layers))
    assert reason.kind is Kind.COUNT and "the same number in each" in reason.advice
    assert plan(forward, {"a.weight": (0, 1, 3, 4)}, **layers).report.reasons == []


def test_parts_that_are_held_hold_the_others() -> None:
    """One half goes into a barrier: that is why the other half stays, and not that it is masked otherwise."""

    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        left, right = m.get_submodule("a")(x).chunk(2, -1)
        result: torch.Tensor = m.get_submodule("b")(torch.special.bessel_j0(left)) + m.get_submodule("c")(right)
        return result

    layers = {"a": linear(4, 6), "b": linear(3, 2), "c": linear(3, 2)}
    reasons = plan(forward, {"a.weight": (0, 3)}, **layers).report.reasons
    assert {r.kind for r in reasons} == {Kind.BARRIER} and sum(r.indices for r in reasons) == 2


def test_a_carrier_is_told_from_a_loss() -> None:
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 3, padding=1))).eval()
    made = speedup.plan(model, torch.randn(1, 3, 6, 6), mask_indices(model, {"0.weight": (0, 1, 2)}))
    reason = only(made)
    assert reason.kind is Kind.CARRIER and reason.indices == 1
    both = mask_indices(model, {"0.weight": (0, 1, 2), "0.bias": (0, 1, 2)})
    assert speedup.plan(model, torch.randn(1, 3, 6, 6), both).report.reasons == [], "as its advice says"


def test_a_look_at_the_data_says_so() -> None:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        scale = x.sum().item()
        result: torch.Tensor = m.get_submodule("b")(m.get_submodule("a")(x)) * scale
        return result

    reason = only(plan(forward, {"a.weight": (0,)}, a=linear(4, 6), b=linear(6, 2)))
    assert reason.kind is Kind.DATA and "torch.where" in reason.advice


def test_calls_on_one_line_are_one_reason() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = x + self.inner(x)
            return result

    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Linear(4, 8), *(Block() for _ in range(5)), nn.Linear(8, 2))).eval()
    masks = mask_indices(model, {f"{i}.inner.weight": (i,) for i in range(1, 6)})
    reason = only(speedup.plan(model, torch.randn(2, 4), masks))
    assert len(reason.calls) == 5 and reason.indices == 5 and "and 4 more" in reason.call


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_has_advice(kind: Kind) -> None:
    from speedup.report.data import Kept
    from speedup.report.reasons import ranked

    (reason,) = ranked([Kept("a.weight", [0], "why", "file.py:1", 4, kind, "a (torch.nn.Linear)", "torch.nn.Linear")])
    assert len(reason.advice) > 20 and reason.to_dict()["kind"] == kind.value


@pytest.mark.parametrize(
    ("layer", "given"),
    [
        (nn.Embedding(7, 6), torch.tensor([[0, 3, 5]])),
        (nn.ConvTranspose1d(3, 6, 2), torch.ones(2, 3, 4)),
        (nn.Linear(6, 6), torch.ones(2, 6)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_columns_that_make_the_output_are_told_of(layer: nn.Module, given: torch.Tensor) -> None:
    """A masked column of a linear layer only reads: it goes or stays in silence, as its input does."""
    model = randomize(Net(lambda m, x: m.layer(x), layer=layer)).eval()
    plan = speedup.plan(model, given, mask_indices(model, {"layer.weight": (1, 4)}, axis=1))
    if isinstance(layer, nn.Linear):
        assert not plan.report.stays
        return
    (kept,) = plan.report.stays
    assert (kept.name, kept.indices, kept.axis, kept.kind) == ("layer.weight", [1, 4], 1, Kind.OUTPUT)
    assert "2 masked indices stay along axis 1 [1, 4]" in plan.explain("layer")
    assert plan.report.reasons[0].parameters == 2 * layer.weight.numel() // 6  # type: ignore[union-attr, operator]
