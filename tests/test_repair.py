"""Sizes that the user's code holds follow the plan: attributes of modules, and arguments of calls in a forward."""

from __future__ import annotations

import copy
import inspect
import linecache
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import speedup
from speedup import Plan, settle, tries
from speedup.repair import steady
from speedup.testing import mask_indices, masked_copy, randomize
from tests import repair_nets as nets

IMAGE = (2, 3, 4, 4)
CONV = {"conv.weight": (0, 3)}
ONE = {"one.weight": (0, 1, 9)}


@pytest.fixture(autouse=True, params=[float("inf"), -1], ids=["by answers", "by calls"])
def heavy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How repairs are tried at other sizes, which depends on how much arithmetic there is."""
    monkeypatch.setattr("speedup.elsewhere._HEAVY", request.param)


def shrink(model: nn.Module, dropped: dict[str, tuple[int, ...]], *shape: int) -> tuple[Any, Any, Plan]:
    """The small model, the masked one, and the plan; they must agree at several batch sizes."""
    model = randomize(model).double().eval()
    masks = mask_indices(model, dropped)
    masked = masked_copy(model, masks)
    x = torch.randn(*shape, dtype=torch.float64)
    plan = speedup.plan(model, x, masks)
    small = plan.apply(verify=True)
    for size in (1, 2, 5):
        equal(small, masked, torch.randn(size, *shape[1:], dtype=torch.float64))
    return small, masked, plan


def equal(small: Any, masked: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        assert torch.allclose(small(x), masked(x), rtol=1e-9, atol=1e-9)


def repaired(plan: Plan) -> list[str]:
    return [r.what for r in plan.report.repaired]


# -- arguments of calls -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "what"),
    [
        (nets.View, "torch.Tensor.view: 128 -> 96"),
        (nets.Reshape, "torch.reshape: 8 * 16: 128 -> 96"),
        (nets.Decorated, "torch.Tensor.view: 128 -> 96"),
        (nets.Helped, "torch.Tensor.reshape: 128 -> 96"),
    ],
)
def test_a_literal_size(net: type[nn.Module], what: str) -> None:
    small, _, plan = shrink(net(), CONV, *IMAGE)
    assert small.conv.weight.shape == (6, 3, 3, 3) and small.fc.weight.shape == (2, 96)
    assert repaired(plan) == [what]


def test_a_size_that_holds_the_batch_too() -> None:
    small, _, plan = shrink(nets.Merged(), CONV, *IMAGE)
    assert small.fc.weight.shape == (2, 96)
    assert repaired(plan) == ["torch.Tensor.reshape: b * 8: 16 -> 12", "torch.Tensor.reshape: 8 * h * w: 128 -> 96"]


def test_a_size_from_another_tensor_in_a_product_with_positions() -> None:
    small, masked, plan = shrink(nets.Mixed(), {f"second.{p}": (0, 3, 5) for p in ("weight", "bias")}, *IMAGE)
    assert small.second.weight.shape == (5, 8, 3, 3) and small.last.weight.shape == (2, 5, 1, 1)
    assert repaired(plan) == ["torch.Tensor.reshape: C * H * W: 128 -> 80", "torch.Tensor.reshape: C: 8 -> 5"]
    equal(small, masked, torch.randn(1, 3, 9, 6, dtype=torch.float64))


@pytest.mark.parametrize("net", [nets.Split, nets.Slices])
def test_sections_and_slices(net: type[nn.Module]) -> None:
    small, _, plan = shrink(net(), ONE, 2, 4)
    assert (small.left.weight.shape, small.right.weight.shape) == ((3, 6), (3, 7))
    assert len(repaired(plan)) == 2 and "8 -> 6" in repaired(plan)[0]


def test_parts_of_a_size_stay_as_many() -> None:
    dropped = tuple(i for i in range(24) if i % 8 in (0, 3, 4, 6))
    small, _, plan = shrink(nets.EqualParts(), {"one.weight": dropped, "one.bias": dropped}, 2, 4)
    assert small.one.weight.shape == (12, 4) and small.two.weight.shape == (2, 4)
    assert repaired(plan) == ["torch.Tensor.split: 8 -> 4"]


def test_sections_in_an_attribute() -> None:
    small, _, plan = shrink(nets.SplitAttribute(), ONE, 2, 4)
    assert small.sizes == [6, 7] and type(small) is nets.SplitAttribute
    assert repaired(plan) == ["sizes: [8, 8] -> [6, 7]"]


@pytest.mark.parametrize("net", [nets.Zeros, nets.Full])
def test_tensors_made_in_the_forward(net: type[nn.Module]) -> None:
    small, _, _ = shrink(net(), ONE, 2, 4)
    assert small.one.weight.shape == (13, 4) and small.two.weight.shape == (3, 13)


def test_assigned_slices() -> None:
    small, _, _ = shrink(nets.Assigned(), ONE, 2, 4)
    assert small.one.weight.shape == (13, 4) and small.two.weight.shape == (3, 13)


@pytest.mark.parametrize("dropped", [(0, 1, 4, 6, 8, 9, 14, 15), (0, 1, 2, 3, 8, 9, 10, 11)])
def test_a_starred_shape(dropped: tuple[int, ...]) -> None:
    small, _, plan = shrink(nets.Starred(), {"one.weight": dropped}, 2, 4)
    assert small.two.weight.shape == (3, 8)
    assert repaired(plan)[-1] == "torch.Tensor.reshape: shape[1]: 16 -> 8"


def test_view_and_expand_of_a_gate() -> None:
    dropped = {"one.weight": (0, 1), "gate.weight": (0, 1), "gate.bias": (0, 1)}
    small, _, _ = shrink(nets.Gate(), dropped, *IMAGE)
    assert small.one.weight.shape[0] == 14 and small.gate.weight.shape == (14, 14)


def test_groups_of_a_functional_convolution() -> None:
    small, _, plan = shrink(nets.Grouped(), {"one.weight": (0, 1, 2, 3), "weight": (0, 1, 2, 3)}, 2, 3, 6, 6)
    assert small.weight.shape == (12, 2, 3, 3)
    assert repaired(plan) == ["torch.conv2d: 8 -> 6"]


def test_numbers_made_of_a_size_keep_their_meaning() -> None:
    small, _, plan = shrink(nets.Mean(), ONE, 2, 4)
    assert small.two.weight.shape == (3, 13)
    assert repaired(plan) == [
        "torch.Tensor.div: size: 13 -> 16",
        "torch.Tensor.mul: math.log(size): 2.56495 -> 2.77259",
    ]


def test_a_size_that_python_compares() -> None:
    small, _, plan = shrink(nets.Compared(), ONE, 2, 4)
    assert small.size == 13 and repaired(plan) == ["size: 16 -> 13"]


def test_a_size_that_python_compares_and_a_layer_in_it_holds() -> None:
    small, _, plan = shrink(nets.ComparedInside(), ONE, 2, 4)
    assert small.two.weight.shape == (3, 13) and small.act.size == 13


def test_a_size_that_python_compares_in_another_module() -> None:
    small, _, plan = shrink(nets.Scaled(), {"conv.weight": (1, 5), "conv.bias": (1, 5)}, *IMAGE)
    assert (small.conv.out_channels, small.head.in_features, small.scales.factors.numel()) == (6, 6, 3)
    assert repaired(plan) == ["width: 8 -> 6"]


# -- attention --------------------------------------------------------------------------------------------------------

HEADS = tuple(h * 4 + d for h in (1, 2) for d in range(4))
DIMS = tuple(h * 4 + d for h in range(4) for d in ((0, 2) if h % 2 else (1, 3)))


def fused(indices: tuple[int, ...], depth: int) -> dict[str, tuple[int, ...]]:
    rows = tuple(part * 16 + i for part in range(3) for i in indices)
    return {f"blocks.{b}.qkv.{p}": rows for b in range(depth) for p in ("weight", "bias")}


@pytest.mark.parametrize("block", [nets.Attention, nets.OldAttention])
@pytest.mark.parametrize(
    ("dropped", "attribute"), [(HEADS, ("num_heads", 2)), (DIMS, ("head_dim", 2))], ids=["heads", "dims"]
)
def test_attention_with_fused_projections(
    block: type[nn.Module], dropped: tuple[int, ...], attribute: tuple[str, int]
) -> None:
    small, _, plan = shrink(nets.Blocks(block, depth=3), fused(dropped, 3), 2, 5, 16)
    for layer in small.blocks:
        assert layer.qkv.weight.shape == (24, 16) and layer.proj.weight.shape == (16, 8)
        if block is nets.Attention or attribute[0] == "num_heads":
            assert getattr(layer, attribute[0]) == attribute[1]
        assert layer.scale == 0.5
    if block is nets.OldAttention and dropped is DIMS:
        assert "torch.Tensor.mul: q.shape[-1] ** -0.5: 0.707107 -> 0.5" in repaired(plan)


@pytest.mark.parametrize(("dropped", "sizes"), [(HEADS, (2, 4, 8)), (DIMS, (4, 2, 8))], ids=["heads", "dims"])
def test_attention_with_a_method_for_the_heads(dropped: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    names = {f"{m}.{p}": dropped for m in "qkv" for p in ("weight", "bias")}
    small, _, _ = shrink(nets.SplitAttention(), names, 2, 5, 8)
    assert (small.heads, small.head_size, small.all_head_size) == sizes
    assert small.out.weight.shape == (8, 8)


QK = {f"{m}.{p}": DIMS for m in "qk" for p in ("weight", "bias")}


def test_heads_of_several_sizes_are_what_is_left() -> None:
    small, _, plan = shrink(nets.SplitAttention(), QK, 2, 5, 8)
    assert small.q.weight.shape == (8, 8) and small.v.weight.shape == (16, 8)
    assert (small.heads, small.head_size) == (4, 4)
    assert "torch.Tensor.view: new_shape[3]: 4 -> -1" in repaired(plan)


def test_heads_that_cannot_be_repaired_keep_nothing_else() -> None:
    net = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8), nets.OpenSplitAttention())
    small, _, plan = shrink(
        net, {"0.weight": (1, 5), "0.bias": (1, 5), **{f"2.{n}": d for n, d in QK.items()}}, 2, 5, 8
    )
    assert small[1].weight.shape == (8, 10)
    assert small[2].q.weight.shape == small[2].v.weight.shape
    assert "every run of the line keeps as many" in plan.explain("2.q")


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One item for each run of a small model that does not make the calls that the plan has."""
    made: list[None] = []
    original = tries.check

    def counted(*args: Any) -> Any:
        made.append(None)
        return original(*args)

    monkeypatch.setattr(tries, "check", counted)
    return made


