"""`ModelSpeedup` and `plan` as users meet them: what they accept, what they refuse and how, and what they give back."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup import ModelSpeedup
from speedup.errors import InputError, MaskError, SpeedupError, TraceError
from speedup.testing import check_equal, mask_indices, masked_copy, randomize


class Net(nn.Module):
    """At module level, so that it can be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.two = nn.Conv2d(8, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.two(self.act(self.norm(self.conv(x))))
        result: torch.Tensor = self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))
        return result


DROPPED = {
    "conv.weight": (0, 3, 5),
    "conv.bias": (0, 3, 5),
    "norm.weight": (0, 3, 5),
    "norm.bias": (0, 3, 5),
    "two.weight": (1,),
}
GIVEN = (2, 3, 8, 8)


def net() -> Net:
    return randomize(Net()).eval()


def masks_of(model: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    return mask_indices(model, DROPPED)


def small_net(model: nn.Module | None = None) -> Any:
    model = net() if model is None else model
    return ModelSpeedup(model, torch.randn(*GIVEN), masks_of(model)).speedup_model()


def assert_small(model: Any) -> None:
    assert model.conv.weight.shape == (5, 3, 3, 3) and model.two.weight.shape == (5, 5, 3, 3)


# -- what it gives back -----------------------------------------------------------------------------------------------


def test_it_works_in_place_and_returns_the_model() -> None:
    model = net()
    reference = masked_copy(model, masks_of(model))
    x = torch.randn(3, 3, 11, 9)
    assert small_net(model) is model
    assert_small(model)
    assert torch.allclose(model(x), reference(x), rtol=1e-4, atol=1e-5)


def test_modules_keep_their_identity_and_their_integer_attributes_follow() -> None:
    model = net()
    before = {n: id(m) for n, m in model.named_modules()}
    small_net(model)
    assert {n: id(m) for n, m in model.named_modules()} == before
    assert (model.conv.out_channels, model.norm.num_features, model.two.in_channels, model.fc.in_features) == (
        5,
        5,
        5,
        5,
    )


def test_training_flags_stay_as_mixed_as_they_were() -> None:
    model = net().train()
    model.norm.eval()
    model.fc.eval()
    flags = {n: m.training for n, m in model.named_modules()}
    small_net(model)
    assert {n: m.training for n, m in model.named_modules()} == flags


def test_hooks_stay_and_fire() -> None:
    model = net()
    seen: list[torch.Size] = []
    handle = model.conv.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    small_net(model)
    seen.clear()
    model(torch.randn(1, 3, 8, 8))
    assert seen == [(1, 5, 8, 8)]
    handle.remove()
    model(torch.randn(1, 3, 8, 8))
    assert len(seen) == 1


def test_requires_grad_and_dtype_stay() -> None:
    model = net().to(torch.bfloat16)
    model.conv.weight.requires_grad_(False)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    ModelSpeedup(model, torch.randn(*GIVEN, dtype=torch.bfloat16), masks_of(model)).speedup_model()
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert_small(model)


def test_the_small_model_can_be_copied_pickled_saved_and_loaded(tmp_path: Path) -> None:
    small = small_net()
    x = torch.randn(2, 3, 9, 9)
    wanted = small(x)
    assert torch.equal(copy.deepcopy(small)(x), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(small))(x), wanted)
    torch.save(small, tmp_path / "whole.pt")
    assert torch.equal(torch.load(tmp_path / "whole.pt", weights_only=False)(x), wanted)
    other = small_net()
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(small.state_dict())
    assert torch.equal(other(x), wanted)


