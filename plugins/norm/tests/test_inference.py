"""Layer norms that count what was removed, where no gradients are asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import speedup
import speedup_plugin_norm.inference as inference
from speedup_plugin_norm.compensated import LayerNormForward, ZerosForward, compensate

Given = dict[str, Any]
KINDS: dict[str, Given] = {
    "zeros": {"removed": 5},
    "constants": {"removed": 5, "removed_mean": 1.5, "removed_spread": 7.0},
    "large eps": {"removed": 50, "removed_mean": -0.5, "stat_eps": 0.3},
    "nothing": {"removed": 0},
}


WAYS = {  # how many numbers, of which kind, are worth what: see ``inference``
    "zeros written out": {"_FEW": 10**6, "_FEW_ZEROS": 10**6},
    "sums": {"_FEW": 0, "_FEW_HALF": 0},
    "sums in parts": {"_FEW": 0, "_FEW_HALF": 0, "_AT_ONCE": 15},
    "sums row by row": {"_FEW": 0, "_FEW_HALF": 0, "_AT_ONCE": 3},
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way of computing them, whatever the numbers and threads."""
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(inference, name, value)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which way was taken: ``_padded``, or ``vector_norm`` for sums."""
    names: list[str] = []
    for name in ("_padded", "vector_norm"):
        real = getattr(inference, name)
        monkeypatch.setattr(inference, name, lambda *a, real=real, name=name: names.append(name) or real(*a))
    return names


def made(given: Given, weight: bool = True, **options: Any) -> nn.Module:
    norm = nn.LayerNorm(6, **options).double()
    if not weight:
        norm.register_parameter("weight", None)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    numbers = {"removed_mean": 0.0, "removed_spread": 0.0, "stat_eps": 1e-5, "stat_axis": -1, **given}
    usual = not (numbers["removed_mean"] or numbers["removed_spread"])
    return compensate(norm, ZerosForward if usual else LayerNormForward, **numbers)


def both(norm: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """With gradients, in plain calls; and without."""
    with torch.no_grad():
        return plain(norm, x), norm(x)


def plain(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        result: torch.Tensor = norm(x)
    return result.detach()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("given", KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"weight": False}, {"elementwise_affine": False}], ids=str)
@pytest.mark.parametrize("change", [lambda x: x, lambda x: 1e3 * x + 1e4, lambda x: 1e-6 * x, lambda x: x[0]])
def test_the_answer_is_that_of_plain_calls(given: Given, options: Given, change: Callable[..., Any]) -> None:
    norm = made(given, **options)
    x = change(torch.randn(3, 4, 6, dtype=torch.float64))
    before = x.clone()
    a, b = both(norm, x)
    assert (a - b).abs().max() <= 1e-9 * max(1.0, float(a.abs().max()))
    assert b.is_contiguous() and torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", KINDS.values(), ids=list(KINDS))
@pytest.mark.usefixtures("way")
def test_of_inputs_as_they_come(given: Given, dtype: torch.dtype) -> None:
    """Transposed, expanded, and empty ones; they stay what they were, and the answer is contiguous, as the kernel's."""
    norm = made(given).to(dtype)
    for x in (torch.randn(6, 4, 3).permute(2, 1, 0), torch.randn(1, 4, 6).expand(3, 4, 6), torch.randn(0, 4, 6)):
        x = x.to(dtype)
        before = x.clone()
        a, b = both(norm, x)
        assert b.is_contiguous() and b.dtype == dtype and torch.equal(x, before)
        assert torch.allclose(a.float(), b.float(), rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 0.1)


def test_only_where_nothing_but_an_answer_is_asked_for(ran: list[str]) -> None:
    x = torch.randn(2, 6, dtype=torch.float64)
    for kind, way in (("zeros", "_padded"), ("constants", "vector_norm")):
        ran.clear()
        norm = made(KINDS[kind])
        both(norm, x)
        assert ran == [way]
        with torch.no_grad():
            norm(x.as_subclass(Marked))
            torch.jit.trace(norm, (x,), check_trace=False)
            torch.export.export(norm, (x,))
        assert ran == [way]
    norm.stat_eps = 0.0  # type: ignore[assignment]
    both(norm, x)
    assert ran == [way], "an eps of 0 leaves no number to divide by where all that is left is the same"


class Marked(torch.Tensor):
    """A tensor of somebody's own."""


