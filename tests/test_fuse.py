"""``apply(fuse=True)``: layers that scale and shift go into their neighbours, the answers stay, the rest is told."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import speedup
from speedup.errors import InputError
from speedup.testing import mask_indices, masked_copy, randomize
from tests.graphs import random_case, run

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Masks = dict[str, dict[str, torch.Tensor]]


def exact(model: nn.Module) -> nn.Module:
    """In float64, with random weights, biases and statistics."""
    return randomize(model, 0).double().eval()


def fused(model: nn.Module, x: torch.Tensor, masks: Masks | None = None, *others: torch.Tensor) -> speedup.Plan:
    """Fuse a copy, and compare it with the masked model on all inputs."""
    masks = masks or nothing(model)
    wanted = masked_copy(model, masks)
    plan = speedup.plan(copy.deepcopy(model), x, masks)
    small = plan.apply(fuse=True)
    for each in (x, *others):
        a, b = wanted(each), small(each)
        assert (a - b).abs().max() <= 1e-10 * a.abs().max(), plan.report.fusing
    return plan


def nothing(model: nn.Module) -> Masks:
    """Masks that drop nothing."""
    name = next(n for n, _ in model.named_parameters())
    return mask_indices(model, {name: ()})


def went(plan: speedup.Plan) -> dict[str, tuple[str, ...]]:
    assert plan.report.fusing is not None
    return {f.module: f.into for f in plan.report.fusing.fused}


def why(plan: speedup.Plan) -> dict[str, str]:
    assert plan.report.fusing is not None
    return {s.module: s.why for s in plan.report.fusing.stays}


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, NORMS) for m in model.modules())


def sized(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# -- into the layer in front ------------------------------------------------------------------------------------------

LAYERS = [
    (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), (2, 3, 6, 5)),
    (nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8, affine=False), (2, 3, 7, 8)),
    (nn.Conv2d(4, 8, 3, groups=4, padding=1), nn.BatchNorm2d(8), (2, 4, 5, 5)),
    (nn.Conv1d(3, 6, 2, bias=False), nn.BatchNorm1d(6), (2, 3, 9)),
    (nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), (2, 2, 4, 3, 5)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(6), (2, 4, 4, 5)),
    (nn.Linear(5, 7), nn.BatchNorm1d(7), (4, 5)),
    (nn.Conv2d(3, 8, 3), FrozenBatchNorm2d(8), (2, 3, 6, 5)),
]


@pytest.mark.parametrize(("layer", "norm", "shape"), LAYERS, ids=lambda v: type(v).__name__)
def test_a_norm_goes_into_the_layer_in_front(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    model = exact(nn.Sequential(layer, norm, nn.Sigmoid()))
    plan = fused(model, sized(*shape), None, sized(3, *shape[1:]))
    assert went(plan) == {"1": ("0",)} and not why(plan)
    assert type(plan.model[1]) is nn.Identity  # type: ignore[index]
    assert plan.model[0].bias is not None  # type: ignore[index, union-attr]


def test_what_is_masked_goes_as_without_fusing() -> None:
    model = exact(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    plan = fused(model, sized(2, 3, 9, 9), mask_indices(model, {"0.weight": (1, 2, 7)}), sized(1, 3, 12, 10))
    small: Any = plan.model
    assert small[0].weight.shape == (5, 3, 3, 3) and small[0].bias.shape == (5,) and norms(small) == 0


def test_a_norm_whose_axis_the_weights_do_not_have_stays() -> None:
    model = exact(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(4)))  # over the second axis of (n, 4, 7)
    plan = fused(model, sized(2, 4, 5))
    assert not went(plan) and "axes that the weights before it do not have" in why(plan)["1"]


def test_several_norms_in_a_row_go_one_after_the_other() -> None:
    model = exact(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), nn.BatchNorm2d(4)))
    plan = fused(model, sized(2, 3, 4, 4))
    assert went(plan) == {"1": ("0",), "2": (), "3": ("0",)}


# -- into the layers behind -------------------------------------------------------------------------------------------


class Before(nn.Module):
    """A norm that two layers read, behind something that cannot take it up."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.one, self.two = nn.Conv2d(4, 3, 3, padding=padding, bias=False), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(torch.tanh(x))
        return torch.cat([self.one(y).flatten(1), self.two(y).flatten(1)], 1)


def test_a_norm_goes_into_all_the_layers_behind_it() -> None:
    plan = fused(exact(Before()), sized(2, 4, 6, 6), None, sized(1, 4, 5, 8))
    assert went(plan) == {"norm": ("one", "two")}