def test_the_small_model_can_be_trained_further() -> None:
    small = small_net().train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(torch.randn(4, 3, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    before = small.conv.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(small.conv.weight, before)


def test_the_small_parameters_own_their_memory() -> None:
    """A view would keep the big tensor alive, and be saved with it."""
    for p in small_net().parameters():
        assert p.is_contiguous() and p.untyped_storage().nbytes() == p.numel() * p.element_size()


def test_a_model_that_is_itself_a_claimed_layer() -> None:
    layer = randomize(nn.Linear(6, 4))
    weight = layer.weight.detach().clone()
    masks = {"": {"weight": torch.ones(4, 6).index_fill(0, torch.tensor([1]), 0)}}
    small = ModelSpeedup(layer, torch.randn(2, 6), masks).speedup_model()
    assert small is layer and layer.weight.shape == (4, 6), "an output index is never removed"
    assert bool((layer.weight[1] == 0).all()) and torch.equal(layer.weight[0], weight[0])


def test_masked_entries_that_stay_are_zero_in_the_small_model() -> None:
    model = net()
    mask = (torch.rand(model.two.weight.shape, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    ModelSpeedup(model, torch.randn(*GIVEN), {"two": {"weight": mask}}).speedup_model()
    assert torch.equal(model.two.weight == 0, mask == 0)


# -- plan and apply ---------------------------------------------------------------------------------------------------


def test_a_plan_changes_nothing_until_it_is_applied() -> None:
    model = net()
    state = copy.deepcopy(model.state_dict())
    plan = speedup.plan(model, torch.randn(*GIVEN), masks_of(model))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert plan.apply() is model
    assert_small(model)


def test_a_plan_can_be_applied_to_a_copy() -> None:
    model = net()
    plan = speedup.plan(model, torch.randn(*GIVEN), masks_of(model))
    other = copy.deepcopy(model)
    assert plan.apply(other) is other
    assert_small(other)
    assert model.conv.weight.shape == (8, 3, 3, 3), "the original stays big"
    assert_small(plan.apply())


def test_model_speedup_shows_its_plan() -> None:
    model = net()
    job = ModelSpeedup(model, torch.randn(*GIVEN), masks_of(model))
    assert job.plan is None
    job.speedup_model()
    assert job.plan is not None and "conv (Conv2d)" in str(job.plan)


# -- masks ------------------------------------------------------------------------------------------------------------


def test_a_mask_file_is_read_and_a_dict_too(tmp_path: Path) -> None:
    one, two = net(), net()
    masks: dict[str, Any] = {n: {"weight": None, "bias": None, **e} for n, e in masks_of(one).items()}
    torch.save(masks, tmp_path / "masks.pt")
    ModelSpeedup(one, torch.randn(*GIVEN), str(tmp_path / "masks.pt")).speedup_model()
    ModelSpeedup(two, torch.randn(*GIVEN), tmp_path / "masks.pt", map_location="cpu").speedup_model()
    for model in (one, two):
        assert_small(model)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float16, torch.float64, "numpy"])
def test_masks_of_every_dtype_give_the_same_model(dtype: Any) -> None:
    model = net()
    masks: Any = {
        n: {k: m.numpy().astype(np.int8) if dtype == "numpy" else m.to(dtype) for k, m in e.items()}
        for n, e in masks_of(model).items()
    }
    assert_small(ModelSpeedup(model, torch.randn(*GIVEN), masks).speedup_model())


def test_the_masks_of_the_caller_are_left_alone() -> None:
    model = net()
    masks = masks_of(model)
    copied = copy.deepcopy(masks)
    ModelSpeedup(model, torch.randn(*GIVEN), masks).speedup_model()
    assert all(torch.equal(m, copied[n][k]) for n, e in masks.items() for k, m in e.items())


def test_a_layer_that_is_masked_whole_warns_and_becomes_a_constant() -> None:
    model = net()
    masks = {"conv": {"weight": torch.zeros_like(model.conv.weight)}}
    reference = masked_copy(model, masks)
    with pytest.warns(UserWarning, match=r"conv\.weight is masked whole"):
        ModelSpeedup(model, torch.randn(*GIVEN), masks).speedup_model()
    assert model.conv.weight.shape[0] == 1, "one index stays, never an empty tensor"
    x = torch.randn(3, 3, 10, 9)
    assert torch.allclose(model(x), reference(x), rtol=1e-4, atol=1e-5)


def test_all_layers_masked_whole_leave_a_model_that_runs() -> None:
    model = net()
    masks = {n: {"weight": torch.zeros_like(m.weight)} for n, m in model.named_modules() if n in ("conv", "two", "fc")}
    reference = masked_copy(model, masks)
    with pytest.warns(UserWarning, match="masked whole"):
        ModelSpeedup(model, torch.randn(*GIVEN), masks).speedup_model()
    x = torch.randn(3, 3, 10, 9)
    assert torch.allclose(model(x), reference(x), rtol=1e-4, atol=1e-5)


# -- mistakes ---------------------------------------------------------------------------------------------------------


def mistake(error: type[SpeedupError], match: str, model: Any = None, given: Any = None, masks: Any = None) -> None:
    model = net() if model is None else model
    given = torch.randn(*GIVEN) if given is None else given
    masks = masks_of(net()) if masks is None else masks
    before = copy.deepcopy(model.state_dict()) if isinstance(model, nn.Module) else None
    with pytest.raises(error, match=match):
        ModelSpeedup(model, given, masks).speedup_model()
    if before is not None:
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("masks", [{"0": {"weight": torch.ones(6, 4)}}, {"2": {"weight": torch.ones(2, 6)}}, "zeros"])
def test_layers_without_a_shape_are_named(masks: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LazyBatchNorm1d(), nn.LazyLinear(2)).eval()
    x = torch.randn(2, 4)
    for call in (
        lambda: speedup.plan(model, x, masks),
        lambda: speedup.prune_masks(model, x),
        lambda: speedup.channel_groups(model, x),
    ):
        with pytest.raises(speedup.InputError, match=r"'1\.weight', '1\.bias', '2\.weight' and 3 more: no shape yet"):
            call()
    assert all(nn.parameter.is_lazy(p) for p in (*model[1].parameters(), *model[2].parameters()))


def test_a_model_that_is_no_module() -> None:
    for model in (lambda x: x, "model.pt", Net, net().state_dict()):
        mistake(InputError, r"Module", model=model)


def test_a_dummy_input_of_the_wrong_shape_names_the_call_that_fails() -> None:
    mistake(
        TraceError,
        r"does not run on the dummy input.*Conv2d at .*test_front_door\.py:\d+",
        given=torch.randn(2, 5, 8, 8),
    )
    mistake(TraceError, "does not run on the dummy input", given=(torch.randn(*GIVEN), 3))
    mistake(TraceError, "does not run on the dummy input", given={"image": torch.randn(*GIVEN)})


def test_a_dummy_input_that_is_no_tensor() -> None:
    mistake(InputError, "size", given=(2, 3, 8, 8))
    mistake(InputError, "as_tensor", given=np.zeros(GIVEN))
    mistake(InputError, "tensor", given="image.png")


def test_a_misspelt_module_is_told_with_the_nearest_name() -> None:
    mistake(MaskError, r"'convv'.*conv", masks={"convv": {"weight": torch.ones(8, 3, 3, 3)}})
    mistake(MaskError, r"wieght.*weight", masks={"conv": {"wieght": torch.ones(8, 3, 3, 3)}})


def test_masks_of_the_wrong_shape_or_value() -> None:
    mistake(MaskError, r"conv.*\(8,\).*\(8, 3, 3, 3\)|conv.*8, 3, 3, 3", masks={"conv": {"weight": torch.ones(8)}})
    mistake(MaskError, r"0\.5", masks={"conv": {"weight": torch.full((8, 3, 3, 3), 0.5)}})
    mistake(MaskError, r"(?i)nan", masks={"conv": {"weight": torch.full((8, 3, 3, 3), float("nan"))}})
    mistake(MaskError, "empty", masks={})


def test_a_missing_file_and_a_file_with_code(tmp_path: Path) -> None:
    mistake(MaskError, "no such file", masks=str(tmp_path / "masks.pt"))
    torch.save(net(), tmp_path / "model.pt")
    mistake(MaskError, r"model\.pt", masks=tmp_path / "model.pt")


def test_every_error_is_a_speedup_error() -> None:
    for error in (InputError, MaskError, TraceError, speedup.RuleError, speedup.CheckError, speedup.PluginError):
        assert issubclass(error, SpeedupError)


# -- logging ----------------------------------------------------------------------------------------------------------


def test_one_line_of_log_a_stage_and_nothing_printed(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    model = net()
    with caplog.at_level(logging.INFO, logger="speedup"):
        small_net(model)
    stages = [r.getMessage().split(":")[0] for r in caplog.records if r.levelno == logging.INFO]
    assert stages == ["masks", "traced", "inferred", "planned", "applied"]
    assert all(r.name.split(".")[0] == "speedup" for r in caplog.records)
    assert capsys.readouterr() == ("", "")


def test_the_log_is_quiet_unless_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    small_net()
    assert capsys.readouterr() == ("", "")


# -- whatever is put in front of it -----------------------------------------------------------------------------------


def test_a_data_parallel_or_wrapped_model() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    model = Wrapper(net())
    masks = {f"inner.{n}": e for n, e in masks_of(model.inner).items()}
    ModelSpeedup(model, torch.randn(*GIVEN), masks).speedup_model()
    assert_small(model.inner)


def test_weight_norm_and_other_parametrizations_stay_right() -> None:
    model = net()
    torch.nn.utils.parametrizations.weight_norm(model.two)
    masks = {"conv": masks_of(net())["conv"]}
    reference = masked_copy(model, masks)
    ModelSpeedup(model, torch.randn(*GIVEN), masks).speedup_model()
    x = torch.randn(3, 3, 10, 9)
    assert torch.allclose(model(x), reference(x), rtol=1e-4, atol=1e-5)


def test_a_frozen_and_a_shared_optimizer_state_do_not_matter() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(*GIVEN)).sum().backward()
    optimizer.step()
    assert_small(small_net(model))


def test_planning_twice_gives_the_same_plan() -> None:
    model = net()
    given = torch.randn(*GIVEN)
    one, two = (speedup.plan(model, given, masks_of(model)).to_dict() for _ in range(2))
    assert one == two


class InInference(nn.Module):
    """Its forward runs in inference mode, where tensors do not say when they are written into."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    @torch.inference_mode()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(nn.functional.relu(self.a(x), inplace=True).add_(1))


def test_changes_in_place_in_inference_mode_are_followed() -> None:
    enter = torch.inference_mode.__enter__
    model = randomize(InInference())
    result = check_equal(model, torch.randn(2, 4), mask_indices(model, {"a.weight": [0, 3, 4]}), [torch.randn(3, 4)])
    assert result.shape("b.weight") == (2, 3) and torch.inference_mode.__enter__ is enter


def test_what_is_planned_in_inference_mode_can_be_trained() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)).eval()
    with torch.inference_mode():
        small = speedup.plan(model, torch.randn(2, 4), mask_indices(model, {"0.weight": [0, 3]})).apply()
    assert small[0].out_features == 4 and not any(p.is_inference() for p in small.parameters())
    small(torch.randn(2, 4)).sum().backward()


def test_outputs_that_are_no_numbers_are_told() -> None:
    """A masked row of a weight that is divided by its norm gives 0 / 0: what is compared there says nothing."""
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2)).eval()
    name = "0.parametrizations.weight.original1"
    mask = torch.ones(4, 3)
    mask[1] = 0
    with pytest.warns(UserWarning, match=r"output 0 of the masked model has NaN on the dummy input") as told:
        speedup.plan(model, torch.randn(1, 3), {name: mask})
    assert told[0].filename == __file__
