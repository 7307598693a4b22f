"""While the small model is tried, large parameters hold their numbers only from the call that reads them."""

from __future__ import annotations

import copy
import ctypes
import math
import weakref
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.testing import check_equal, mask_indices, randomize

HALF = range(0, 8, 2)
SEEN = []  # what the forwards below have seen


def held(net):
    """Bytes of its parameters; that they are asked for is not seen."""
    with torch._C.DisableTorchFunction():
        return sum(p.untyped_storage().nbytes() for p in net.parameters())


class Net(nn.Module):
    """A convolution, and behind it what weighs more."""

    literal = 8

    def __init__(self):
        super().__init__()
        self.first, self.bn, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.third, self.last = nn.Linear(8 * 36, 256), nn.Linear(256, 4)

    def forward(self, x):
        SEEN.append((self.first.out_channels, held(self)))
        y = self.second(F.relu(self.bn(self.first(x))))
        return self.last(F.relu(self.third(self.flat(y))))

    def flat(self, y):
        return y.flatten(1)


class Literal(Net):
    """Holds a size that has to be repaired, so that it is tried several times."""

    def flat(self, y):
        return y.reshape(-1, self.literal * 36)


MASKS = {"first.weight": HALF, "first.bias": HALF, "second.weight": HALF, "second.bias": HALF}


@pytest.mark.parametrize("kind", [Net, Literal])
def test_a_run_begins_without_large_parameters(kind):
    SEEN.clear()
    net = randomize(kind())
    result = check_equal(net, torch.randn(2, 3, 8, 8), mask_indices(net, MASKS), [torch.randn(3, 3, 8, 8)])
    assert result.model.third.in_features == 4 * 36
    tried = [size for channels, size in SEEN if channels < 8]
    final = held(result.model)
    assert min(tried) < final / 10
    # Those of the plan, then what `check_equal` does with the model that came out.
    assert tried[: 1 if kind is Net else 3] == [min(tried)] * (1 if kind is Net else 3)
    assert max(tried) == final


class Folding(nn.Module):
    """Constants go onto carriers, and with these into a running mean, a bias, and one that a layer gains."""

    def __init__(self):
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.bn_depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.b, self.bn_b = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.c, self.d = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, bias=False)
        self.one, self.bn_one = nn.Conv2d(8, 1, 1, bias=False), nn.BatchNorm2d(1)
        self.e, self.bn_e = nn.Conv2d(8, 8, 3, groups=2, padding=1), nn.BatchNorm2d(8)
        self.f = nn.Linear(8, 5)

    def forward(self, x):
        y = F.relu(self.bn_depthwise(self.depthwise(F.relu(self.bn(self.a(x))))))
        one = F.relu(self.bn_one(self.one(y)))
        y = F.relu(self.bn_b(self.b(y))) + F.gelu(self.c(y)) + F.gelu(self.d(y)) + one
        return self.f(F.relu(self.bn_e(self.e(y))).mean((2, 3)))


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_that_something_waits_changes_no_number(drop, channels_last, monkeypatch):
    net = randomize(Folding()).double()
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    masks = mask_indices(net, {f"{name}.weight": HALF for name in "abcd"})
    x, states, models = torch.randn(2, 3, 8, 8).double(), [], []
    for large in (1, 1 << 60):
        monkeypatch.setattr("speedup.deferred._LARGE", large)
        plan = speedup.plan(copy.deepcopy(net), x, masks, constants="drop" if drop else "exact")
        models.append(plan.apply())
        states.append(models[-1].state_dict())
    assert list(states[0]) == list(states[1]) and len(states[0]) > len(net.state_dict()) - drop
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]) and tensor.stride() == states[1][name].stride(), name
    assert [p.requires_grad for p in models[0].parameters()] == [p.requires_grad for p in models[1].parameters()]
    if not drop:
        assert {"d.bias", "depthwise.bias"} <= set(states[0])
        monkeypatch.setattr("speedup.deferred._LARGE", 1)
        assert check_equal(net, x, masks, [torch.randn(1, 3, 11, 7)]).model.b.in_channels < 8


class Head(Net):
    """With a head that only training calls."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8 * 36, 3)

    def forward(self, x):
        SEEN.append((self.first.out_channels, held(self)))
        y = self.flat(self.second(F.relu(self.bn(self.first(x)))))
        z = self.last(F.relu(self.third(y)))
        return (z, self.head(y)) if self.training else z


@pytest.mark.parametrize("kind", [Net, Literal, Head])
def test_what_is_read_while_it_waits_is_read_again(kind, monkeypatch):
    """As if nobody had seen that a module is called."""
    monkeypatch.setattr("speedup.deferred.Deferred.fill", lambda self, tensors: None)
    net = randomize(kind())
    result = check_equal(net, torch.randn(2, 3, 8, 8), mask_indices(net, MASKS))
    assert result.model.third.in_features == 4 * 36
    if kind is Head:
        assert result.model.head.in_features == 4 * 36


def test_a_head_that_only_training_calls():
    SEEN.clear()
    net = randomize(Head())
    result = check_equal(net, torch.randn(2, 3, 8, 8), mask_indices(net, MASKS))
    assert result.model.head.in_features == 4 * 36
    tried = [size for channels, size in SEEN if channels < 8]
    assert tried[:2] == [min(tried)] * 2 and min(tried) < held(result.model) / 10


def _look(module, args):
    with torch._C.DisableTorchFunction():
        SEEN.append(math.isfinite(ctypes.c_double.from_address(module.weight.data_ptr()).value))


def test_hooks_see_the_numbers():
    net = randomize(Net()).double()
    net.third.register_forward_pre_hook(_look)
    SEEN.clear()
    speedup.plan(net, torch.randn(2, 3, 8, 8).double(), mask_indices(net, MASKS)).apply()
    assert net.third.in_features == 4 * 36
    assert {item for item in SEEN if item is True or item is False} == {True}


class Asking(nn.Module):
    """Asks how a layer's weight lies in memory."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 256), nn.Linear(256, 256), nn.Linear(256, 4)

    def forward(self, x):
        return self.asking(F.relu(self.a(x)))


