"""For the tests of rules: models with random contents, random masks, and the check that the small model answers alike.

    def test_scale_follows_its_input() -> None:
        model = randomize(nn.Sequential(nn.Linear(4, 6), Scale(6), nn.Linear(6, 3)), seed=0)
        masks = random_masks(model, seed=0)
        result = check_equal(model, torch.randn(2, 4), masks, other_inputs=[torch.randn(5, 4)])
        assert result.shape("1.scale") == (3,)

``check_equal`` alone would accept a rule that keeps everything: assert ``shape`` or ``kept`` too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from speedup.errors import SpeedupError
from speedup.inputs import resolve_inputs
from speedup.masks import normalize_masks
from speedup.plan import ModelSpeedup, Plan, plan
from speedup.registry import Registry

__all__ = ["KINDS", "Result", "check_equal", "mask_indices", "masked_copy", "random_masks", "randomize"]

Masks = dict[str, dict[str, torch.Tensor]]
Model = TypeVar("Model", bound=nn.Module)

KINDS = ("filters", "filters+biases", "columns", "fine", "biases", "whole", "mixed")


def randomize(model: Model, seed: int = 0) -> Model:
    """Give every floating-point parameter and buffer random contents, in place, and return the model.

    New layers hide mistakes: their shifts are 0, their scales 1, their running statistics trivial. What an entry is
    for is told from its shape and contents, not from the layer:

    * a parameter of two or more axes gets normal entries, of a size that keeps activations of order one;
    * one of fewer axes that is all ones (a scale) gets entries of either sign, away from 0; any other normal entries;
    * a buffer that is positive and has "var" in its name stays positive; any other whose entries are all equal gets
      normal entries; one whose entries differ (an index, a table of positions) was computed, and stays.

    Args:
        seed: the same seed gives the same contents; the global random state is not touched.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * scale

    def positive(tensor: torch.Tensor) -> torch.Tensor:
        return torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5

    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            if parameter.ndim > 1:
                fan = parameter[0].numel()
                parameter.copy_(normal(parameter, (2 / fan) ** 0.5))
            elif bool((parameter == 1).all()):
                parameter.copy_(positive(parameter) * normal(parameter, 1.0).sign())
            else:
                parameter.copy_(normal(parameter, 0.5))
        for name, buffer in model.named_buffers():
            if not buffer.is_floating_point() or not buffer.numel():
                continue
            if "var" in name.rpartition(".")[2] and bool((buffer > 0).all()):
                buffer.copy_(positive(buffer))
            elif bool((buffer == buffer.flatten()[0]).all()):
                buffer.copy_(normal(buffer, 0.5))
    return model


def mask_indices(model: nn.Module, dropped: Mapping[str, Sequence[int]], axis: int = 0) -> Masks:
    """Masks that drop whole indices along one axis of the named parameters and keep all else.

    Example:
        >>> mask_indices(nn.Sequential(nn.Linear(2, 3)), {"0.weight": [1]})["0"]["weight"]
        tensor([[1., 1.],
                [0., 0.],
                [1., 1.]])
    """
    masks: Masks = {}
    for name, indices in dropped.items():
        parameter = model.get_parameter(name)
        mask = torch.ones(parameter.shape)
        mask.index_fill_(axis, torch.tensor(list(indices), dtype=torch.long), 0)
        path, _, attribute = name.rpartition(".")
        masks.setdefault(path, {})[attribute] = mask
    return masks


