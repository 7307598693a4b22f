"""What a small model must still be able to do: be planned again, and move to other dtypes and devices."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from speedup.inputs import resolve_inputs
from speedup.planning import plan
from speedup.registry import Registry
from speedup.testing.contents import in_float64


def check_again(small: nn.Module, inputs: Any, registry: Registry) -> None:
    """Assert that a small model, planned again with masks that drop nothing, stays as it is.

    Raises:
        AssertionError: it becomes smaller once more, or answers otherwise.
    """
    args, kwargs = resolve_inputs(in_float64(inputs))
    masks: dict[str, dict[str, torch.Tensor]] = {}
    for name, parameter in small.named_parameters():
        path, _, attribute = name.rpartition(".")
        masks.setdefault(path, {})[attribute] = torch.ones(parameter.shape)
    again = plan(copy.deepcopy(small), in_float64(inputs), masks, registry=registry)
    gone = [f"{x.name} {x.before} -> {x.after}" for x in again.report.layers if x.before != x.after]
    assert not gone, (
        f"planned again without masks, more goes: {', '.join(gone)}. A rule took an entry for 0 that no mask makes 0 "
        "(use `facts.zero`), or the first plan missed what the second one found"
    )
    with torch.no_grad():
        before, after = _flat(small(*args, **kwargs)), _flat(again.apply()(*args, **kwargs))
    same = all(torch.allclose(a, b, rtol=1e-9, equal_nan=True) for a, b in zip(before, after, strict=True))
    assert same, "planned again without masks, the small model answers otherwise: look at `replace`"


def check_moves(masked: nn.Module, small: nn.Module, inputs: Any) -> None:
    """Assert that a small model moves to float32 and to the meta device as the masked one does.

    Args:
        masked, small: in float64, which are not changed.

    Raises:
        AssertionError: a tensor stays behind, or what comes out has another type or size.
    """
    held = _plain_tensors(small) - _plain_tensors(masked)
    assert not held, (
        f"the small model holds tensors that neither move nor are saved: {', '.join(sorted(held))}. `replace` put them "
        "there as plain attributes: register them as buffers or parameters"
    )
    for move in (torch.float32, "meta"):
        wanted, got = (_moved(model, inputs, move) for model in (masked, small))
        if isinstance(wanted, Exception):
            continue  # the model itself cannot be run there
        assert not isinstance(got, Exception), (
            f"moved to {move}, the small model fails and the masked one does not: {got}"
        )
        for number, (a, b) in enumerate(zip(wanted, got, strict=True)):
            assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device), (
                f"moved to {move}, output {number} of the small model is {tuple(b.shape)} {b.dtype} on {b.device}, "
                f"of the masked one {tuple(a.shape)} {a.dtype} on {a.device}"
            )


def _moved(model: nn.Module, inputs: Any, move: Any) -> list[torch.Tensor] | Exception:
    moved = copy.deepcopy(model).to(move)
    left = [n for n, t in moved.state_dict().items() if move == "meta" and t.device.type != "meta"]
    assert not left, f"moved to {move}, these stay behind: {', '.join(left)}"

    def there(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(move) if tensor.is_floating_point() or move == "meta" else tensor

    args, kwargs = pytree.tree_map_only(torch.Tensor, there, resolve_inputs(inputs))
    try:
        with torch.random.fork_rng(devices=()), torch.no_grad():
            return _flat(moved(*args, **kwargs))
    except Exception as error:  # whatever a model may raise there
        return error


def _flat(outputs: Any) -> list[torch.Tensor]:
    return [t for t in pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)]


def _plain_tensors(model: nn.Module) -> set[str]:
    """Tensors that modules hold as plain attributes."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, held in module.__dict__.items()
        if isinstance(held, torch.Tensor)
    }
