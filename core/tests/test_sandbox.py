"""The room in which the model runs: afterwards the model is as it was, bit for bit, whatever its forward did."""

from __future__ import annotations

import copy
import functools
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import speedup
from speedup.errors import TraceError
from speedup.testing import mask_indices, masked_copy, randomize
from speedup.trace import sandbox
from speedup.trace.buffers import Buffers


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that speedup must leave alone, in a form that can be compared bit for bit."""
    found: dict[str, Any] = {"rng": torch.get_rng_state().tolist(), "numpy": np.random.get_state()[1].tolist()}
    found["python"] = random.getstate()
    for name, module in model.named_modules(remove_duplicate=False):
        found[name, "module"] = (id(module), type(module), module.training)
        for key, value in module.__dict__.items():
            if key in ("_parameters", "_buffers", "_modules"):
                found[name, key] = [(n, id(v)) for n, v in value.items()]
            elif isinstance(value, dict | list | set):
                found[name, key] = (id(value), copy.copy(value))
            elif key == "held":
                found[name, key] = _contents(value)
            elif key != "training":
                found[name, key] = (id(value), value)
    for name, p in model.named_parameters():
        grad = p.grad
        found[name, "parameter"] = (_bits(p), p.data_ptr(), p.requires_grad, p.is_leaf, id(grad), _bits(grad))
    for name, b in model.named_buffers():
        found[name, "buffer"] = (_bits(b), b.data_ptr())
    return found


def _contents(held: Holder) -> Any:
    """What is in things that are no containers, and in containers in containers."""
    nested = {k: list(v) for k, v in held.nested.items()}
    states = (
        held.torch_random.get_state().tolist(),
        held.python_random.getstate(),
        str(held.numpy_random.bit_generator.state),
    )
    return (
        _bits(held.tensor),
        held.tensor.data_ptr(),
        held.array.tolist(),
        held.calls,
        nested,
        list(held.recent),
        states,
    )


def _bits(tensor: torch.Tensor | None) -> Any:
    if tensor is None:
        return None
    return (
        tensor.dtype,
        tensor.shape,
        tensor.detach().contiguous().view(torch.uint8).tolist() if tensor.ndim else tensor.item(),
    )


class Holder:
    """An object of the user's own, with all that a forward may change in it."""

    def __init__(self) -> None:
        self.calls = 0
        self.tensor, self.array = torch.zeros(3), np.zeros(2)
        self.nested: dict[str, list[int]] = {"steps": []}
        self.recent: deque[int] = deque([1, 2], maxlen=2)
        self.torch_random, self.python_random = torch.Generator(), random.Random(0)
        self.numpy_random = np.random.default_rng(0)

    def change(self) -> None:
        self.calls += 1
        self.tensor += 1
        self.array += 1
        self.nested["steps"].append(self.calls)
        self.recent.append(3)
        torch.rand(1, generator=self.torch_random)
        self.python_random.random()
        self.numpy_random.random()


