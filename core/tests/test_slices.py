"""Calls of large masked weights in slices: the same numbers as in one piece, and less of the weight in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup import masking
from speedup.masking import Masking
from speedup.registry import default_registry
from speedup.testing import randomize
from speedup.trace import sandbox, trace


class Call(nn.Module):
    """One call that reads a raw parameter."""

    def __init__(self, call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.call = call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(x, self.weight)


class Twisted(nn.Module):
    """What comes out of the layer depends on how its input lies in memory; ``view`` takes it as it is or not at all."""

    def __init__(self, layer: nn.Module, *order: int) -> None:
        super().__init__()
        self.layer = layer
        self.order = order

    def forward(self, x: torch.Tensor) -> Any:
        y = self.layer(x.permute(self.order))
        return y, y.stride()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(torch.relu(self.layer(x)))
        return y


ids = torch.tensor([[0, 3, 3], [7, 1, 0]])
SLICED = {
    "linear": (nn.Linear(12, 20), (3, 12)),
    "linear, no bias": (nn.Linear(12, 20, bias=False), (2, 3, 12)),
    "conv": (nn.Conv2d(4, 12, 3, padding=1), (2, 4, 5, 6)),
    "conv without batch": (nn.Conv1d(4, 12, 3), (4, 7)),
    "transposed conv": (nn.ConvTranspose2d(4, 12, 3), (2, 4, 5, 6)),
    "embedding": (nn.Embedding(9, 16), ids),
    "bilinear": (Call(lambda x, w: F.bilinear(x, x * 2, w), 10, 6, 6), (3, 6)),
    "function": (Call(F.linear, 20, 12), (3, 12)),
    "product": (Call(torch.matmul, 12, 20), (2, 3, 12)),
    "channels last": (Twisted(nn.Conv2d(4, 12, 3), 0, 3, 1, 2), (2, 5, 6, 4)),
    "transposed input": (Twisted(nn.Linear(12, 20), 1, 0, 2), (3, 2, 12)),
}
WHOLE = {
    "groups": (nn.Conv2d(4, 12, 3, groups=2), (2, 4, 5, 6)),
    "transposed, groups": (nn.ConvTranspose2d(4, 12, 3, groups=2), (2, 4, 5, 6)),
    "a view": (Call(lambda x, w: x @ w.t(), 20, 12), (3, 12)),
    "no product": (Call(lambda x, w: x + w, 20, 12), (20, 12)),
    "writes its weight": (nn.Embedding(9, 16, max_norm=1.0), ids),
    "both sides": (Call(lambda x, w: x + torch.matmul(w, w), 12, 12), (12, 12)),
}


def given(shape: Any) -> torch.Tensor:
    if isinstance(shape, torch.Tensor):
        return shape
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def run(
    model: nn.Module,
    x: torch.Tensor,
    whole: bool,
    monkeypatch: pytest.MonkeyPatch,
    masks: dict[str, torch.Tensor] | None = None,
    least: int = 1,
) -> tuple[Any, list[int]]:
    """What a traced run of the masked model gives, and how many numbers stand masked for it, each time."""
    generator = torch.Generator().manual_seed(2)
    if masks is None:
        masks = {n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in model.named_parameters()}
    made: list[int] = []
    masked = masking.masked

    def counted(tensor: torch.Tensor, mask: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        made.append(tensor.numel())
        return masked(tensor, mask, out)

    with monkeypatch.context() as patch:
        patch.setattr(masking, "masked", counted)
        patch.setattr(masking, "_LEAST", least)
        patch.setattr(masking, "_SHARE", 7)
        before = {n: (p.data_ptr(), p.detach().clone()) for n, p in model.named_parameters()}
        with sandbox(model):
            graph = trace(model, (x,), {}, default_registry(), masking=Masking(model, masks, whole=whole))
        for name, parameter in model.named_parameters():
            at, numbers = before[name]
            assert parameter.data_ptr() == at and torch.equal(parameter, numbers)
    return (graph.reference, dict(graph.plain)), made


@pytest.mark.parametrize("name", [*SLICED, *WHOLE])
def test_slices_give_what_the_whole_call_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = (SLICED | WHOLE)[name]
    model, x = randomize(model.double(), 0), given(shape)
    (wanted, numbers), _ = run(model, x, True, monkeypatch)
    (got, others), made = run(model, x, False, monkeypatch)
    assert numbers == others, "it lies in memory otherwise"
    for a, b in zip(wanted, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)
        assert a.stride() == b.stride()
    largest = max(p.numel() for p in model.parameters())
    if name in SLICED:
        assert max(made) < largest / 3
    else:
        assert max(made) == largest


def test_a_layer_that_is_called_again_is_masked_as_a_whole_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = randomize(Twice().double(), 0), given((3, 12))
    (wanted, _), _ = run(model, x, True, monkeypatch)
    (got, _), made = run(model, x, False, monkeypatch)
    torch.testing.assert_close(got, wanted, rtol=1e-14, atol=1e-14)
    assert max(made[: len(made) // 2]) < 144 == max(made)


def test_what_a_layer_does_not_take_is_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(randomize(nn.Linear(12, 20).double(), 0), given((3, 11)), False, monkeypatch)


LINES = {  # the axes of the parameters that the output shares
    **dict.fromkeys(SLICED, 0),
    "transposed conv": 1,
    "embedding": 1,
    "product": 1,
    "channels last": 0,
}


def of_lines(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """Masks of two indices in three of the axes that a call shares with its output."""
    masks = {}
    for n, p in model.named_parameters():
        axis = LINES[name] if p.ndim > 1 else 0
        line = torch.arange(p.shape[axis]) % 3 == 1
        masks[n] = line.reshape([-1 if a == axis else 1 for a in range(p.ndim)]).expand_as(p)
    return masks


def calls_of(
    model: nn.Module, x: torch.Tensor, masks: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, least: int = 1
) -> tuple[Any, list[list[torch.Tensor]]]:
    """What a run gives, and the parameters whenever some of their indices are put in."""
    seen: list[list[torch.Tensor]] = []
    chosen = Masking.chosen

    @contextlib.contextmanager
    def watched(self: Masking, axes: Any, indices: Any, gone: int) -> Any:
        with chosen(self, axes, indices, gone):
            seen.append([p.detach().clone() for p in axes])
            yield

    with monkeypatch.context() as patch:
        patch.setattr(Masking, "chosen", watched)
        result, _ = run(model, x, False, monkeypatch, masks, least)
    return result, seen


def and_more(masks: dict[str, torch.Tensor], name: str, more: str) -> dict[str, torch.Tensor]:
    """Masks that drop something of what they keep too: whole indices of the other axes, or any entries of weights."""
    made = {}
    for n, mask in masks.items():
        if mask.ndim > 1 and more == "columns":
            axis = next(a for a in range(mask.ndim) if a != LINES[name])
            line = torch.arange(mask.shape[axis]) % 2 == 0
            mask = mask & line.reshape([-1 if a == axis else 1 for a in range(mask.ndim)])
        elif mask.ndim > 1 and more == "entries":
            mask = mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) < 0.7)
        made[n] = mask
    return made


@pytest.mark.parametrize("more", ["nothing", "columns", "entries"])
@pytest.mark.parametrize("least", [1, 10**9])
@pytest.mark.parametrize("name", SLICED)
def test_what_is_masked_alike_is_made_once(name: str, least: int, more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_WORTH", 1)
    model, shape = SLICED[name]
    model, x = randomize(model.double(), 0), given(shape)
    masks = and_more(of_lines(model, name), name, more)
    (wanted, numbers), _ = run(model, x, True, monkeypatch, masks)
    (got, others), seen = calls_of(model, x, masks, monkeypatch, least)
    assert numbers == others, "it lies in memory otherwise"
    for a, b in zip(wanted, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)
        assert a.stride() == b.stride()
    assert seen, "the call was made as a whole"


def linear_with(bias: torch.Tensor | None, weight: torch.Tensor) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A layer with 6 of 12 rows of its weight masked, and its bias in this way."""
    model = randomize(nn.Linear(4, 12).double(), 0)
    return model, {"weight": weight} | ({} if bias is None else {"bias": bias})


