"""The check that a small model answers as the masked one does."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from speedup.errors import SpeedupError
from speedup.inputs import resolve_inputs
from speedup.planned import Plan
from speedup.planning import ModelSpeedup, plan
from speedup.registry import Registry
from speedup.testing.contents import in_float64
from speedup.testing.masks import masked_copy


@dataclass(frozen=True, eq=False)
class Result:
    """What ``check_equal`` found.

    Attributes:
        model: the small model, in float64 and with the training flags of the original.
        plan: its plan; print it to see what went, and what stays and why.
        kept: the part of the parameters that is left, 1.0 for all of them.
        error: the largest difference of any output, relative to the output's largest entry.
    """

    model: nn.Module
    plan: Plan
    kept: float
    error: float

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter or buffer in the small model."""
        return tuple(self.model.state_dict(keep_vars=True)[name].shape)


def check_equal(
    model: nn.Module,
    dummy_input: Any,
    masks: Mapping[str, Any],
    other_inputs: Sequence[Any] = (),
    registry: Registry | None = None,
    tolerance: float = 1e-9,
) -> Result:
    """Make a small copy of the model and assert all that is promised of it; the model itself is not touched.

    In float64 and eval mode the small model gives the outputs of the masked one on the dummy input and the other
    inputs. Parameters and multiply-accumulates did not grow, training flags are as they were, a file of the state_dict
    brings a copy without contents to the same answers, and every parameter gets a gradient, unless it got none before.

    Args:
        dummy_input: what the small model is planned with; all inputs are as in ``speedup.plan``, of any float type.
        other_inputs: inputs of other batch sizes and other spatial sizes: facts that hold for one size only show here.
        registry: the rules to use; by default those of the installed plugins.
        tolerance: the largest accepted difference, relative to the largest entry of an output.

    Raises:
        AssertionError: one of these does not hold; the message says which, and where to look.
        SpeedupError: the speedup itself refused; the message names the rule or the call.
    """
    original = copy.deepcopy(model).double()
    flags = {name: module.training for name, module in original.named_modules()}
    masked = masked_copy(original, masks).eval()
    inputs = [in_float64(each) for each in (dummy_input, *other_inputs)]
    speedup = ModelSpeedup(copy.deepcopy(original), _fresh(inputs[0]), masks, registry=registry)
    small = speedup.speedup_model()
    assert speedup.plan is not None
    found = speedup.plan

    changed = [n or "the model" for n, module in small.named_modules() if module.training != _flag(flags, n)]
    assert not changed, f"training flags differ: {', '.join(changed)}; look at the rules' `replace`"
    _check_size(original, small, found)
    try:
        loaded = _reloaded(small)
    except Exception as error:
        raise AssertionError(
            f"the small model cannot be copied and its state_dict loaded into the copy: {error}"
        ) from error

    largest = 0.0
    for number, each in enumerate(inputs):
        wanted, got = _run(masked, each), _run(loaded.eval(), each)
        worst, problem = _compare(wanted, got, tolerance)
        if problem:
            where = "the dummy input" if number == 0 else f"other_inputs[{number - 1}]"
            raise AssertionError(f"on {where} {problem}. {_advice(original, each, masks, registry, number)}")
        largest = max(largest, worst)
    _check_gradients(masked, loaded, inputs[0])
    before, left = (sum(p.numel() for p in m.parameters()) for m in (original, small))
    return Result(small, found, left / before if before else 1.0, largest)


def _reloaded(small: nn.Module) -> nn.Module:
    """A copy of the small model that has what its state_dict carries from a file alone."""
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    loaded = copy.deepcopy(small)
    with torch.no_grad():
        for held in loaded.state_dict(keep_vars=True).values():
            if isinstance(held, torch.Tensor):
                held.zero_()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    return loaded


def _flag(flags: Mapping[str, bool], name: str) -> bool:
    """The flag that a module should have: its own, for a new one that of the module that it is in."""
    while name not in flags:
        name = name.rpartition(".")[0]
    return flags[name]


def _fresh(inputs: Any) -> Any:
    """Inputs that a model which writes into them may have."""
    return pytree.tree_map_only(torch.Tensor, torch.clone, inputs)