class Reshaping(Asking):
    def asking(self, y):
        y = y.reshape(-1, 256 if self.b.weight.is_contiguous() else y.shape[1])
        return self.out(F.relu(self.b(y)))


class Choosing(Asking):
    def asking(self, y):
        return self.out(F.relu(self.b(y * (1.0 if self.b.weight.stride() == (y.shape[1], 1) else 0.5)))).argmax(1)


class Asserting(Asking):
    def asking(self, y):
        assert self.b.weight.is_contiguous()
        return self.out(F.relu(self.b(y)))


@pytest.mark.parametrize("kind", [Reshaping, Choosing, Asserting])
def test_questions_about_the_memory_of_what_waits(kind):
    masks = mask_indices(kind(), {"a.weight": range(0, 256, 2)})
    result = check_equal(randomize(kind()), torch.randn(4, 8), masks, [torch.randn(500, 8)])
    assert result.model.b.in_features == 128
    assert len(result.plan.report.repaired) == (kind is Reshaping)


class Inferring(Asking):
    """Infers in inference mode, and has a head that only training calls."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(256, 3)

    def forward(self, x):
        with torch.inference_mode(not self.training):
            y = F.relu(self.a(x))
            z = self.out(F.relu(self.b(y)))
            return (z, self.head(y)) if self.training else z


class Bare(Asking):
    def forward(self, x):
        with torch._C._InferenceMode(not self.training):
            return self.out(F.relu(self.b(F.relu(self.a(x)))))


@pytest.mark.parametrize("kind", [Inferring, Bare])
def test_what_is_filled_in_inference_mode_can_be_trained(kind):
    net = kind()
    masks = mask_indices(net, {"a.weight": range(0, 256, 2)})
    speedup.plan(net, torch.randn(2, 8), masks).apply()
    assert net.b.in_features == 128 and not any(p.is_inference() for p in net.parameters())
    made = net.train()(torch.randn(2, 8))
    (made[0] if kind is Inferring else made).sum().backward()
    assert net.b.weight.grad is not None


class Peaked(nn.Module):
    """Looks at its weight when it is told its width."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(256, 256))
        self.width = 256

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "width":
            super().__setattr__("peak", float(self.weight.detach().abs().amax()))

    def forward(self, x):
        return x @ self.weight.T


class Property(Peaked):
    __setattr__ = nn.Module.__setattr__

    @property
    def width(self):
        return self.kept

    @width.setter
    def width(self, value):
        self.kept, self.peak = value, float(self.weight.detach().abs().amax())


class PeakedRule(speedup.Rule):
    name = "peaked"
    modules = (Peaked, Property)
    operands = ("input", "weight")
    axes = "* i, o i -> * o"
    sizes: ClassVar = {"width": "i"}


@pytest.mark.parametrize("kind", [Peaked, Property])
def test_a_module_that_looks_at_its_weight_when_it_is_made_smaller(kind):
    net = Asking()
    net.b = kind()
    net = randomize(net).double()
    registry = speedup.Registry.from_rules(*speedup.default_registry().rules, PeakedRule())
    masks = mask_indices(net, {"a.weight": range(0, 256, 2)})
    net.asking = lambda y: net.out(F.relu(net.b(y)))
    speedup.plan(net, torch.randn(2, 8).double(), masks, registry=registry).apply()
    assert net.b.width == 129  # one carries what went
    assert net.b.peak == float(net.b.weight.detach().abs().amax())


def test_what_a_run_cannot_write_to_its_buffers_is_told_as_before():
    class Expanded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)
            self.register_buffer("seen", torch.zeros(()).expand(3))

        def forward(self, x):
            self.seen[0].add_(1)
            return self.b(F.relu(self.a(x)))

    net = Expanded()
    with pytest.raises(RuntimeError, match="single memory location"):
        speedup.plan(net, torch.randn(2, 8), mask_indices(net, {"a.weight": range(8)}))


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_an_error_in_the_middle_of_a_run_is_raised_and_leaves_the_model_alone(error, monkeypatch):
    class Careful(Net):
        def forward(self, x):
            try:
                return super().forward(x)
            except Exception:
                return x.sum() + self.last.bias

    def fails(keeps, value, *new):
        if value.names == ("third.weight",):
            raise error("no room")
        return own(keeps, value, *new)

    own = speedup.build.kept_of
    monkeypatch.setattr("speedup.build.kept_of", fails)
    net = randomize(Net() if error is KeyboardInterrupt else Careful()).double()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(error, match="no room"):
        speedup.plan(net, torch.randn(2, 3, 8, 8).double(), mask_indices(net, MASKS))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


class Remembered(Literal):
    """Notes what it has computed, for as long as that lives."""

    def flat(self, y):
        SEEN.append(weakref.ref(y))
        return super().flat(y)


def test_what_a_failing_run_has_computed_is_let_go():
    class Watching(Remembered):
        def forward(self, x):
            SEEN.append([ref for ref in SEEN if isinstance(ref, weakref.ref) and ref() is not None])
            return super().forward(x)

    net = randomize(Watching()).double()
    SEEN.clear()
    speedup.plan(net, torch.randn(3, 3, 8, 8).double(), mask_indices(net, MASKS)).apply()
    assert net.third.in_features == 4 * 36
    alive = [item for item in SEEN if isinstance(item, list)]
    assert len(alive) >= 4 and not any(alive)
