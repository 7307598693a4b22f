"""Every source of masks gives the same small model; whatever fails leaves the model as it was."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import parametrizations, parametrize, prune

import speedup
from speedup import MaskError, masks
from speedup.testing import randomize

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
OTHER = torch.randn(3, 3, 11, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


def net() -> Net:
    return randomize(Net().double().eval(), 0)


def rows(parameter: torch.Tensor, dropped: list[int]) -> torch.Tensor:
    mask = torch.ones(parameter.shape, dtype=torch.bool)
    mask[dropped] = False
    return mask


def flat(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {f"conv1.{n}": rows(p, [1, 5]) for n, p in model.get_submodule("conv1").named_parameters()}
    found |= {f"norm.{n}": rows(p, [1, 5]) for n, p in model.get_submodule("norm").named_parameters()}
    return found | {"conv2.weight": rows(model.get_parameter("conv2.weight"), [0])}


def nested(model: nn.Module) -> dict[str, dict[str, Any]]:
    result: dict[str, dict[str, Any]] = {}
    for name, mask in flat(model).items():
        path, _, attribute = name.rpartition(".")
        result.setdefault(path, {"bias": None})[attribute] = mask
    return result


def masked(model: nn.Module) -> nn.Module:
    made = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in flat(made).items():
            made.get_parameter(name).mul_(mask)
    return made


def state(model: nn.Module) -> dict[str, Any]:
    def of(module: nn.Module) -> tuple[Any, ...]:
        plain = {k: id(v) for k, v in module.__dict__.items() if not isinstance(v, dict)}
        held = {k: [(n, id(x)) for n, x in v.items()] for k, v in module.__dict__.items() if isinstance(v, dict)}
        return type(module), plain, held

    return {name: of(module) for name, module in model.named_modules()}


def check_small(small: nn.Module, reference: nn.Module) -> None:
    assert dict(small.named_parameters())["conv1.weight"].shape == (6, 3, 3, 3)
    assert dict(small.named_parameters())["conv2.weight"].shape == (5, 6, 3, 3)
    for x in (X, OTHER):
        torch.testing.assert_close(small(x), reference(x), rtol=1e-10, atol=1e-10)


def written(
    write: Callable[[Any, Path], None], form: Callable[[nn.Module], dict[str, Any]], name: str
) -> Callable[[nn.Module, Path], Any]:
    def make(model: nn.Module, folder: Path) -> Path:
        write(form(model), folder / name)
        return folder / name

    return make


def save_safetensors(tensors: dict[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)


def save_numpy(tensors: dict[str, Any], path: Path) -> None:
    np.savez(path, **{n: t.numpy() for n, t in tensors.items()})


def state_dict_of_prune(model: nn.Module) -> dict[str, Any]:
    return pruned(copy.deepcopy(model)).state_dict()


def pruned(model: nn.Module) -> nn.Module:
    for name, mask in flat(model).items():
        path, _, attribute = name.rpartition(".")
        prune.custom_from_mask(model.get_submodule(path), attribute, mask)  # type: ignore[no-untyped-call]
    return model


def as_type(dtype: torch.dtype) -> Callable[[nn.Module], dict[str, Any]]:
    return lambda model: {n: m.to(dtype) for n, m in flat(model).items()}


SOURCES: dict[str, Callable[[nn.Module, Path], Any]] = {
    "NNI 1.x file": written(torch.save, nested, "m.pth"),
    "NNI 2.x dict": lambda model, folder: nested(model),
    "flat dict": lambda model, folder: flat(model),
    "flat file": written(torch.save, flat, "m.pt"),
    "flat file, any suffix": written(torch.save, flat, "m.mask"),
    "safetensors": written(save_safetensors, flat, "m.safetensors"),
    "safetensors, any suffix": written(save_safetensors, flat, "m.bin"),
    "safetensors of integers": written(save_safetensors, as_type(torch.uint8), "m.safetensors"),
    "numpy": written(save_numpy, flat, "m.npz"),
    "floats": lambda model, folder: as_type(torch.float16)(model),
    "state dict of a pruned model": lambda model, folder: state_dict_of_prune(model),
    "file of it": written(torch.save, state_dict_of_prune, "pruned.pth"),
    "names of a wrapper": lambda model, folder: {f"module._orig_mod.{n}": m for n, m in flat(model).items()},
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_small_model(source: str, tmp_path: Path) -> None:
    model = net()
    given = SOURCES[source](model, tmp_path)
    small = speedup.ModelSpeedup(copy.deepcopy(model), X, given).speedup_model()
    check_small(small, masked(model))
    assert speedup.verify(model, small, X, given)


def test_zeros_in_the_weights() -> None:
    model = masked(net())
    reference = copy.deepcopy(model)
    check_small(speedup.plan(model, X, "zeros").apply(), reference)
    with pytest.raises(MaskError, match="exactly 0"):
        speedup.plan(net(), X, "zeros")


def test_a_pruned_model_carries_its_masks(tmp_path: Path) -> None:
    model = pruned(net())
    original = model.get_parameter("conv1.weight_orig")
    before, reference = state(model), masked(net())
    plan = speedup.plan(model, X)
    assert state(model) == before
    small = plan.apply(verify=True)
    check_small(small, reference)
    speedup.save(small, tmp_path)
    check_small(speedup.load(net(), tmp_path), reference)
    assert not any("_orig" in n or "_mask" in n for n in small.state_dict())
    assert not small.get_submodule("conv1")._forward_pre_hooks
    assert isinstance(small.get_submodule("conv1").weight, nn.Parameter)
    assert original.shape == (8, 3, 3, 3)
    assert list(dict(small.named_parameters())) == list(dict(net().named_parameters()))
    small.train()(X).sum().backward()  # the weights are trained like any others
    assert small.get_parameter("conv1.weight").grad is not None


def test_carried_masks_and_others_add_up() -> None:
    model = net()
    prune.custom_from_mask(model.conv1, "weight", flat(model)["conv1.weight"])  # type: ignore[no-untyped-call]
    rest = {n: m for n, m in flat(net()).items() if n != "conv1.weight"}
    check_small(speedup.plan(model, X, rest).apply(), masked(net()))


def test_carried_masks_count_beside_those_that_were_loaded_for_another_instance() -> None:
    rest = masks.load(net(), {n: m for n, m in flat(net()).items() if n != "conv1.weight"})
    model = net()
    prune.custom_from_mask(model.conv1, "weight", flat(model)["conv1.weight"])  # type: ignore[no-untyped-call]
    check_small(speedup.plan(model, X, rest).apply(), masked(net()))


def test_masks_of_the_model_of_a_deep_copy() -> None:
    model = pruned(net())
    plan = speedup.plan(model, X)
    other = pruned(net())
    check_small(plan.apply(other), masked(net()))
    assert hasattr(model.get_submodule("conv1"), "weight_orig")


def parametrized(model: nn.Module) -> nn.Module:
    from torch.ao.pruning.sparsifier.utils import FakeSparsity

    for name, mask in flat(model).items():
        path, _, attribute = name.rpartition(".")
        parametrize.register_parametrization(model.get_submodule(path), attribute, FakeSparsity(mask))
    return model


def test_parametrizations_of_ao_pruning() -> None:
    model = parametrized(net())
    before, reference = state(model), copy.deepcopy(model)
    plan = speedup.plan(model, X)
    assert state(model) == before
    torch.testing.assert_close(model(X), reference(X))
    small = plan.apply(verify=True)
    check_small(small, masked(net()))
    assert type(small.get_submodule("conv1")) is nn.Conv2d
    assert not any("parametrizations" in n for n in small.state_dict())


def test_a_real_sparsifier() -> None:
    model = net()
    sparsifier = WeightNormSparsifier(sparsity_level=0.5, sparse_block_shape=(4, 1), zeros_per_block=4)
    sparsifier.prepare(model, [{"tensor_fqn": "fc.weight"}])  # type: ignore[no-untyped-call]
    sparsifier.step()  # type: ignore[no-untyped-call]
    reference = copy.deepcopy(model)
    small = speedup.plan(model, X).apply()
    assert small.get_parameter("fc.weight").shape == (4, 3)
    torch.testing.assert_close(small(OTHER), reference(OTHER), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prune_bias", [True, False])
def test_structured_sparsity_takes_the_bias_along(prune_bias: bool) -> None:
    from torch.ao.pruning._experimental.pruner import SaliencyPruner

    model = net()
    pruner = SaliencyPruner({})  # type: ignore[no-untyped-call]
    config = [{"tensor_fqn": "conv1.weight", "sparsity_level": 0.5, "prune_bias": prune_bias}]
    pruner.prepare(model, config)  # type: ignore[no-untyped-call]
    pruner.enable_mask_update = True
    pruner.step()  # type: ignore[no-untyped-call]
    reference = copy.deepcopy(model)
    small = speedup.plan(model, X).apply()
    assert small.get_parameter("conv1.weight").shape[0] < 8
    torch.testing.assert_close(small(OTHER), reference(OTHER), rtol=1e-10, atol=1e-10)


def test_parametrizations_that_do_more_than_mask() -> None:
    model = net()
    parametrizations.weight_norm(model.conv1)
    from torch.ao.pruning.sparsifier.utils import FakeSparsity

    parametrize.register_parametrization(model.conv1, "weight", FakeSparsity(torch.ones(8, 3, 3, 3)))
    before = state(model)
    with pytest.raises(MaskError, match=r"conv1\.weight is parametrized by a mask together with"):
        speedup.plan(model, X)
    assert state(model) == before


def test_a_model_without_masks() -> None:
    with pytest.raises(MaskError, match=r"carries none \(tried: torch\.nn\.utils\.prune"):
        speedup.plan(net(), X)


@pytest.mark.parametrize("carry", [pruned, parametrized])
def test_a_failure_leaves_a_carrying_model_as_it_was(
    carry: Callable[[nn.Module], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = carry(net())
    outputs = model(X)
    before = state(model)
    with pytest.raises(speedup.TraceError):
        speedup.plan(model, torch.zeros(1, 2))
    assert state(model) == before
    with pytest.raises(MaskError):
        speedup.plan(model, X, {"nothing": {"weight": torch.ones(1)}})
    assert state(model) == before
    plan = speedup.plan(model, X)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(sys.modules["speedup.planned"], "compare", fail)
    with pytest.raises(RuntimeError, match="no"):
        plan.apply(verify=True)
    assert state(model) == before
    assert torch.equal(model(X), outputs)


# ---------------------------------------------------------------- wrappers


def test_compiled_and_wrapped_models() -> None:
    for wrap in (torch.compile, nn.DataParallel):
        model: Any = wrap(net())
        small = speedup.ModelSpeedup(model, X, flat(net())).speedup_model()
        inner = getattr(small, "_orig_mod", None) or small.module  # type: ignore[union-attr]
        check_small(inner, masked(net()))  # type: ignore[arg-type]


# ---------------------------------------------------------------- activations


def multiplied(model: nn.Module, where: dict[str, tuple[str, torch.Tensor]]) -> nn.Module:
    made = copy.deepcopy(model)
    for path, (side, mask) in where.items():
        module = made.get_submodule(path)
        if side == "_output_0":
            module.register_forward_hook(lambda m, a, o, mask=mask: o * mask)
        else:
            module.register_forward_pre_hook(lambda m, a, mask=mask: (a[0] * mask,))
    return made


def channel_mask(size: int, dropped: list[int], ndim: int = 4) -> torch.Tensor:
    return rows(torch.ones(size), dropped).reshape([1, -1, *[1] * (ndim - 2)]).double()


@pytest.mark.parametrize("side", ["_output_0", "_input_0"])
def test_masks_of_activations(side: str, tmp_path: Path) -> None:
    """A masked activation needs no maker and no reader, whatever the weights are."""
    model = net()
    path = "relu" if side == "_output_0" else "conv2"
    where = {path: (side, channel_mask(8, [2, 3]))}
    reference = multiplied(model, where)
    before = state(model)
    plan = speedup.plan(model, X, {path: {side: where[path][1]}})
    assert state(model) == before
    small = plan.apply(verify=True)
    assert small.get_parameter("conv1.weight").shape[0] == 6
    assert small.get_parameter("conv2.weight").shape[1] == 6
    for x in (X, OTHER):
        torch.testing.assert_close(small(x), reference(x), rtol=1e-10, atol=1e-10)
    assert list(small.state_dict()) == list(net().state_dict())
    speedup.save(small, tmp_path)
    torch.testing.assert_close(speedup.load(net(), tmp_path)(OTHER), small(OTHER))
    assert not small.get_submodule(path)._forward_hooks and not small.get_submodule(path)._forward_pre_hooks


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.a(x) + self.b(x))


def test_a_product_that_must_stay() -> None:
    """The other branch keeps the channel, so the product is still part of the model, and can be pickled with it."""
    model = randomize(Residual().double().eval(), 3)
    mask = channel_mask(4, [1, 2])
    other = channel_mask(4, [2])
    reference = multiplied(model, {"a": ("_output_0", mask), "b": ("_output_0", other)})
    given = {"a": {"_output_0": mask, "weight": None}, "b": {"_output_0": other}}
    small = speedup.plan(model, X, given).apply(verify=True)
    assert small.get_parameter("a.weight").shape[0] == 3
    again = copy.deepcopy(small)
    for x in (X, OTHER):
        torch.testing.assert_close(again(x), reference(x), rtol=1e-10, atol=1e-10)
    assert list(again.get_submodule("a")._buffers) == ["_output_0_mask"]
    assert not again.get_submodule("b")._buffers


def test_masks_of_activations_and_weights_in_a_file(tmp_path: Path) -> None:
    model = net()
    given: dict[str, dict[str, Any]] = {**nested(model), "relu": {"_input_0": channel_mask(8, [2])}}
    torch.save(given, tmp_path / "nni3.pth")
    reference = multiplied(masked(model), {"relu": ("_input_0", channel_mask(8, [2]))})
    small = speedup.ModelSpeedup(model, X, tmp_path / "nni3.pth").speedup_model()
    assert small.get_parameter("conv1.weight").shape[0] == 5
    torch.testing.assert_close(small(OTHER), reference(OTHER), rtol=1e-10, atol=1e-10)


def test_wrong_masks_of_activations() -> None:
    model = net()
    before = state(model)
    for given, words in (
        ({"relu": {"_output_0": torch.full((1, 8, 1, 1), 0.5)}}, "neither 0 nor 1"),
        ({"relu": {"_output_x": torch.ones(1, 8, 1, 1)}}, "names no input or output"),
        ({"nothing": {"_output_0": torch.ones(1, 8, 1, 1)}}, "no module of that name"),
    ):
        with pytest.raises(MaskError, match=words):
            speedup.plan(model, X, given)
    assert state(model) == before


def first_zero(*size: int) -> torch.Tensor:
    mask = torch.ones(size)
    mask.view(-1)[0] = 0
    return mask


@pytest.mark.parametrize(
    ("key", "mask", "words"),
    [
        ("_output_0", first_zero(1, 7, 1, 1), r"size \(2, 8, 8, 8\).*\(1, 7, 1, 1\), does not broadcast"),
        ("_output_0", first_zero(4, 8, 1, 1), "does not broadcast"),
        ("_output_0", first_zero(3, 1, 1, 1, 1), "does not broadcast"),
        ("_output_1", first_zero(8, 1, 1), "'_output_1' of a ReLU is masked, and a call of it has no such tensor"),
        ("_input_1", first_zero(8, 1, 1), "no such tensor"),
        ("_input_mask", first_zero(8, 1, 1), "no such tensor"),
    ],
)
def test_masks_of_activations_that_fit_no_tensor(key: str, mask: torch.Tensor, words: str) -> None:
    """A product would otherwise give another size, or another tensor would be masked."""
    model = net()
    before = state(model)
    with pytest.raises(MaskError, match=words):
        speedup.plan(model, X, {"relu": {key: mask}})
    assert state(model) == before


class Several(nn.Module):
    def __init__(self, many: bool) -> None:
        super().__init__()
        self.many = many

    def forward(self, x: torch.Tensor) -> Any:
        return (None, x) if self.many else {"x": x}


@pytest.mark.parametrize(("many", "key"), [(True, "_output_0"), (True, "_output_2"), (False, "_output_0")])
def test_masks_of_what_a_module_returns_beside_tensors(many: bool, key: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), Several(many))
    with pytest.raises(MaskError, match="no such tensor"):
        speedup.plan(model, torch.randn(2, 3), {"1": {key: first_zero(4)}})
    if many:
        speedup.plan(model, torch.randn(2, 3), {"1": {"_output_1": first_zero(4)}})


# ---------------------------------------------------------------- files that fit nothing


def test_files_that_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "o.npz", weight=np.array([object()]), allow_pickle=True)
    with pytest.raises(MaskError, match=r"o\.npz.*pickled objects"):
        masks.load(net(), tmp_path / "o.npz")
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(MaskError, match=r"one array without a name.*numpy\.savez"):
        masks.load(net(), tmp_path / "one.npy")
    (tmp_path / "x.unknown").write_bytes(b"what is this")
    with pytest.raises(MaskError, match=r"Tried: safetensors.*numpy.*torch\.save"):
        masks.load(net(), tmp_path / "x.unknown")
    save_safetensors(flat(net()), tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-20])
    with pytest.raises(MaskError, match=r"cut\.safetensors.*damaged"):
        masks.load(net(), tmp_path / "cut.safetensors")
    save_numpy(flat(net()), tmp_path / "m.npz")
    content = (tmp_path / "m.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:-20])
    with pytest.raises(MaskError, match=r"cut\.npz"):
        masks.load(net(), tmp_path / "cut.npz")


def test_a_named_source(tmp_path: Path) -> None:
    save_safetensors(flat(net()), tmp_path / "m")
    assert masks.load(net(), tmp_path / "m", source="safetensors").parameters.keys() == flat(net()).keys()
    with pytest.raises(MaskError, match="m' "):
        masks.load(net(), tmp_path / "m", source="torch")
    with pytest.raises(MaskError, match="source='nni'"):
        masks.load(net(), tmp_path / "m", source="nni")  # type: ignore[arg-type]
    assert masks.load(masked(net()), None, source="zeros").parameters["conv2.weight"][0].sum() == 0


@pytest.mark.parametrize(
    ("source", "given"),
    [("zeros", {}), ("zeros", "m.pt"), ("model", {}), ("model", "zeros"), ("dict", "m.pt"), ("dict", None)]
    + [(kind, given) for kind in ("torch", "safetensors", "numpy") for given in ({}, None)],
)
def test_a_named_source_does_not_go_with_another(source: Any, given: Any) -> None:
    """Else what was given would be passed over in silence."""
    with pytest.raises(MaskError, match=f"source='{source}' goes with .*, not with"):
        masks.load(pruned(masked(net())), given, source=source)


class Tied(nn.Module):
    """An embedding and a head with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.head(self.table(tokens).tanh())
        return made


