"""Training goes on after speedup: gradients, optimizers and averaged copies follow, all or nothing."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import speedup

Masks = dict[str, dict[str, torch.Tensor]]


class Net(nn.Module):
    """A residual network with all that a constant can hide in: norms, groups, a shared width, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.branch_norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 10, 1)
        self.head = nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.branch_norm(self.branch(x)))
        out: torch.Tensor = self.head(F.gelu(self.wide(x)).mean((2, 3)))
        return out


DROPPED = {
    "stem": [0, 1, 4, 6],
    "norm": [0, 1, 4, 6],
    "branch": [0, 1, 4, 6],
    "branch_norm": [0, 1, 4, 6],
    "wide": [2, 3, 9],
}


def masks_of(model: nn.Module) -> Masks:
    """Whole channels with everything that belongs to them, so that what is removed is 0 throughout."""
    masks: Masks = {}
    for name, rows in DROPPED.items():
        for parameter, tensor in model.get_submodule(name).named_parameters():
            mask = torch.ones_like(tensor)
            mask[rows] = 0
            masks.setdefault(name, {})[parameter] = mask
    return masks


def make() -> Net:
    torch.manual_seed(0)
    return Net().double()


def batches(seed: int, count: int = 4) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    numbers = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(6, 3, 7, 7, generator=numbers, dtype=torch.float64), torch.randint(4, (6,), generator=numbers)


def remask(model: nn.Module, masks: Masks) -> None:
    with torch.no_grad():
        for name, by_parameter in masks.items():
            for parameter, mask in by_parameter.items():
                model.get_submodule(name).get_parameter(parameter).mul_(mask)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    seed: int,
    masks: Masks | None = None,
    average: AveragedModel | None = None,
) -> None:
    model.train()
    for x, wanted in batches(seed):
        optimizer.zero_grad()
        F.cross_entropy(model(x), wanted).backward()
        optimizer.step()
        if masks is not None:
            remask(model, masks)
        if average is not None:
            average.update_parameters(model)
    model.eval()


def same_function(small: nn.Module, masked: nn.Module) -> None:
    x = next(batches(9))[0]
    with torch.no_grad():
        assert torch.allclose(small(x), masked(x), rtol=1e-9, atol=1e-12)


Make = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), 0.1),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "named": lambda m: torch.optim.SGD(m.named_parameters(), 0.1, momentum=0.9),
    "adam": lambda m: torch.optim.Adam(m.parameters(), 0.01, amsgrad=True),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), 0.01),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), 0.003, momentum=0.5, centered=True),
    "groups": lambda m: torch.optim.SGD(
        [
            {"params": [p for p in m.parameters() if p.ndim > 1], "weight_decay": 0.01, "lr": 0.1},
            {"params": [p for p in m.parameters() if p.ndim == 1]},
        ],
        0.02,
        momentum=0.9,
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_that_of_the_masked_model(name: str) -> None:
    model = make()
    masks = masks_of(model)
    remask(model, masks)
    optimizer = OPTIMIZERS[name](model)
    train(model, optimizer, 1, masks)
    masked = copy.deepcopy(model)
    other = OPTIMIZERS[name](masked)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    small = speedup.plan(model, torch.randn(2, 3, 7, 7).double(), masks).apply(optimizer=optimizer)
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in masked.parameters())
    same_function(small, masked)
    train(small, optimizer, 2)
    train(masked, other, 2, masks)
    same_function(small, masked)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in small.parameters()}
    assert {id(p) for p in optimizer.state} <= held
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def test_gradients_are_cut_not_dropped() -> None:
    model = make()
    masks = masks_of(model)
    remask(model, masks)
    x, wanted = next(batches(3))
    model.eval()
    F.cross_entropy(model(x), wanted).backward()
    masked = copy.deepcopy(model)
    for parameter, old in zip(masked.parameters(), model.parameters(), strict=True):
        parameter.grad = old.grad
    small = speedup.plan(model, x, masks).apply()
    got = {n: p.grad for n, p in small.named_parameters()}
    F.cross_entropy(small(x), wanted).backward()  # adds the same once more
    for name, parameter in small.named_parameters():
        before = got[name]
        assert before is not None and parameter.grad is before
    fresh = copy.deepcopy(small)
    fresh.zero_grad()
    F.cross_entropy(fresh(x), wanted).backward()
    for one, two in zip(small.parameters(), fresh.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None
        assert torch.allclose(one.grad, 2 * two.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["averaged", "copy", "dict", "prefixed", "list"])
def test_averaged_copies_are_cut_along(form: str) -> None:
    model = make()
    masks = masks_of(model)
    remask(model, masks)
    optimizer = OPTIMIZERS["momentum"](model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    train(model, optimizer, 1, masks, average)
    inner = copy.deepcopy(average.module)
    given: Any = {
        "averaged": lambda: average,
        "copy": lambda: copy.deepcopy(average.module),
        "dict": lambda: dict(average.module.state_dict()),
        "prefixed": lambda: {f"module.{n}": t for n, t in average.module.state_dict().items()},
        "list": lambda: [p.detach().clone() for p in average.module.parameters()],
    }[form]()
    reference = copy.deepcopy(average.module)
    plan = speedup.plan(model, torch.randn(2, 3, 7, 7).double(), masks)
    small = plan.apply(optimizer=optimizer, ema=(given, reference))
    x = next(batches(9))[0]
    found = given.module if form == "averaged" else given
    if form in ("dict", "prefixed"):
        found = copy.deepcopy(small)
        found.load_state_dict({n.removeprefix("module."): t for n, t in given.items()})
    elif form == "list":
        found = copy.deepcopy(small)
        assert [t.shape for t in given] == [p.shape for p in small.parameters()]
        for parameter, tensor in zip(found.parameters(), given, strict=True):
            parameter.data.copy_(tensor)
        for mine, theirs in zip(found.buffers(), reference.buffers(), strict=True):
            mine.copy_(theirs)
    found.eval()
    with torch.no_grad():
        assert torch.allclose(found(x), inner.eval()(x), rtol=1e-9, atol=1e-12)
        assert not torch.allclose(found(x), small(x))
    if form == "averaged":
        train(small, optimizer, 2, average=average)


def test_what_folding_adds_is_added_to_the_average() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 2)).double()
    mask = torch.ones(6, 4)
    mask[[1, 3]] = 0  # with biases that stay: constants, which go into the bias of the last layer
    average = copy.deepcopy(model)
    small = speedup.plan(model, torch.randn(3, 4).double(), {"0": {"weight": mask}}).apply(ema=average)
    for one, two in zip(small.parameters(), average.parameters(), strict=True):
        assert torch.allclose(one, two) and one is not two


