"""Copies of modules that share everything but their dictionaries, and attributes that are set in them."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from speedup.shell import put, shell_of


def test_containers_are_its_own_and_all_else_is_shared() -> None:
    module: Any = nn.Linear(2, 3)
    module.kept, module.sizes, module.made = (1, [2]), [3], defaultdict(list, a=[4])
    module.order, module.names, module.sub = OrderedDict(a=1), {"b"}, nn.Linear(1, 1)
    shell = shell_of(module)
    for name in ("sizes", "made", "order", "names", "_parameters", "_forward_hooks"):
        mine, its = shell.__dict__[name], module.__dict__[name]
        assert mine == its and mine is not its and type(mine) is type(its)
    assert shell.kept is module.kept and shell.weight is module.weight and shell.sub is module.sub


class Told(nn.Linear):
    told: ClassVar[list[str]] = []

    def __setattr__(self, name: str, value: object) -> None:
        self.told.append(name)
        super().__setattr__(name, value)


class Doubled(nn.Linear):
    @property
    def width(self) -> int:
        return self._width

    @width.setter
    def width(self, value: int) -> None:
        self._width = 2 * value


def test_an_attribute_is_set_as_by_setattr() -> None:
    plain, told, doubled = nn.Linear(2, 3), Told(2, 3), Doubled(2, 3)
    put(plain, "in_features", 5)
    put(plain, "fresh", 6)
    put(plain, "bias", None)
    assert (plain.in_features, plain.fresh, plain.bias) == (5, 6, None) and "bias" in plain._parameters
    told.told.clear()
    put(told, "in_features", 5)
    assert told.told == ["in_features"]
    doubled.__dict__["width"] = 1
    put(doubled, "width", 5)
    assert doubled.width == 10
    with pytest.raises(TypeError):
        put(plain, "weight", 1)
    put(plain, "weight", nn.Parameter(torch.ones(1)))
    assert "weight" not in plain.__dict__