def random_masks(model: nn.Module, seed: int = 0, kind: str = "filters", share: float = 0.5) -> Masks:
    """Random masks that are not aligned between layers; each parameter keeps at least one entry, except for "whole".

    ==================  =============================================================================
    ``filters``         whole leading indices of every weight (a parameter of two or more axes); in
                        about half of the modules the same indices of the bias, if it has as many
    ``filters+biases``  the same, with every such bias
    ``columns``         whole indices along axis 1 of every weight
    ``fine``            single entries of every weight
    ``biases``          entries of every parameter of one axis (scales, shifts, slopes), in about half of
                        the modules the same ones
    ``whole``           one module with everything masked that is a weight, and perhaps its biases
    ``mixed``           for every module one of the above, or nothing
    ==================  =============================================================================

    Args:
        share: about how much is dropped.

    Raises:
        ValueError: an unknown kind, or a model that has nothing to mask in this way.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no kind of masks {kind!r}; kinds: {', '.join(KINDS)}")
    draw = _Draw(seed, share)
    owned: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim:
            path, _, attribute = name.rpartition(".")
            owned.setdefault(path, {})[attribute] = parameter
    able = [path for path, own in owned.items() if kind == "mixed" or _masks_of(own, kind, _Draw(0, share))]
    if not able:
        raise ValueError(f"the model has no parameter for masks of kind {kind!r}")
    if kind == "whole":
        able = [able[draw.integer(len(able))]]
    masks: Masks = {}
    for path in able:
        how = draw.choice((*KINDS[:5], "")) if kind == "mixed" else kind
        if found := _masks_of(owned[path], how, draw):
            masks[path] = found
    return masks or random_masks(model, seed + 1, kind, share)


class _Draw:
    """Random choices."""

    def __init__(self, seed: int, share: float) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.share = share

    def integer(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.generator))

    def choice(self, among: Sequence[str]) -> str:
        return among[self.integer(len(among))]

    def coin(self) -> bool:
        return self.integer(2) == 1

    def keep(self, shape: Sequence[int]) -> torch.Tensor:
        kept = torch.rand(tuple(shape), generator=self.generator) >= self.share
        kept.view(-1)[self.integer(kept.numel())] = True
        return kept.float()


def _masks_of(own: Mapping[str, nn.Parameter], kind: str, draw: _Draw) -> dict[str, torch.Tensor]:
    """Masks for the parameters of one module."""
    weights = {name: p for name, p in own.items() if p.ndim > 1}
    flat = {name: p for name, p in own.items() if p.ndim == 1}
    masks: dict[str, torch.Tensor] = {}
    if kind in ("filters", "filters+biases", "columns"):
        axis = int(kind == "columns")
        for name, p in weights.items():
            keep = draw.keep(p.shape[axis : axis + 1])
            masks[name] = keep.reshape([-1 if a == axis else 1 for a in range(p.ndim)]).expand(p.shape).clone()
            if kind == "filters+biases" or (kind == "filters" and draw.coin()):
                masks.update({n: keep.clone() for n, q in flat.items() if q.shape == keep.shape and n not in masks})
    elif kind == "fine":
        masks = {name: draw.keep(p.shape) for name, p in weights.items()}
    elif kind == "biases":
        alike: dict[torch.Size, torch.Tensor] | None = {} if draw.coin() else None
        for name, p in flat.items():
            keep = draw.keep(p.shape)
            masks[name] = keep if alike is None else alike.setdefault(p.shape, keep).clone()
    elif kind == "whole" and weights:
        masks = {name: torch.zeros(p.shape) for name, p in weights.items()}
        if draw.coin():
            masks.update({name: torch.zeros(p.shape) for name, p in flat.items()})
    return masks


def masked_copy(model: Model, masks: Mapping[str, Any]) -> Model:
    """A copy of the model with every masked entry set to 0: what the small model must be equal to."""
    copied = copy.deepcopy(model)
    keeps = normalize_masks(copied, masks)
    with torch.no_grad():
        for name, keep in keeps.items():
            parameter = copied.get_parameter(name)
            parameter.masked_fill_(~keep.to(parameter.device), 0)
    return copied


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
    inputs. Parameters and multiply-accumulates did not grow, training flags are as they were, the state_dict loads into
    a deep copy, and every parameter gets a gradient, unless it got none before.

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
    inputs = [_double(each) for each in (dummy_input, *other_inputs)]
    speedup = ModelSpeedup(copy.deepcopy(original), _fresh(inputs[0]), masks, registry=registry)
    small = speedup.speedup_model()
    assert speedup.plan is not None
    found = speedup.plan

    changed = [n or "the model" for n, module in small.named_modules() if module.training != _flag(flags, n)]
    assert not changed, f"training flags differ: {', '.join(changed)}; look at the rules' `replace`"
    _check_size(original, small, found)
    try:
        loaded = copy.deepcopy(small)
        loaded.load_state_dict(small.state_dict())
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


def _flag(flags: Mapping[str, bool], name: str) -> bool:
    """The flag that a module should have: its own, for a new one that of the module that it is in."""
    while name not in flags:
        name = name.rpartition(".")[0]
    return flags[name]


def _double(inputs: Any) -> Any:
    """Inputs with floating-point tensors in float64."""
    return pytree.tree_map_only(torch.Tensor, lambda t: t.detach().double() if t.is_floating_point() else t, inputs)


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