def test_a_shift_does_not_go_over_a_border_of_zeros() -> None:
    plan = fused(exact(Before(padding=1)), sized(2, 4, 6, 6))
    assert not went(plan) and "pads with zeros" in why(plan)["norm"]


def test_a_scale_alone_does() -> None:
    model = exact(Before(padding=1))
    model.norm.bias.data.zero_()  # type: ignore[union-attr, operator]
    model.norm.running_mean.zero_()  # type: ignore[union-attr, operator]
    plan = fused(model, sized(2, 4, 6, 6), None, sized(1, 4, 3, 5))
    assert went(plan) == {"norm": ("one", "two")}


# -- away -------------------------------------------------------------------------------------------------------------


def test_what_does_nothing_goes() -> None:
    model = exact(nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.PReLU(4), nn.Linear(4, 2), nn.PReLU(), nn.RReLU()))
    model[2].weight.data.fill_(1.0)  # type: ignore[union-attr, operator]
    plan = fused(model, sized(3, 4))
    assert went(plan) == {"1": (), "2": ()}
    assert type(plan.model[4]) is nn.PReLU and type(plan.model[5]) is nn.RReLU  # type: ignore[index]


class WritesOver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.slopes, self.drop = nn.Linear(4, 4), nn.PReLU(4), nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return y + self.slopes(y).relu_() + self.drop(x)


def test_what_makes_a_copy_stays_where_something_writes_into_it() -> None:
    model = exact(WritesOver())
    model.slopes.weight.data.fill_(1.0)  # type: ignore[union-attr, operator]
    plan = fused(model, sized(3, 4))
    assert went(plan) == {"drop": ()} and "others read what goes into it" in why(plan)["slopes"]


# -- what stays, and why ----------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Each test changes one thing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
        self.norm = nn.BatchNorm2d(4)
        self.more = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.more(torch.relu(self.norm(self.stem(x))))


X = (2, 3, 6, 6)
CHANNEL = ("stem.0.weight", "stem.0.bias", "norm.weight", "norm.bias")


def test_the_net_is_fused_where_nothing_stands_in_the_way() -> None:
    assert went(fused(exact(Net()), sized(*X))) == {"norm": ("stem.0",)}