def _run(model: nn.Module, inputs: Any) -> Any:
    args, kwargs = resolve_inputs(_fresh(inputs))
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        return model(*args, **kwargs)


def _compare(wanted: Any, got: Any, tolerance: float) -> tuple[float, str]:
    """The largest relative difference, and what is wrong in words ('' when nothing is)."""
    left, spec = pytree.tree_flatten(wanted)
    right, other = pytree.tree_flatten(got)
    if spec != other:
        return 0.0, f"the small model returns {other}, the masked one {spec}"
    worst = 0.0
    for number, (a, b) in enumerate(zip(left, right, strict=True)):
        if not isinstance(a, torch.Tensor):
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return (
                worst,
                f"output {number} is {tuple(b.shape)} {b.dtype}, of the masked model {tuple(a.shape)} {a.dtype}",
            )
        if not a.numel():
            continue
        wide = torch.complex128 if a.is_complex() else torch.float64
        a, b = a.to(wide), b.to(wide)
        same = (a == b) | (torch.isnan(a) & torch.isnan(b))
        gap = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=torch.inf)
        scale = float(torch.where(torch.isfinite(a), a.abs(), 0.0).max()) or 1.0
        relative = float(gap.max()) / scale
        worst = max(worst, relative)
        if relative > tolerance:
            at = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
            return worst, f"output {number} differs by {relative:.2g} of its largest entry, most at {at}"
    return worst, ""


def _advice(original: nn.Module, inputs: Any, masks: Mapping[str, Any], registry: Registry | None, number: int) -> str:
    """Where a difference may come from: planned with this very input, the engine names the first call that differs."""
    try:
        plan(copy.deepcopy(original).eval(), _fresh(inputs), masks, registry=registry)
    except SpeedupError as error:
        return f"Planned with this input: {error}"
    if number:
        return (
            "Planned with this input it would be equal: a rule took a fact from the size or the values of the dummy "
            "input. Look at `uniform` (zero padding), `evaluate`, and sizes that `replace` writes down"
        )
    return (
        "The speedup itself found them equal at its own tolerance: look for a loss of precision in `evaluate` or a fold"
    )


def _check_size(original: nn.Module, small: nn.Module, found: Plan) -> None:
    before, after = (sum(p.numel() for p in m.parameters()) for m in (original, small))
    assert after <= before, f"parameters grew from {before} to {after}; gained: {found.report.gained}\n{found}"
    assert after == found.report.parameters[1], (
        f"{found.report.parameters[1]} parameters were planned, {after} are there"
    )
    macs = found.report.macs
    assert macs[1] <= macs[0], f"multiply-accumulates grew from {macs[0]} to {macs[1]}\n{found}"


def _graded(model: nn.Module, inputs: Any) -> set[str] | None:
    """The parameters that get a gradient from the outputs; None when the model cannot be differentiated."""
    args, kwargs = resolve_inputs(_fresh(inputs))
    try:
        leaves = [
            t for t in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(t, torch.Tensor) and t.requires_grad
        ]
        if not leaves:
            return None
        total = torch.stack([t.abs().sum().double() for t in leaves]).sum()
        torch.autograd.backward(total)
    except RuntimeError:
        return None
    return {name for name, p in model.named_parameters() if p.grad is not None}


def _check_gradients(masked: nn.Module, small: nn.Module, inputs: Any) -> None:
    before = _graded(masked, inputs)
    if before is None:
        return
    after = _graded(small, inputs)
    assert after is not None, "the small model cannot be differentiated, the masked one can"
    names = dict(masked.named_parameters())
    wanted = [n for n, p in small.named_parameters() if p.requires_grad and (n in before or n not in names)]
    missing = [n for n in wanted if n not in after]
    assert not missing, (
        f"no gradient reaches {', '.join(missing)}: nothing reads it, or `replace` put in a detached copy"
    )
    frozen = [n for n, p in small.named_parameters() if n in names and p.requires_grad != names[n].requires_grad]
    assert not frozen, f"requires_grad changed: {', '.join(frozen)}; look at `replace`"