@pytest.mark.parametrize("kind", ["zeros", "constants"])
def test_a_weight_that_is_computed_from_others(kind: str) -> None:
    """As pruning, weight normalization and such make it, behind whose back it is not to be taken."""
    x = torch.randn(4, 6, dtype=torch.float64)
    norm = made(KINDS[kind])
    nn.utils.prune.random_unstructured(norm, "weight", 0.5)
    a, b = both(norm, x)
    assert torch.allclose(a, b, rtol=1e-12)
    norm = made(KINDS[kind])

    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    nn.utils.parametrize.register_parametrization(norm, "bias", Twice())
    a, b = both(norm, x)
    assert torch.allclose(a, b, rtol=1e-12)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_transforms_of_functions(kind: str, dtype: torch.dtype) -> None:
    """Ensembles by ``vmap``, over inputs, parameters or both."""
    norms = [made(KINDS[kind]).to(dtype) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(norms)
    x = torch.randn(3, 4, 6).to(dtype)
    call = partial(torch.func.functional_call, norms[0])
    near = 0.1 if dtype == torch.bfloat16 else 1e-12
    with torch.no_grad():
        wanted = torch.stack([norm(each) for norm, each in zip(norms, x, strict=True)])
        found = torch.func.vmap(lambda p, each: call((p, buffers), (each,)))(parameters, x)
        assert torch.allclose(found.double(), wanted.double(), rtol=1e-12, atol=near)
        wanted = torch.stack([norm(x[0]) for norm in norms])
        found = torch.func.vmap(lambda p: call((p, buffers), (x[0],)))(parameters)
        assert torch.allclose(found.double(), wanted.double(), rtol=1e-12, atol=near)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_that_go_forward(kind: str) -> None:
    """They are taken where gradients are off, too."""
    norm = made(KINDS[kind])
    x, away = torch.randn(2, 4, 6, dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        _, found = torch.func.jvp(norm, (x,), (away,))
        wanted = (norm(x + step * away) - norm(x - step * away)) / (2 * step)
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        *({"stat_axis": 0}, {"stat_eps": 0.0}, {"removed_mean": 0.1}, {"removed_spread": 0.1}, {"stat_tail": ("act",)}),
        *({"stat_offset": 1.0}, {"stat_names": ("gamma", "beta")}, {"stat_spread": "std"}, {"stat_total": 9}),
        {"removed_by": torch.tensor([0])},
    ],
    ids=str,
)
def test_what_is_not_usual_takes_the_long_way(other: Given) -> None:
    usual = {"stat_axis": -1, "stat_eps": 1e-5, "removed": 5, "removed_mean": 0.0, "removed_spread": 0.0}
    usual |= {"stat_tail": (), "stat_offset": 0.0, "stat_names": ("weight", "bias"), "stat_spread": "var"}
    usual |= {"stat_total": None}
    norm = nn.LayerNorm(6)
    assert ZerosForward.fits(norm, usual)
    assert not ZerosForward.fits(norm, usual | other)


@pytest.mark.parametrize("bias", [True, False])
def test_most_layer_norms_become_the_usual_kind(bias: bool, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8, bias=bias), nn.Linear(8, 3)).double().eval()
    for p in model.parameters():
        nn.init.normal_(p)
    mask = torch.ones(8, 4)
    mask[::2] = 0
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    small = speedup.plan(model, x, {"0.weight": mask}).apply(copy.deepcopy(model))
    with torch.no_grad():
        model[0].weight *= mask
        wanted = model(x)
        assert isinstance(small[1], ZerosForward) and small[1].weight.shape == (5,), "one of the zeros is left"
        assert torch.allclose(small(x), wanted, rtol=1e-12, atol=1e-12)
        speedup.save(small, tmp_path / "small")
        again = speedup.load(copy.deepcopy(model), tmp_path / "small")
        assert isinstance(again[1], ZerosForward) and torch.equal(again(x), small(x))


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
    ("removed", "rows", "dtype", "threads", "how"),
    [
        (5, 2, torch.bfloat16, 1, "_padded"),
        (5, 2**13, torch.bfloat16, 1, "_padded"),
        (5, 2**13 + 1, torch.bfloat16, 1, "vector_norm"),
        (5, 2**13 + 1, torch.bfloat16, 2, "_padded"),
        (12, 2, torch.bfloat16, 1, "_padded"),
        (13, 2, torch.bfloat16, 1, "vector_norm"),
        (5, 2, torch.float32, 1, "_padded"),
        (5, 2**11, torch.float32, 1, "vector_norm"),
        (5, 2**11, torch.float32, 2, "_padded"),
    ],
)
def test_few_zeros_are_written_out(
    removed: int,
    rows: int,
    dtype: torch.dtype,
    threads: int,
    how: str,
    ran: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inference, "get_num_threads", lambda: threads)
    with torch.no_grad():
        made({"removed": removed}).to(dtype)(torch.randn(rows, 6).to(dtype))
    assert ran == [how]