def test_a_gained_bias_joins_the_group_of_its_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2, bias=False))
    with torch.no_grad():
        model[0].bias.fill_(1.0)
    mask = torch.ones(6, 4)
    mask[0] = 0
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.5}]
    optimizer = torch.optim.Adam(groups)
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    average = {n: p.detach().clone() for n, p in model.named_parameters()}
    small = speedup.plan(model, torch.randn(2, 4), {"0": {"weight": mask}}).apply(optimizer=optimizer, ema=average)
    assert [id(p) for p in optimizer.param_groups[1]["params"]] == [id(small[2].weight), id(small[2].bias)]
    assert set(average) == {n for n, _ in small.named_parameters()}
    small(torch.randn(2, 4)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("both", [True, False])
def test_a_gained_bias_is_trained_once_and_only_with_its_layer(both: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2, bias=False))
    with torch.no_grad():
        model[0].bias.fill_(1.0)
    mask = torch.ones(6, 4)
    mask[0] = 0
    first, last = (torch.optim.SGD(model[i].parameters(), 0.1) for i in (0, 2))
    given = (first, last) if both else first
    speedup.plan(model, torch.randn(2, 4), {"0": {"weight": mask}}).apply(optimizer=given)
    names = {id(p): n for n, p in model.named_parameters()}
    assert model[2].bias is not None
    assert [names[id(p)] for p in first.param_groups[0]["params"]] == ["0.weight", "0.bias"]
    if both:
        assert [names[id(p)] for p in last.param_groups[0]["params"]] == ["2.weight", "2.bias"]