class CalledTwice(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.more(self.norm(torch.relu(self.norm(self.stem(x)))))


class LayerCalledTwice(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.stem(x)) + self.stem(x)


class OthersRead(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        return self.more(torch.relu(self.norm(y)) + y)


class AsFunction(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.norm
        return self.more(F.batch_norm(self.stem(x), n.running_mean, n.running_var, n.weight, n.bias))


class LayerAsFunction(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer: Any = self.stem[0]
        return self.more(torch.relu(self.norm(F.conv2d(x, layer.weight, layer.bias))))


class WeightRead(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.more(torch.relu(self.norm(self.stem(x)))) * self.norm.weight.mean()


class AttributeRead(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.more(torch.relu(self.norm(self.stem(x)))) * self.norm.eps


class HeldElsewhere(Net):
    def __init__(self) -> None:
        super().__init__()
        self.steps = [self.norm]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.more(torch.relu(self.steps[0](self.stem(x))))


class Branches(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        return self.more(self.norm(y) if float(x.sum()) > -1e9 else y)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (CalledTwice, "called 2 times"),
        (LayerCalledTwice, "stem.0 is called 2 times|others read|other readers"),
        (OthersRead, "others read the output of stem.0 too"),
        (AsFunction, "a function, which the code calls"),
        (LayerAsFunction, "called as a function"),
        (WeightRead, "its parameters have other readers"),
        (AttributeRead, "without it, it raises AttributeError"),
        (HeldElsewhere, "the model needs it: output 0 differs"),
        (Branches, "Python reads data of the input"),
    ],
)
def test_what_stays_is_told_with_the_reason(kind: type[Net], reason: str) -> None:
    plan = fused(exact(kind()), sized(*X))
    assert not went(plan)
    ((name, told),) = why(plan).items()
    assert any(r in told for r in reason.split("|")), told
    if kind is not AsFunction:
        assert "not fused" in plan.explain(name) and told.split(":")[0] in plan.explain(name)
    assert "not fused" in plan.report.text(width=120)


def test_one_that_is_needed_does_not_keep_the_others() -> None:
    class Two(AttributeRead):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.more(self.norm(self.stem(x)) * self.norm.eps))

    plan = fused(exact(Two()), sized(*X))
    assert went(plan) == {"last": ("more",)} and list(why(plan)) == ["norm"]


def test_code_that_goes_another_way_at_another_size_answers_the_same() -> None:
    class Joining(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made = self.layer(x)
            normed = self.norm(made)
            if x.shape[0] > 2:
                normed = normed + made
            return self.last(normed)

    model = randomize(Joining(), 0).eval()
    small, large = torch.randn(2, 4), torch.randn(3, 4)
    masks = {"layer.weight": torch.ones(6, 4).index_fill_(0, torch.tensor([1, 2]), 0)}
    wanted = masked_copy(model, masks)(large)
    plan = speedup.plan(model, small, masks)
    assert torch.allclose(plan.apply(fuse=True)(large), wanted, atol=1e-5)
    assert "at another size of the input" in plan.explain("norm")


@pytest.mark.parametrize("where", ["norm", "stem.0", "stem"])
def test_hooks_see_what_they_saw(where: str) -> None:
    model = exact(Net())
    seen: list[torch.Tensor] = []
    plan = speedup.plan(model, sized(*X), nothing(model))
    model.get_submodule(where).register_forward_hook(lambda m, args, out: seen.append(out))
    x = sized(*X)
    model(x)
    plan.apply(fuse=True)
    seen[1:] = []
    model(x)
    assert torch.equal(seen[0], seen[1]) and "hooks" in why(plan)["norm"]


def test_a_hook_around_both_is_no_obstacle() -> None:
    model = exact(nn.Sequential(Net()))
    model[0].register_forward_hook(lambda m, args, out: out * 2)
    assert went(fused(model, sized(*X))) == {"0.norm": ("0.stem.0",)}


def test_training_mode_keeps_a_norm() -> None:
    model = exact(Net())
    model.norm.train()  # type: ignore[union-attr]
    plan = speedup.plan(model, sized(*X), nothing(model))
    plan.apply(fuse=True)
    assert "call eval() first" in why(plan)["norm"] and model.norm.training  # type: ignore[union-attr]


def test_tied_weights_stay() -> None:
    model = exact(Net())
    other: Any = nn.Conv2d(3, 4, 3, padding=1).double()
    other.weight = model.stem[0].weight  # type: ignore[union-attr, index]
    model.other = other
    assert "other readers" in why(fused(model, sized(*X)))["norm"]


# -- the rest of apply ------------------------------------------------------------------------------------------------


def test_optimizers_and_averages_do_not_go_with_it() -> None:
    model = exact(Net())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for extra in ({"optimizer": optimizer}, {"ema": copy.deepcopy(model)}):
        with pytest.raises(InputError, match="only infer"):
            speedup.plan(model, sized(*X), nothing(model)).apply(fuse=True, **extra)
    assert norms(model) == 1


def test_a_failure_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exact(Net())
    before = {n: (id(m), dict(vars(m))) for n, m in model.named_modules()}
    tensors = {n: t.clone() for n, t in model.state_dict().items()}
    monkeypatch.setattr(sys.modules["speedup.planned"], "note", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        speedup.plan(model, sized(*X), nothing(model)).apply(fuse=True)
    assert {n: (id(m), dict(vars(m))) for n, m in model.named_modules()} == before
    assert all(torch.equal(t, tensors[n]) for n, t in model.state_dict().items())


def test_flags_types_and_requires_grad_stay() -> None:
    model = randomize(Net(), 0).bfloat16().eval()
    model.stem[0].weight.requires_grad_(False)  # type: ignore[union-attr, index, operator]
    x = torch.randn(*X, dtype=torch.bfloat16)
    wanted = model(x)
    small: Any = speedup.ModelSpeedup(model, x, nothing(model), fuse=True, verify=True).speedup_model()
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16} and norms(small) == 0
    assert not small.stem[0].weight.requires_grad and small.stem[0].bias.requires_grad
    assert torch.allclose(small(x), wanted, rtol=0.05, atol=0.05)


def test_another_instance_and_dropped_constants() -> None:
    model = exact(Net())
    masks = mask_indices(model, {"stem.0.weight": (0, 3)})
    other = copy.deepcopy(model)
    speedup.plan(model, sized(*X), masks).apply(other, fuse=True)
    assert norms(other) == 0 and norms(model) == 1
    dropped = speedup.plan(copy.deepcopy(model), sized(*X), masks, constants="drop").apply()
    plan = speedup.plan(model, sized(*X), masks, constants="drop")
    plan.apply(fuse=True)
    assert went(plan) == {"norm": ("stem.0",)} and torch.allclose(model(sized(*X)), dropped(sized(*X)))


def test_a_fused_model_is_saved_loaded_and_pruned_further(tmp_path: Path) -> None:
    model = exact(Net())
    x = sized(*X)
    speedup.plan(model, x, mask_indices(model, dict.fromkeys(CHANNEL, (1,)))).apply(fuse=True)
    speedup.save(model, tmp_path / "small")
    loaded = speedup.load(exact(Net()), tmp_path / "small")
    assert torch.equal(loaded(x), model(x)) and norms(loaded) == 0
    masks = mask_indices(loaded, {"stem.0.weight": (0,), "stem.0.bias": (0,)})
    wanted = masked_copy(loaded, masks)(x)
    again: Any = speedup.plan(loaded, x, masks).apply()
    assert again.stem[0].weight.shape[0] == 2 and torch.allclose(again(x), wanted)
    speedup.save(again, tmp_path / "smaller")
    assert torch.equal(speedup.load(exact(Net()), tmp_path / "smaller")(x), again(x))


def test_fusing_after_an_earlier_round_is_saved_too(tmp_path: Path) -> None:
    model = exact(Net())
    x = sized(*X)
    speedup.plan(model, x, mask_indices(model, {"stem.0.weight": (1,)})).apply()
    speedup.plan(model, x, nothing(model)).apply(fuse=True)
    assert norms(model) == 0
    speedup.save(model, tmp_path / "small")
    assert torch.equal(speedup.load(exact(Net()), tmp_path / "small")(x), model(x))


def test_random_networks_answer_the_same_when_fused() -> None:
    gone = 0
    for seed in range(5000, 5120):
        case = random_case(seed)
        model = case.model()
        wanted = masked_copy(model, case.masks)
        plan = speedup.plan(model, case.inputs, case.masks)
        small = plan.apply(fuse=True)
        gone += len(went(plan))
        for inputs in (case.inputs, *case.others):
            for a, b in zip(run(wanted, inputs), run(small, inputs), strict=True):
                assert (a - b).abs().max() <= 1e-9 * max(1.0, float(a.abs().max())), f"case {seed}"
    assert gone > 30


# -- layers that give the same for every input ------------------------------------------------------------------------


class Residual(nn.Module):
    """A branch of which the last layer is masked whole: its shift is left, and it is added."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.one = nn.Conv2d(6, 5, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.two = nn.Conv2d(5, 6, 3, **{"padding": 1, **options})
        self.last = nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        z = self.last(self.two(F.relu(self.norm(self.one(y)), inplace=True)))
        return F.relu(y[..., : z.shape[-2], : z.shape[-1]] + z)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "same", "dilation": 2},
        {"padding": "valid"},
        {"padding": (0, 2), "stride": (2, 3), "bias": False},
    ],
    ids=str,
)
def test_what_is_the_same_for_every_input_is_not_computed(options: dict[str, Any], tmp_path: Path) -> None:
    model = exact(Residual(**options))
    masks = mask_indices(model, {"two.weight": range(6)})
    plan = fused(model, sized(2, 3, 8, 8), masks, sized(1, 3, 11, 9))
    assert went(plan) == {"last": ("two",), "norm": ("one",)}
    assert plan.report.fusing is not None and sorted(plan.report.fusing.fixed) == ["one", "two"]
    small: Any = plan.model
    assert small.two.weight is None and small.one.weight is None and "fixed" in str(plan)
    speedup.save(small, tmp_path / "small")
    x = sized(3, 3, 7, 8)
    assert torch.equal(speedup.load(exact(Residual(**options)), tmp_path / "small")(x), small(x))


def test_a_norm_that_is_idle_in_one_of_its_calls_stays() -> None:
    class Shared(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(6, 6, 3, padding=1)
            self.two = nn.Conv2d(6, 6, 3, padding=1)
            self.norm = self.last

    model = exact(Shared())
    plan = fused(model, sized(2, 3, 8, 8), mask_indices(model, {"two.weight": range(6)}))
    assert not went(plan) and why(plan) == {"norm": "it is called 2 times"}


def test_what_somebody_reads_is_computed() -> None:
    class Read(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.one(self.stem(x)).mean()

    model = exact(Read())
    plan = fused(model, sized(2, 3, 8, 8), mask_indices(model, {"two.weight": range(6)}))
    assert plan.report.fusing is not None and plan.report.fusing.fixed == ["two"]
