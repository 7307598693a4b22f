"""Walking through a model gives what torch's own generators give."""

from __future__ import annotations

import torch
from torch import nn

from speedup import walk


class Net(nn.Module):
    """A module under two names, a tied parameter, a buffer that two modules hold, and places with nothing in them."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.b = nn.ModuleDict({"same": self.a[0], "other": nn.Linear(3, 3, bias=False), "norm": nn.BatchNorm1d(3)})
        self.b["other"].weight = self.a[0].weight
        self.b["norm"].running_mean = self.a[1].running_mean
        self.nothing = None
        self.register_module("no_module", None)
        self.register_parameter("no_parameter", None)
        self.register_buffer("no_buffer", None)
        self.scale = nn.Parameter(torch.ones(3))


def test_modules_and_tensors_are_those_of_torch_in_their_order() -> None:
    model = Net()
    assert walk.all_paths(model) == list(model.named_modules(remove_duplicate=False))
    assert walk.named_modules(model) == list(model.named_modules())
    assert walk.modules(model) == list(model.modules())
    held = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    assert [(n, id(t)) for n, t in walk.named_tensors(model)] == [(n, id(t)) for n, t in held]
    for each in model.modules():
        assert [id(p) for p in walk.parameters(each)] == [id(p) for p in each.parameters()]
        assert {id(t) for t in walk.tensors(each)} == {id(t) for t in (*each.parameters(), *each.buffers())}
        assert len(walk.tensors(each)) == len({id(t) for t in walk.tensors(each)})


class Answering(nn.Module):
    """Modules that answer for attributes in other ways than torch's do, and count how often they are asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.asked = 0

    def __getattr__(self, name: str) -> object:
        return 3 if name == "computed" else super().__getattr__(name)

    @property
    def made(self) -> int:
        self.asked += 1
        return 5


def test_attributes_are_found_as_getattr_finds_them() -> None:
    model = Net()
    names = ("a", "scale", "nothing", "no_parameter", "no_buffer", "no_module", "training", "mro", "absent")
    for name in names:
        assert walk.attribute(model, name, walk.MISSING) is getattr(model, name, walk.MISSING)
    assert walk.attribute(model, "forward") == model.forward
    other = Answering()
    assert walk.attribute(other, "computed") == 3 and walk.attribute(other, "weight") is other.weight
    assert walk.attribute(other, "made") == 5 and other.asked == 1


def test_modules_are_remembered_until_they_may_have_changed_and_no_longer_than_asked() -> None:
    model, other = Net(), Net()
    with walk.remembered(model):
        assert walk.modules(model) is walk.modules(model)
        assert walk.all_paths(model) is walk.all_paths(model)
        model.a[1], other.a[1] = nn.Identity(), nn.Identity()
        assert walk.modules(other) == list(other.modules()), "of other models nothing is remembered"
        walk.forget()
        assert walk.modules(model) == list(model.modules())
        assert walk.all_paths(model) == list(model.named_modules(remove_duplicate=False))
    model.a[1] = nn.Flatten()
    assert walk.modules(model) == list(model.modules())