class Doubled(nn.Module):
    """What a rule may put in the place of a layer: another class, with another weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x * self.scale


def test_a_module_that_another_takes_the_place_of_is_another_in_the_average_too() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(6) + 0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    class ScaleRule(speedup.Rule):
        def replace(self, node: speedup.Node, keep: speedup.Kept) -> nn.Module:
            made = Doubled()
            made.scale = nn.Parameter(keep.tensors["weight"].detach() / 2)
            return made

    annihilates = {"weight": ("input",), "input": ("weight",)}
    rule = ScaleRule(modules=(Scale,), operands=("input", "weight"), axes="* c, c -> * c", annihilates=annihilates)
    rules = speedup.Registry.from_rules(rule, *speedup.default_registry().rules)
    model = nn.Sequential(nn.Linear(4, 6), Scale(), nn.Linear(6, 2))
    average = copy.deepcopy(model)
    by_name = {n: p.detach().clone() for n, p in model.named_parameters()}
    in_order = list(by_name.values())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    mask = torch.ones(6, 4)
    mask[[1, 3]] = 0
    masks = {"0": {"weight": mask, "bias": mask[:, 0]}}
    plan = speedup.plan(model, torch.randn(3, 4), masks, registry=rules)
    small = plan.apply(optimizer=optimizer, ema=(average, by_name, in_order))
    shapes = {n: p.shape for n, p in small.named_parameters()}
    assert {n: t.shape for n, t in by_name.items()} == shapes and "1.scale" in shapes
    assert [t.shape for t in in_order] == list(shapes.values())
    assert isinstance(average[1], Doubled) and average[1] is not small[1]
    assert not {id(p) for p in average.parameters()} & {id(p) for p in small.parameters()}
    assert average(torch.randn(3, 4)).shape == (3, 2)
    # The new parameter is no cut of the old one, so the optimizer begins anew with it.
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in small.parameters()}


def state_of(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [
        [[id(p) for p in group["params"]] for group in optimizer.param_groups],
        {id(p): {k: id(v) for k, v in s.items()} for p, s in optimizer.state.items()},
    ]


class Odd(torch.optim.SGD):
    """Keeps a square matrix for every weight, as optimizers of the second order do."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["square"] = torch.eye(len(p))
        return super().step(closure)


@pytest.mark.parametrize("fault", ["optimizer", "other optimizer", "average", "shape", "form", "itself"])
def test_all_or_nothing(fault: str) -> None:
    model = make()
    masks = masks_of(model)
    remask(model, masks)
    optimizer = (Odd if fault == "optimizer" else torch.optim.SGD)(model.parameters(), 0.1, momentum=0.9)
    x, wanted = next(batches(3))
    F.cross_entropy(model(x), wanted).backward()
    optimizer.step()
    good = copy.deepcopy(model)
    ema: Any = {
        "average": nn.Linear(3, 3),
        "shape": {"stem.weight": torch.zeros(3)},
        "form": 7,
        "itself": model,
    }.get(fault)
    plan = speedup.plan(model, x, masks)
    before = (
        [(id(p), p.grad, p.detach().clone()) for p in model.parameters()],
        [dict(vars(m)) for m in model.modules()],
        state_of(optimizer),
        [id(p) for p in good.parameters()],
    )
    given = (optimizer, torch.optim.SGD([nn.Parameter(torch.ones(1))])) if fault == "other optimizer" else optimizer
    with pytest.raises(speedup.InputError, match=r"optimizer|averaged|ema"):
        plan.apply(optimizer=given, ema=(good, ema) if ema is not None else good)
    for (number, grad, data), parameter in zip(before[0], model.parameters(), strict=True):
        assert id(parameter) == number and parameter.grad is grad and torch.equal(parameter, data)
    assert [dict(vars(m)) for m in model.modules()] == before[1]
    assert state_of(optimizer) == before[2]
    assert [id(p) for p in good.parameters()] == before[3]
    plan.apply(optimizer=optimizer if fault != "optimizer" else None, ema=good)


def test_rounds_of_pruning_and_training() -> None:
    """Prune, train on, prune again: each round starts from the small model of the last."""
    model = make()
    optimizer = OPTIMIZERS["momentum"](model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    widths = []
    x = torch.randn(2, 3, 7, 7).double()
    for number in range(4):
        train(model, optimizer, number, average=average)
        chosen = model.stem.weight.detach().abs().sum((1, 2, 3)).argsort()[:1].tolist()
        dropped = {"stem": chosen, "norm": chosen, "wide": [0]}
        masks: Masks = {}
        for name, rows in dropped.items():
            for parameter, tensor in model.get_submodule(name).named_parameters():
                masks.setdefault(name, {})[parameter] = torch.ones_like(tensor).index_fill_(0, torch.tensor(rows), 0.0)
        masked = copy.deepcopy(model)
        remask(masked, masks)
        speedup.plan(model, x, masks).apply(optimizer=optimizer, ema=average)
        same_function(model, masked.eval())
        widths.append(model.wide.out_channels)
        for one, two in zip(model.parameters(), average.module.parameters(), strict=True):
            assert one.shape == two.shape
    assert widths == [9, 8, 7, 6]
    train(model, optimizer, 9, average=average)
