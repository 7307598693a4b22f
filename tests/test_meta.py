"""Plans that are made on the meta device: what masks alone tell, and nothing that they do not."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import speedup
from speedup import InputError, MaskError, TraceError
from tests.big import without_contents
from tests.big.llama import Shape, build, build_on_meta, masks_for

IDS = torch.zeros(1, 7, dtype=torch.long)


def kept(plan: speedup.Plan) -> dict[str, Any]:
    return {layer.name: layer.kept for layer in plan.report.layers}


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("width", [False, True], ids=["units and heads", "width"])
def test_of_a_llama_as_much_goes_as_with_its_weights(width: bool, tied: bool) -> None:
    shape = Shape(tied=tied)
    model, bare = build(shape), build_on_meta(shape)
    masks = masks_for(bare, shape, width=width)
    plan = speedup.plan(bare, IDS, masks)
    assert kept(plan) == kept(speedup.plan(model, IDS, masks))
    assert plan.report.parameters[1] < 0.75 * plan.report.parameters[0]
    assert bare.lm_head.weight.is_meta and not bare.model.frequencies.is_meta


def test_the_plan_is_put_into_the_model_without_contents() -> None:
    shape = Shape()
    model, bare = build(shape), build_on_meta(shape)
    masks = masks_for(bare, shape, width=True)
    small = speedup.plan(bare, IDS, masks).apply()
    wanted = speedup.plan(model, IDS, masks).apply()
    assert {n: t.shape for n, t in small.named_parameters()} == {n: t.shape for n, t in wanted.named_parameters()}
    small.load_state_dict(wanted.state_dict(), assign=True)
    ids = torch.arange(14).reshape(2, 7)
    assert torch.equal(small(ids), wanted(ids))


def mlp(**factory: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6, **factory), nn.GELU(), nn.Linear(6, 3, **factory))


def rows(size: int, inner: int) -> torch.Tensor:
    return (torch.arange(size) >= size // 2)[:, None].expand(size, inner)


def test_a_bias_without_contents_keeps_its_layer_whole_and_is_named() -> None:
    model = mlp(device="meta")
    plan = speedup.plan(model, torch.zeros(2, 4), {"0": {"weight": rows(6, 4)}})
    (reason,) = plan.report.reasons
    assert reason.kind == "contents" and "0.bias" in reason.why and reason.indices == 3
    assert "0.weight" not in reason.why, "a masked row is 0 whatever the weight is"
    assert plan.report.parameters[0] == plan.report.parameters[1]
    both = {"0": {"weight": rows(6, 4), "bias": rows(6, 1)[:, 0]}}
    assert speedup.plan(model, torch.zeros(2, 4), both).report.parameters == (51, 27)


def test_a_norm_without_contents_makes_nothing_of_zeros_that_would_be_known() -> None:
    """Behind a layer norm a masked channel is its shift times an unknown: the weight and the bias have to be masked."""
    model = nn.Sequential(
        nn.Linear(4, 6, device="meta"), nn.LayerNorm(6, device="meta"), nn.Linear(6, 3, device="meta")
    )
    line = rows(6, 1)[:, 0]
    masks = {"0": {"weight": rows(6, 4), "bias": line}}
    plan = speedup.plan(model, torch.zeros(2, 4), masks)
    assert plan.report.parameters[0] == plan.report.parameters[1]
    assert [r.kind for r in plan.report.reasons] == ["contents"] and "1.weight and 1.bias" in plan.report.reasons[0].why
    masks["1"] = {"weight": line, "bias": line}
    assert speedup.plan(model, torch.zeros(2, 4), masks).report.parameters[1] < 40


def test_in_place_changes_are_followed_where_memory_has_no_address() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            y[:, 1:3] += 1.0  # on masked entries: constants, so that nothing but 1 may be folded
            return self.b(y)

    line = torch.tensor([1, 0, 0, 1, 1, 1]).bool()
    masks = {"a": {"weight": line[:, None].expand(6, 4), "bias": line}}
    model = Net().double()
    bare = speedup.plan(without_contents(model), torch.zeros(2, 4), masks)
    assert kept(bare) == kept(speedup.plan(model, torch.zeros(2, 4).double(), masks))


def test_what_the_code_makes_comes_to_the_same_place() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) + torch.arange(4)

    with torch.device("meta"):
        model = Net()
    assert speedup.plan(model, torch.zeros(2, 4), {"a.weight": rows(4, 4)}).report.parameters == (16, 16)
    assert torch.arange(2).device.type == "cpu"


def test_data_that_code_looks_at_is_an_error_that_says_what_to_do() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) if float(x.sum()) > 0 else x

    with torch.device("meta"):
        model = Net()
    with pytest.raises(TraceError, match=r"contents.*plan with the weights in memory"):
        speedup.plan(model, torch.zeros(2, 4), {"a.weight": rows(4, 4)})


def test_what_needs_numbers_says_so() -> None:
    model = mlp(device="meta")
    masks = {"0": {"weight": rows(6, 4)}}
    with pytest.raises(MaskError, match="no zeros to find"):
        speedup.plan(model, torch.zeros(2, 4), "zeros")
    for option in ({"verify": True}, {"fuse": True}):
        with pytest.raises(InputError, match="meta device"):
            speedup.plan(model, torch.zeros(2, 4), masks).apply(**option)
    with pytest.raises(InputError, match="small is on the meta device"):
        speedup.verify(mlp(), model, torch.zeros(2, 4))
    nothing = {"0": {"weight": torch.ones(6, 4, device="meta")}}
    with pytest.raises(MaskError, match="mask is on the meta device"):
        speedup.plan(model, torch.zeros(2, 4), nothing)


def test_a_norm_that_lost_channels_before_says_what_to_do() -> None:
    line = torch.arange(8) % 4 != 1
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 1))
    masks = {"0.weight": line[:, None, None, None].expand(8, 3, 1, 1), "1.weight": line, "1.bias": line}
    small = speedup.plan(model, torch.zeros(1, 3, 2, 2), masks).apply()
    line = torch.arange(6) % 3 != 0
    again = {"0.weight": line[:, None, None, None].expand(6, 3, 1, 1), "1.weight": line, "1.bias": line}
    with pytest.raises(speedup.RuleError, match="earlier round is on the meta device"):
        speedup.plan(without_contents(small), torch.zeros(1, 3, 2, 2), again)


def test_constants_are_left_out_of_models_without_contents_too() -> None:
    plan = speedup.plan(mlp(device="meta"), torch.zeros(2, 4), {"0": {"weight": rows(6, 4)}}, constants="drop")
    assert plan.report.changes == [] and str(plan)


def test_a_model_partly_on_meta_stays_as_it_is() -> None:
    model = mlp()
    model[0].to("meta")
    before = copy.deepcopy(model[2].state_dict())
    speedup.plan(model, torch.zeros(2, 4), {"0": {"weight": rows(6, 4)}})
    assert model[0].weight.is_meta and not model[2].weight.is_meta
    assert all(torch.equal(t, before[n]) for n, t in model[2].state_dict().items())


def test_seven_billion_parameters_are_planned_in_little_memory() -> None:
    """Under 60 seconds, says the documentation; here only what does not depend on the machine: memory, in megabytes."""
    script = (
        "import resource, torch, speedup\n"
        "from tests.big.llama import SEVEN_BILLION, build_on_meta, masks_for\n"
        "model = build_on_meta(SEVEN_BILLION, torch.bfloat16)\n"
        "masks = masks_for(model, SEVEN_BILLION, width=True)\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "plan = speedup.plan(model, torch.zeros(1, 16, dtype=torch.long), masks)\n"
        "assert plan.report.parameters == (6738415616, 3166473216), plan.report.parameters\n"
        "str(plan)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024)\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1000