class Busy(nn.Module):
    """Does everything that a forward should rather not do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(8))
        self.register_buffer("steps", torch.tensor(0))
        self.calls = 0
        self.log: list[str] = []
        self.cache: dict[str, Any] = {"keep": 1}
        self.names = {"a"}
        self.held = Holder()
        self.fail = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.log.append(f"call {self.calls}")
        self.cache["last"] = x
        self.cache["keep"] = 2
        self.names.add("b")
        self.fresh = "attribute"
        self.steps += 1
        self.held.change()
        random.random()
        np.random.rand()
        y = self.norm(self.one(x))
        self.seen.add_(y.mean(0))
        y = y + torch.randn_like(y) * 0.0
        self.extra_state = torch.rand(1)
        if self.fail:
            raise ValueError("the model's own error")
        result: torch.Tensor = self.two(self.drop(y))
        return result


def busy() -> Busy:
    model = randomize(Busy())
    model.train()
    model.norm.eval()
    model.two.weight.requires_grad_(False)
    model.one.register_forward_hook(lambda m, args, out: None)
    model.register_forward_pre_hook(lambda m, args: None)
    model.one.weight.register_hook(lambda grad: grad)
    model.one.bias.grad = torch.randn(8)
    model.one.weight.note = "kept"  # type: ignore[attr-defined]
    return model


MASKED = {"one.weight": (1, 4), "one.bias": (1, 4)}


def test_planning_leaves_no_trace_in_the_model() -> None:
    model = busy()
    masks = mask_indices(model, MASKED)
    before = state_of(model)
    speedup.plan(model, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), masks)
    assert state_of(model) == before


def test_an_error_of_the_model_leaves_no_trace_either() -> None:
    model = busy()
    model.fail = True
    masks = mask_indices(model, MASKED)
    given = torch.randn(2, 4)
    before = state_of(model)
    with pytest.raises(TraceError):
        speedup.plan(model, given, masks)
    assert state_of(model) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_sandbox_itself_puts_back_on_any_exception(error: type[BaseException]) -> None:
    model = busy()
    before = state_of(model)
    keep = torch.ones(8, 4, dtype=torch.bool)
    keep[0] = False
    with pytest.raises(error), sandbox(model, {"one.weight": keep}):
        assert not model.training
        assert bool((model.one.weight[0] == 0).all()), "masked entries are 0 inside"
        model(torch.ones(2, 4))
        model.one.weight.data = torch.zeros(8, 4)
        torch.rand(3)
        raise error
    assert state_of(model) == before


def test_a_child_that_moves_to_the_next_module_is_put_back() -> None:
    first, moved, last = nn.Identity(), nn.Identity(), nn.Identity()
    one, two = nn.ModuleDict({"first": first, "moved": moved}), nn.ModuleDict({"last": last})
    with sandbox(nn.Sequential(one, two)):  # in a row the two hold the same as before
        del one._modules["moved"]
        two._modules.clear()
        two._modules.update({"moved": moved, "last": last})
    assert dict(one) == {"first": first, "moved": moved}
    assert dict(two) == {"last": last}


def test_the_dummy_input_is_not_written_to() -> None:
    class Model(Busy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.mul_(3).clamp_(-1, 1)
            return super().forward(x)

    model = randomize(Model())
    given = torch.randn(2, 4)
    copied = given.clone()
    speedup.plan(model, (given,), mask_indices(model, MASKED))
    assert torch.equal(given, copied) and given.grad_fn is None


def test_the_dummy_input_needs_no_gradient_and_gets_none() -> None:
    model = randomize(Busy())
    given = torch.randn(2, 4, requires_grad=True)
    speedup.plan(model, given, mask_indices(model, MASKED))
    assert given.grad is None and given.requires_grad


def test_planning_works_inside_inference_mode_and_without_gradients() -> None:
    for context in (torch.no_grad(), torch.inference_mode()):
        model = randomize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        with context:
            plan = speedup.plan(model, torch.randn(2, 4), mask_indices(model, {"0.weight": (1, 4)}))
        assert plan.apply()[0].weight.shape == (6, 4)  # type: ignore[index]


def test_a_model_that_was_made_in_inference_mode() -> None:
    """Its parameters count no versions, not even with other contents in them."""
    with torch.inference_mode():
        model = randomize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1))).eval()
        masked = masked_copy(model, mask_indices(model, {"0.weight": (1, 4)}))
    x = torch.randn(2, 3, 5, 5)
    small = speedup.plan(model, x, mask_indices(model, {"0.weight": (1, 4)})).apply()
    with torch.inference_mode():
        assert torch.allclose(small(x), masked(x), atol=1e-5)
    assert small[0].weight.shape == (6, 3, 3, 3)  # type: ignore[index]


def test_a_buffer_with_nan_is_put_back_too() -> None:
    model = randomize(Busy())
    model.seen[3] = float("nan")
    before = _bits(model.seen)
    speedup.plan(model, torch.randn(2, 4), mask_indices(model, MASKED))
    assert _bits(model.seen) == before


def test_buffers_that_swap_their_sizes_are_put_back() -> None:
    one, two, step = torch.arange(2.0), torch.arange(2.0, 5.0), torch.tensor(7)
    noted = Buffers([one, two, step])
    one.resize_(3).copy_(torch.arange(3.0))
    two.resize_(2).copy_(torch.arange(3.0, 5.0))  # one behind the other they are what they were
    noted.restore()
    assert (one.tolist(), two.tolist(), step.tolist()) == ([0, 1], [2, 3, 4], 7)


def test_buffers_that_nobody_changed_are_not_written_to() -> None:
    line, table = torch.tensor([1.0, float("nan")]), torch.ones(2, 2)
    noted = Buffers([line, table])
    noted.restore()
    assert (line._version, table._version) == (0, 0)


def test_a_cache_that_the_forward_fills_does_not_leak_into_the_small_model() -> None:
    """What the traced run of the big model cached has the big shapes."""

    class Model(Busy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one(x)
            if "ones" not in self.cache:
                self.cache["ones"] = torch.ones_like(y)
            result: torch.Tensor = self.two(y * self.cache["ones"])
            return result

    model = randomize(Model()).eval()
    given = torch.randn(2, 4)
    small = speedup.ModelSpeedup(model, given, mask_indices(model, MASKED)).speedup_model()
    assert small.one.weight.shape[0] == 6  # type: ignore[union-attr, index]
    assert "ones" not in small.cache  # type: ignore[operator]
    small(given)


def test_what_a_function_outside_of_the_model_remembers() -> None:
    """The first run computes what later ones are given: two runs of the model make other calls."""

    @functools.lru_cache
    def positions(length: int) -> torch.Tensor:
        return torch.arange(length) / length

    class Model(Busy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.two(self.one(x) + positions(len(x))[:, None])
            return result

    model = randomize(Model()).eval()
    x, others = torch.randn(2, 4), torch.randn(3, 4)
    expected = [masked_copy(model, mask_indices(model, MASKED))(t) for t in (x, others)]
    positions.cache_clear()
    small = speedup.ModelSpeedup(model, x, mask_indices(model, MASKED)).speedup_model()
    for t, wanted in zip((x, others), expected, strict=True):
        assert torch.allclose(small(t), wanted, atol=1e-5)


def kept(method: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A cache in a wrapper, as transformers has it."""
    cached = functools.lru_cache(maxsize=1)(method)

    @functools.wraps(method)
    def call(*args: object) -> torch.Tensor:
        return cached(*args)

    return call


@pytest.mark.parametrize("cache", [functools.lru_cache(maxsize=None), kept])
def test_what_methods_keep_for_their_next_call(cache: Callable[..., Any]) -> None:
    """Nothing that the masked or the small model made is there afterwards, nor what the large one had."""

    class Model(Busy):
        @cache
        def gate(self, length: int) -> torch.Tensor:
            return self.one.weight.detach().sum(1) / length

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.two(self.one(x) * self.gate(len(x)))
            return result

    model = randomize(Model()).eval()
    x, others = torch.randn(2, 4), torch.randn(3, 4)
    masked = masked_copy(model, mask_indices(model, MASKED))
    before = model(x)
    plan = speedup.plan(model, x, mask_indices(model, MASKED))
    assert torch.equal(model(x), before), "planning leaves the model alone"
    small = plan.apply()
    assert small.one.weight.shape[0] == 6  # type: ignore[union-attr, index]
    for t in (x, others):
        assert torch.allclose(small(t), masked(t), atol=1e-5)