@pytest.mark.parametrize("other", ["none", "different", "the same"])
def test_a_tied_weight_that_is_pruned_in_one_place_is_two_weights(other: str) -> None:
    model = randomize(Tied()).eval()
    mask = torch.ones(7, 4)
    mask[:, 1] = 0
    prune.custom_from_mask(model.head, "weight", mask)  # type: ignore[no-untyped-call]
    if other != "none":
        prune.custom_from_mask(model.table, "weight", mask if other == "the same" else mask.flip(1))  # type: ignore[no-untyped-call]
    tokens = torch.tensor([[0, 3, 6]])
    before = model(tokens)
    if other == "the same":
        torch.testing.assert_close(speedup.plan(model, tokens, None).apply()(tokens), before)
        return
    with pytest.raises(MaskError, match="are one parameter, and"):
        speedup.ModelSpeedup(model, tokens, None).speedup_model()
    assert torch.equal(model(tokens), before) and "weight_mask" in dict(model.head.named_buffers())


def test_masks_of_a_wrapped_module_and_of_what_it_gives_are_brought_to_its_name_together() -> None:
    model = nn.Sequential(nn.DataParallel(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2)).double().eval()
    weight, given = torch.ones(6, 4), torch.ones(1, 6)
    weight[1] = given[0, 1] = 0
    loaded = masks.load(model, {"0": {"weight": weight, "_output_0": given}})
    assert list(loaded.parameters) == ["0.module.weight"]
    assert list(loaded.activations) == ["0"]
