"""The layer norm that counts what was removed: without gradients it is torch's own kernel, corrected."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import speedup_plugin_norm.compensated as compensated
from speedup_plugin_norm.compensated import LayerNormForward, compensate

Given = dict[str, Any]
KINDS: dict[str, Given] = {
    "zeros": {"removed": 5},
    "constants": {"removed": 5, "removed_mean": 1.5, "removed_spread": 7.0},
    "large eps": {"removed": 50, "removed_mean": -0.5, "stat_eps": 0.3},
    "nothing": {"removed": 0},
}


def made(given: Given, **options: Any) -> nn.Module:
    norm = nn.LayerNorm(6, **options).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    numbers = {"removed_mean": 0.0, "removed_spread": 0.0, "stat_eps": 1e-5, "stat_axis": -1, **given}
    return compensate(norm, LayerNormForward, **numbers)


def both(norm: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """With gradients, in plain calls; and without, by the kernel."""
    with torch.no_grad():
        return plain(norm, x), norm(x)


def plain(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        result: torch.Tensor = norm(x)
    return result.detach()


@pytest.mark.parametrize("given", KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}], ids=str)
@pytest.mark.parametrize("change", [lambda x: x, lambda x: 1e3 * x + 1e4, lambda x: 1e-6 * x, lambda x: x[0]])
def test_the_kernel_gives_what_plain_calls_give(given: Given, options: Given, change: Callable[..., Any]) -> None:
    norm = made(given, **options)
    x = change(torch.randn(3, 4, 6, dtype=torch.float64))
    a, b = both(norm, x)
    assert (a - b).abs().max() <= 1e-9 * max(1.0, float(a.abs().max()))


def test_it_is_the_kernel_that_runs_and_only_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    real = torch.native_layer_norm
    monkeypatch.setattr(compensated.torch, "native_layer_norm", lambda *a: called.append(1) or real(*a))
    norm, x = made(KINDS["constants"]), torch.randn(2, 6, dtype=torch.float64)
    both(norm, x)
    assert called == [1]
    norm.stat_eps = 0.0  # type: ignore[assignment]
    both(norm, x)
    assert called == [1], "an eps of 0 leaves no number to divide by where all that is left is the same"


def test_gradients_are_those_of_the_whole_norm() -> None:
    norm = made(KINDS["zeros"])
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))


def test_half_precision_counts_in_float32() -> None:
    norm = made(KINDS["zeros"]).bfloat16()
    x = torch.randn(3, 6).bfloat16()
    a, b = both(norm, x)
    assert b.dtype == torch.bfloat16
    with torch.no_grad():
        assert norm.float()(x).dtype == torch.float32, "as under autocast, where parameters stay in float32"
    assert torch.allclose(a.float(), b.float(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_type_are_brought_to_that_of_the_input(dtype: torch.dtype) -> None:
    """As a forward of the user's does, which torch's own kernel would refuse."""
    norm = made(KINDS["constants"]).to(dtype)
    a, b = both(norm, torch.randn(3, 6))
    assert a.dtype == b.dtype == torch.float32
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "given",
    [
        *({"removed": count} for count in (1, 5, 12, 13, 50)),
        {"removed": 5, "removed_spread": 3.0},
        {"removed": 5, "removed_mean": 1.5},
    ],
)
def test_half_precision_is_rounded_once(options: Given, dtype: torch.dtype, given: Given) -> None:
    """By the kernel over zeros where these alone went, and few; else in float32."""
    norm = made(given, **options).to(dtype)
    x = (torch.randn(3, 4, 6) + 0.5).to(dtype)
    numbers: Any = copy.deepcopy(norm).double()
    with torch.no_grad():
        wanted, found = plain(numbers, x.double()), norm(x)
    assert found.dtype == dtype and found.is_contiguous()
    # The bias may take away most of what is scaled: what is rounded is the sum.
    assert ((found.double() - wanted).abs() <= torch.finfo(dtype).eps * (0.51 * wanted.abs()) + 1e-5).all()


@pytest.mark.parametrize(
    ("removed", "rows", "runs"),
    [(5, 2, ["layer_norm"]), (13, 2, ["native_layer_norm"]), (5, 2**15, ["native_layer_norm"])],
)
def test_few_zeros_of_half_precision_are_written_out(
    removed: int, rows: int, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    for place, name in ((compensated.torch, "native_layer_norm"), (compensated.F, "layer_norm")):
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *a, real=real, name=name: called.append(name) or real(*a))
    with torch.no_grad():
        made({"removed": removed}).bfloat16()(torch.randn(rows, 6).bfloat16())
    assert called == runs