def test_depth_costs_no_more_trials(trials: list[None]) -> None:
    counts = []
    for depth in (1, 6):
        trials.clear()
        shrink(nets.Blocks(nets.OldAttention, depth), fused(HEADS, depth), 2, 5, 16)
        counts.append(len(trials))
    assert counts[0] == counts[1]


def test_depth_costs_no_more_trials_where_sizes_differ(trials: list[None]) -> None:
    """Two attributes of each block, with other sizes in every second one."""
    counts = []
    for depth in (2, 6):
        trials.clear()
        gone = [tuple(4 * head + k for head in range(4) for k in range(1 + i % 2)) for i in range(depth)]
        names = [(i, f"{i}.{m}.{p}") for i in range(depth) for m in "qkv" for p in ("weight", "bias")]
        net = nn.Sequential(*(nets.SplitAttention() for _ in range(depth)))
        small, _, _ = shrink(net, {name: gone[i] for i, name in names}, 2, 5, 8)
        assert [(b.head_size, b.all_head_size) for b in small] == [(3, 12), (2, 8)] * (depth // 2)
        counts.append(len(trials))
    assert counts[0] == counts[1]


def test_stale_sizes_at_many_lines_cost_no_more_trials(trials: list[None]) -> None:
    """Nor do stale numbers."""
    counts = []
    for lines in ("a", "ab", "abc"):
        trials.clear()
        gone = {f"{n}.{p}": (0, 3, *range(5, 5 + k)) for k, n in enumerate(lines) for p in ("weight", "bias")}
        small, _, plan = shrink(nets.Stations(), gone, 2, 8)
        assert small.d.weight.shape == (8, 8 if len(lines) < 3 else 4)
        assert len(repaired(plan)) == 2 * len(lines)
        counts.append(len(trials))
    assert counts[1] == counts[2]


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One item for each round of planning."""
    made: list[None] = []
    original = settle.build

    def counted(*args: Any, **options: Any) -> Any:
        made.append(None)
        return original(*args, **options)

    monkeypatch.setattr(settle, "build", counted)
    return made


def test_uneven_runs_of_a_line_are_found_in_all_modules_at_once(rounds: list[None]) -> None:
    counts = []
    for depth in (1, 5):
        rounds.clear()
        net = nn.Sequential(*(nets.OpenSplitAttention() for _ in range(depth)))
        small, _, _ = shrink(net, {f"{i}.{n}": d for i in range(depth) for n, d in QK.items()}, 2, 5, 8)
        assert all(block.q.weight.shape == block.v.weight.shape for block in small)
        counts.append(len(rounds))
    assert counts[0] == counts[1]


def test_what_a_call_has_the_size_of_another_tensor_from_is_evened(rounds: list[None]) -> None:
    """Heads of values that keep more than those of keys, whose size the code takes for both, in all modules at once."""
    lost = {"q": (0, 1, 2), "k": (0, 1, 2), "v": (3,)}  # of the 8 of each head
    counts = []
    for depth in (1, 5):
        rounds.clear()
        gone = {
            f"{2 + i}.{name}.{p}": tuple(8 * head + k for head in range(4) for k in each)
            for i in range(depth)
            for name, each in lost.items()
            for p in ("weight", "bias")
        }
        gone["0.weight"] = (0, 4)  # its biases are constants that have to be folded
        net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8), *(nets.ProcessedAttention() for _ in range(depth)))
        small, _, plan = shrink(net, gone, 2, 5, 8)
        assert small[0].weight.shape == (4, 8)
        assert {getattr(block, n).weight.shape for block in small[2:] for n in "qkv"} == {(28, 8)}
        assert all(block.out.weight.shape == (8, 28) for block in small[2:])
        assert any("calls of one forward share a size" in reason.why for reason in plan.report.reasons)
        counts.append(len(rounds))
    assert counts[0] == counts[1]


def test_what_a_call_may_have_its_size_from_is_sought_in_its_own_forward_first(rounds: list[None]) -> None:
    """Not in all that is made before it; and in all modules at once."""

    class Counted:
        def __call__(self, net: nn.Module, x: torch.Tensor) -> torch.Tensor:
            hidden = net.get_submodule("up")(x)
            result: torch.Tensor = net.get_submodule("down")(hidden)
            return result.view(x.shape[0], -1, hidden.shape[-1] // 3).flatten(1)

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.held = nn.Linear(8, 12), nn.Linear(12, 8), Counted()

        def forward(self, x: torch.Tensor) -> Any:
            return self.held(self, x)

    counts = []
    for depth in (1, 5):
        rounds.clear()
        net = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 8), *(Inner() for _ in range(depth)))
        names = ["0", *(f"{3 + i}.up" for i in range(depth))]
        small, _, _ = shrink(net, {f"{n}.weight": (0, 1, 2) for n in names}, 2, 8)
        assert small[0].weight.shape == (7, 8)
        assert all(block.up.weight.shape == (12, 8) for block in small[3:])
        counts.append(len(rounds))
    assert counts[0] == counts[1]


def test_lines_that_cannot_be_repaired_are_found_at_once(rounds: list[None]) -> None:
    counts = []
    for lines in (1, 5):
        rounds.clear()
        space: dict[str, Any] = {"nn": nn}
        source = "def forward(self, x):\n"
        source += "".join(f"    x = self[{i}](x).view(-1, 8).relu()\n" for i in range(lines))
        exec(source + f"    return self[{lines}](x)\n", space)
        net = type("Net", (nn.Sequential,), space)(*(nn.Linear(8, 8) for _ in range(lines + 1)))
        small, _, _ = shrink(net, {f"{i}.{p}": (0, 3) for i in range(lines) for p in ("weight", "bias")}, 2, 8)
        assert all(layer.weight.shape == (8, 8) for layer in small)
        counts.append(len(rounds))
    assert counts[0] == counts[1]


# -- what a repaired module still is ----------------------------------------------------------------------------------


def small_view() -> Any:
    return shrink(nets.View(), CONV, *IMAGE)[0]


def test_the_class_and_its_source_are_untouched() -> None:
    before = inspect.getsource(nets.View), nets.View.forward, dict(vars(nets.View))
    small = small_view()
    assert isinstance(small, nets.View) and type(small).__name__ == "View"
    assert (type(small).__module__, type(small).__qualname__) == (nets.View.__module__, "View")
    assert (inspect.getsource(nets.View), nets.View.forward, dict(vars(nets.View))) == before
    assert nets.View()(torch.randn(2, 3, 4, 4)).shape == (2, 2), "another instance"


def test_state_dict_hooks_and_training_flags_stay() -> None:
    model = nets.View()
    keys = list(model.state_dict())
    seen: list[Any] = []
    model.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    model.fc.train()
    model.conv.eval()
    small, _, _ = shrink(model, CONV, *IMAGE)
    seen.clear()
    small(torch.randn(3, 3, 4, 4).double())
    assert list(small.state_dict()) == keys and seen == [(3, 2)]


def test_train_mode_keeps_its_dropout() -> None:
    small, _, _ = shrink(nets.Blocks(nets.OldAttention, 1), fused(HEADS, 1), 2, 5, 16)
    x = torch.randn(2, 5, 16).double()
    small.train()
    torch.manual_seed(0)
    a, b = small(x), small(x)
    assert not torch.equal(a, b), "dropout"
    loss = (a**2).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_copies_and_pickles() -> None:
    small = small_view()
    x = torch.randn(3, 3, 4, 4).double()
    for other in (copy.deepcopy(small), copy.copy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(other(x), small(x)) and type(other) is type(small)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert torch.equal(pickle.loads(pickle.dumps(small, protocol))(x), small(x))


def test_a_pickle_in_another_process(tmp_path: Path) -> None:
    small, _, _ = shrink(nets.Blocks(nets.OldAttention, 2), fused(DIMS, 2), 2, 5, 16)
    x = torch.randn(3, 4, 16).double()
    torch.save({"model": small, "x": x, "y": small(x)}, tmp_path / "small.pt")
    code = f"""
import torch
held = torch.load({str(tmp_path / "small.pt")!r}, weights_only=False)
model = held["model"]
assert torch.equal(model(held["x"]), held["y"])
assert type(model.blocks[0]) is type(model.blocks[1]) and type(model.blocks[0]).__name__ == "OldAttention"
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_pickle_of_another_version_of_the_source_is_refused() -> None:
    small = small_view()
    _, edits = type(small)._speedup_edits
    wrong = pickle.dumps(small).replace(edits[0].digest.encode(), b"0" * 16)
    with pytest.raises(speedup.SpeedupError, match="source"):
        pickle.loads(wrong)


def test_a_traceback_points_to_the_line_in_the_source() -> None:
    small = small_view()
    with pytest.raises(RuntimeError) as caught:
        small(torch.randn(2, 3, 5, 5).double())
    lines = [(str(t.path), t.lineno) for t in caught.traceback]
    first = inspect.getsourcelines(nets.View.forward)[1]
    assert (nets.__file__, first) in [(path, line) for path, line in lines]


def test_a_repaired_model_is_pruned_again() -> None:
    small, _, _ = shrink(nets.View(), CONV, *IMAGE)
    smaller, _, plan = shrink(small, {"conv.weight": (1, 2)}, *IMAGE)
    assert smaller.fc.weight.shape == (2, 64) and isinstance(smaller, nets.View)
    assert repaired(plan) == ["torch.Tensor.view: 128: 96 -> 64"]
    x = torch.randn(3, 3, 4, 4).double()
    assert torch.equal(pickle.loads(pickle.dumps(smaller))(x), smaller(x))


# -- several modules and calls ----------------------------------------------------------------------------------------


def test_instances_of_one_class_with_different_sizes() -> None:
    small, _, plan = shrink(nets.Pair(), {"first.conv.weight": (0, 3), "second.conv.weight": (1, 2, 4)}, *IMAGE)
    sizes = [m.fc.weight.shape[1] for m in (small.first, small.second, small.third)]
    assert sizes == [96, 80, 128]
    assert type(small.third) is nets.View
    assert [r.module for r in plan.report.repaired] == ["first", "second"]


def test_a_module_that_is_called_twice() -> None:
    small, _, _ = shrink(nets.Twice(), {"body.conv.weight": (0, 3)}, *IMAGE)
    assert small.body.fc.weight.shape == (2, 96)


def test_a_line_that_runs_twice_with_one_size() -> None:
    small, _, _ = shrink(nets.Shared(), {"convs.0.weight": (0, 3), "convs.1.weight": (1, 2)}, *IMAGE)
    assert [m.weight.shape[1] for m in small.fcs] == [96, 96]


def test_a_line_that_runs_twice_with_two_sizes_has_the_larger() -> None:
    small, _, plan = shrink(nets.Shared(), {"convs.0.weight": (0, 3), "convs.1.weight": (1, 2, 4)}, *IMAGE)
    assert [m.weight.shape[1] for m in small.fcs] == [96, 96]
    assert "torch.Tensor.view: 128 -> 96" in repaired(plan)
    assert "every run of the line" in plan.explain("convs.1")


def test_an_attribute_of_which_each_run_makes_its_own_number() -> None:
    gone = {"one.weight": (0, 3), "condition.weight": tuple(i + 8 * k for k in range(4) for i in (0, 3))}
    both = {f"layers.{i}.weight": (0, 3, 8, 11) for i in range(2)}
    biases = {n.replace("weight", "bias"): d for n, d in (gone | both).items()}
    small, _, plan = shrink(nets.Gates(), gone | both | biases, 3, 6)
    assert small.size == 6 and small.condition.weight.shape == (24, 6)
    assert repaired(plan) == ["size: 8 -> 6"]


@pytest.mark.parametrize("second", [(0, 1, 2), (0,), ()], ids=["half", "one", "none"])
@pytest.mark.parametrize("net", [nets.Cells, nets.StartingCells])
def test_a_size_that_a_loop_reads_of_another_module_at_each_turn(net: type[nn.Module], second: tuple[int, ...]) -> None:
    """The first states of recurrent cells: each module has an attribute of its own."""
    gone = [tuple(i + k * n for k in range(3) for i in own) for n, own in ((8, (1, 4, 5, 7)), (6, second))]
    dropped = {f"cells.{c}.conv.{p}": d for c, d in enumerate(gone) for p in ("weight", "bias")}
    small, _, plan = shrink(net(), dropped, 2, 3, 3, 6, 6)
    sizes = [4, 6 - len(second)]
    assert [cell.size for cell in small.cells] == sizes
    assert [cell.conv.weight.shape[:2] for cell in small.cells] == [(12, 7), (3 * sizes[1], 4 + sizes[1])]
    assert repaired(plan)[0] == "size: 8 -> 4"


# -- functions that a method calls ------------------------------------------------------------------------------------


def test_a_size_inside_a_function() -> None:
    small, masked, plan = shrink(nets.Inside(), CONV, *IMAGE)
    assert small.fc.weight.shape == (2, 96)
    assert repaired(plan) == ["torch.Tensor.reshape: 128 -> 96"]
    x = torch.randn(*IMAGE, dtype=torch.float64)
    assert torch.equal(nets._flat_128(masked.conv(x)), masked.conv(x).reshape(-1, 128)), "the function is untouched"
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert isinstance(other, nets.Inside) and torch.equal(other(x), small(x))


def test_a_function_that_calls_itself_is_not_copied() -> None:
    small, masked, _ = shrink(nets.InPieces(), ONE, 2, 4)
    x = torch.randn(501, 4, dtype=torch.float64)
    assert torch.allclose(small(x), masked(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heads", [(), (1,)])
@pytest.mark.parametrize("stream", [(), (0, 5, 7, 15)])
def test_attention_in_a_decorated_function(heads: tuple[int, ...], stream: tuple[int, ...]) -> None:
    rows = {16 * part + 4 * head + i for part in range(3) for head in heads for i in range(4)}
    rows |= {16 * part + 4 * head for part in range(3) for head in range(4)}  # one dimension of every head
    dropped = {"weight": tuple(sorted(rows))}
    dropped |= {f"{name}.{p}": stream for name in ("embed", "out") for p in ("weight", "bias")}
    small, _, plan = shrink(nets.InFunction(), dropped, 2, 5, 3)
    assert small.weight.shape == (9 * (4 - len(heads)), 16 - len(stream))
    assert small.head.weight.shape == (2, 16 - len(stream))
    assert small.heads == 4 - len(heads), "the parameter of the function is an attribute of the module"
    scale = (16 - len(stream)) // small.heads != 4
    assert any("(C // heads) ** -0.5" in what for what in repaired(plan)) == scale
    x = torch.randn(3, 7, 3, dtype=torch.float64)
    assert torch.equal(pickle.loads(pickle.dumps(small))(x), small(x))


# -- what is out of reach ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [nets.Deeper, nets.Chosen])
def test_a_size_inside_a_function_that_is_out_of_reach_is_locked(net: type[nn.Module]) -> None:
    small, _, plan = shrink(net(), CONV, *IMAGE)
    assert small.fc.weight.shape == (2, 128) and type(small) is net
    assert "reshape" in plan.explain("conv")


def made(source: str, name: str, filename: str) -> type[nn.Module]:
    space: dict[str, Any] = {"__name__": "made", "nets": nets, "torch": torch}
    exec(compile(source, filename, "exec"), space)
    found: type[nn.Module] = space[name]
    return found


SOURCE = """
class Net(nets.Conv):
    def forward(self, x):
        return self.fc(self.conv(x).view(-1, 128))
"""


def test_code_without_source_is_locked() -> None:
    small, _, plan = shrink(made(SOURCE, "Net", "<nowhere>")(), CONV, *IMAGE)
    assert small.fc.weight.shape == (2, 128) and not plan.report.repaired
    assert "holds a size" in plan.explain("conv") or "fails on fewer" in plan.explain("conv")


def test_code_whose_source_was_changed_since_is_locked(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(SOURCE)
    net = made(SOURCE, "Net", str(file))
    file.write_text(SOURCE.replace("self.fc(", "2 * self.fc("))
    linecache.checkcache()
    small, _, plan = shrink(net(), CONV, *IMAGE)
    assert small.fc.weight.shape == (2, 128) and not plan.report.repaired
    file.write_text(SOURCE)
    small, _, plan = shrink(net(), CONV, *IMAGE)
    assert small.fc.weight.shape == (2, 96)


def test_a_subclass_hook_of_the_user_does_not_run() -> None:
    seen: list[str] = []

    class Registering(nets.Conv):
        def __init_subclass__(cls) -> None:
            seen.append(cls.__name__)

        def forward(self, x: torch.Tensor) -> Any:
            return self.fc(self.conv(x).view(-1, 128))

    small, _, _ = shrink(Registering(), CONV, *IMAGE)
    assert small.fc.weight.shape == (2, 96) and not seen


def test_closures_private_names_and_super() -> None:
    factor = 3.0

    class Net(nets.Conv):
        __size = 128

        def forward(self, x: torch.Tensor) -> Any:
            if super().extra_repr() != "":  # no assertion: pytest would rewrite it and add constants
                raise ValueError
            y = self.conv(x).view(-1, 128) * factor
            return self.fc(y.view(-1, self.__size))

    small, _, _ = shrink(Net(), CONV, *IMAGE)
    assert small.conv.weight.shape[0] in (6, 8)


# -- nothing remains of what fails ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["Repair.apply", "rewritten"])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_failure_while_repairing_leaves_the_model_alone(
    target: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    from speedup.repair import parts

    model = nets.Blocks(nets.OldAttention, 1).eval()
    block = model.blocks[0]
    masks = mask_indices(model, fused(DIMS, 1))
    before = {n: (id(m), type(m), dict(m.__dict__)) for n, m in model.named_modules()}
    weights = {n: t.clone() for n, t in model.state_dict().items()}

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    if target == "Repair.apply":
        monkeypatch.setattr(parts.Repair, "apply", fail)
    else:
        monkeypatch.setattr(parts, "rewritten", fail)
    with pytest.raises(error):
        speedup.plan(model, torch.randn(2, 5, 16), masks)
    assert {n: (id(m), type(m), dict(m.__dict__)) for n, m in model.named_modules()} == before
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())
    monkeypatch.undo()
    speedup.plan(model, torch.randn(2, 5, 16), masks).apply()
    assert block.qkv.weight.shape == (24, 16)


def test_planning_alone_changes_nothing() -> None:
    model = nets.Blocks(nets.OldAttention, 1).eval()
    plan = speedup.plan(model, torch.randn(2, 5, 16), mask_indices(model, fused(DIMS, 1)))
    assert plan.report.repaired
    assert type(model.blocks[0]) is nets.OldAttention and model.blocks[0].head_dim == 4


def test_a_failed_verification_takes_the_repairs_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nets.View().eval()
    plan = speedup.plan(model, torch.randn(*IMAGE), mask_indices(model, CONV))

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("speedup.planned.compare", fail)
    with pytest.raises(MemoryError):
        plan.apply(verify=True)
    assert type(model) is nets.View and model.conv.weight.shape[0] == 8


# -- the report -------------------------------------------------------------------------------------------------------


def test_the_report_names_what_was_repaired() -> None:
    small, _, plan = shrink(nets.Blocks(nets.Attention, 5), fused(HEADS, 5), 2, 5, 16)
    lines = [line for line in plan.report.text(width=140).splitlines() if line.startswith("repaired: ")]
    assert lines[0] == "repaired: num_heads: 4 -> 2 (in blocks.0, blocks.1, blocks.2 and 2 more)"
    assert lines[1].startswith(
        "repaired: torch.Tensor.reshape: C: 16 -> 8 (in blocks.0, blocks.1, blocks.2 and 2 more, "
    )
    assert "repair_nets.py:" in str(plan)
    assert plan.to_dict()["repaired"][0] == {"module": "blocks.0", "what": "num_heads: 4 -> 2", "where": ""}
    assert "repaired: num_heads: 4 -> 2 (in blocks.1)" in plan.explain("blocks.1")


def test_a_position_that_is_right_for_shorter_inputs_only_is_not_repaired() -> None:
    small, masked, plan = shrink(nets.CutFlat(), {"conv.weight": (0,)}, 2, 3, 12)
    assert not plan.report.repaired and small.conv.weight.shape == (2, 3, 1)
    for length in (6, 14, 20):
        equal(small, masked, torch.randn(2, 3, length, dtype=torch.float64))


# -- other sizes ------------------------------------------------------------------------------------------------------


class Held(nets.Conv):
    """Reads a tensor that cannot be without contents: it is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.full((1,), 2.0, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(self.conv(x * self.factor).view(-1, 128))


@pytest.mark.parametrize(
    ("make", "dropped", "shape", "proven"),
    [
        (nets.View, CONV, IMAGE, [True]),
        (lambda: nets.Blocks(nets.Attention, depth=3), fused(HEADS, 3), (2, 5, 16), [True]),
        (nets.CutFlat, {"conv.weight": (0,)}, (2, 3, 12), [False]),
        (Held, CONV, IMAGE, [False]),
    ],
    ids=["a literal", "an attribute", "right for shorter inputs only", "does not run without contents"],
)
def test_calls_without_contents_prove_what_they_can(
    make: Callable[[], nn.Module],
    dropped: Any,
    shape: tuple[int, ...],
    proven: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = []

    def asked(*args: Any) -> bool:
        said.append(by_calls(*args))
        return said[-1]

    by_calls = steady._makes_the_same_calls
    monkeypatch.setattr("speedup.elsewhere._HEAVY", -1)
    monkeypatch.setattr(steady, "_makes_the_same_calls", asked)
    *_, plan = shrink(make(), dropped, *shape)
    assert said == proven and bool(plan.report.repaired) == (make is not nets.CutFlat)