ROWS = torch.arange(12) < 6
WEIGHT = ROWS[:, None].expand(12, 4)
NONE = torch.zeros(12, dtype=torch.bool)
UNLIKE = {
    "bias without a mask": linear_with(None, WEIGHT),
    "another mask for the bias": linear_with(torch.arange(12) < 7, WEIGHT),
    "a row more of the weight": linear_with(ROWS, WEIGHT & (torch.arange(12)[:, None] != 3)),
    "one index alone": linear_with(torch.arange(12) > 0, (torch.arange(12) > 0)[:, None].expand(12, 4)),
    "nothing left": linear_with(NONE, NONE[:, None].expand(12, 4)),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_what_is_not_masked_alike_is_made_for_each(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_WORTH", 1)
    model, masks = UNLIKE[name]
    x = given((3, 4))
    (wanted, _), _ = run(model, x, True, monkeypatch, masks)
    (got, _), seen = calls_of(model, x, masks, monkeypatch)
    torch.testing.assert_close(got, wanted, rtol=1e-14, atol=1e-14)
    assert not seen


def test_the_masked_index_stands_where_the_small_model_has_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the check sees it where a rule is wrong to say that places and numbers of indices do not matter."""
    monkeypatch.setattr(masking, "_WORTH", 1)
    model, masks = linear_with(~ROWS, (~ROWS)[:, None].expand(12, 4))
    _, ((weight, bias),) = calls_of(model, given((3, 4)), masks, monkeypatch, least=10**9)
    assert not weight[0].any() and not bias[0].any()
    assert torch.equal(weight[1:], model.get_parameter("weight").detach()[6:])


def test_what_is_no_number_under_a_mask_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_WORTH", 1)
    model, masks = linear_with(~ROWS, (~ROWS)[:, None].expand(12, 4))
    with torch.no_grad():
        model.get_parameter("weight")[:4] = torch.inf
    (got, _), seen = calls_of(model, given((3, 4)), masks, monkeypatch, least=10**9)
    assert seen and not got[0][:, :4].any()


def test_a_call_that_the_model_differentiates_is_made_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_WORTH", 1)
    layer, masks = linear_with(~ROWS, (~ROWS)[:, None].expand(12, 4))

    class Force(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                (force,) = torch.autograd.grad(torch.tanh(self.layer(x)).sum(), x)
            return force

    model, x = Force(), given((3, 4))
    masks = {f"layer.{n}": m for n, m in masks.items()}
    (wanted, _), _ = run(model, x, True, monkeypatch, masks)
    for least in (1, 10**9):
        (got, _), seen = calls_of(model, x, masks, monkeypatch, least)
        torch.testing.assert_close(got, wanted, rtol=1e-14, atol=1e-14)
        assert not seen
