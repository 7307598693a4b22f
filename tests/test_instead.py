"""Functions in the place of which the small model calls another one, which is told numbers (``Rule.instead``)."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import wrap_torch_function

import speedup
from speedup import Instead, Node, NodeKeep, Registry, Rule, default_registry
from speedup.testing import check_equal, mask_indices, masked_copy, randomize


@wrap_torch_function(lambda x, *_, **__: (x,))
def share(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Divides by how many channels there are."""
    return x * scale / x.shape[-1]


@wrap_torch_function(lambda x, *_, **__: (x,))
def share_of(x: torch.Tensor, scale: float = 1.0, *, whole: int) -> torch.Tensor:
    return x * scale / whole


class Share(Rule):
    name = "share"
    operands = ("x",)
    axes = "* c -> * c"
    makes = (share_of,)

    def instead(self, node: Node, keep: NodeKeep) -> Instead | None:
        value = node.operands[0]
        assert value is not None
        whole = node.arg("whole", value.shape[-1])
        return Instead(share_of, {"whole": whole}) if not keep.sets[0].all() else None


RULES = (
    Share(functions=(share,), call="x, scale=1.0"),
    Share(name="share of", functions=(share_of,), call="x, scale=1.0, *, whole"),
)
REGISTRY = Registry.from_rules(*default_registry().rules, *RULES)
X, OTHER = torch.randn(3, 4), torch.randn(2, 5, 4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(self.shared(self.a(x)))
        return y

    def shared(self, x: torch.Tensor) -> torch.Tensor:
        return share(x)


class Spelt(Net):
    def shared(self, x: torch.Tensor) -> torch.Tensor:
        scale = 0.5
        return [share(x, scale=scale), x][0]


def helper(x: torch.Tensor, scale: float) -> torch.Tensor:
    return share(x, scale)


class Helped(Net):
    def shared(self, x: torch.Tensor) -> torch.Tensor:
        return helper(x, 3.0)


class Supers(Net):
    """Its forward is compiled with a cell of its own, for ``super()``, and with a private name."""

    def __init__(self) -> None:
        super().__init__()
        self.__scale = 2.0

    def shared(self, x: torch.Tensor) -> torch.Tensor:
        return share(x, self.__scale) if super().extra_repr() == "" else x


class Named(Net):
    """Under another name the call is not known in the source."""

    function = staticmethod(share)

    def shared(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


exec_made: dict[str, Any] = {"Net": Net, "share": share}
exec("class Hidden(Net):\n    def shared(self, x):\n        return share(x)", exec_made)


def masks_of(model: nn.Module) -> Any:
    return mask_indices(model, {"a.weight": (1, 4, 6)})


@pytest.mark.parametrize("kind", [Net, Spelt, Helped, Supers])
def test_the_call_goes_to_the_other_function(kind: Callable[[], nn.Module]) -> None:
    model = randomize(kind())
    result = check_equal(model, X, masks_of(model), [OTHER], REGISTRY)
    assert result.shape("a.weight") == (5, 4) and result.shape("b.weight") == (2, 5)
    again = check_equal(result.model, X, mask_indices(result.model, {"a.weight": (0,)}), [OTHER], REGISTRY)
    assert again.shape("a.weight") == (4, 4)


@pytest.mark.parametrize("kind", [Named, exec_made["Hidden"]])
def test_without_the_source_it_stays(kind: Callable[[], nn.Module]) -> None:
    model = randomize(kind())
    assert check_equal(model, X, masks_of(model), [OTHER], REGISTRY).shape("a.weight") == (8, 4)
    plan = speedup.plan(model, X, masks_of(model), registry=REGISTRY)
    assert "a function counts it, and the code that calls it cannot be changed" in plan.explain("a")


def test_it_must_be_listed() -> None:
    class Silent(Share):
        makes = ()

    rules = Registry.from_rules(*default_registry().rules, Silent(functions=(share,), call="x, scale=1.0"))
    model = randomize(Net())
    with pytest.raises(speedup.RuleError, match="not listed in `makes`"):
        speedup.plan(model, X, masks_of(model), registry=rules)


def test_copies_pickles_and_files(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    model = randomize(Helped()).eval()
    masked = masked_copy(model, masks_of(model))
    small = speedup.plan(copy.deepcopy(model), X, masks_of(model), registry=REGISTRY).apply()
    speedup.save(small, tmp_path, registry=REGISTRY)
    loaded = speedup.load(copy.deepcopy(model), tmp_path, registry=REGISTRY)
    for other in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small)), loaded):
        torch.testing.assert_close(other(OTHER), masked(OTHER))
        assert type(other) is type(small) and isinstance(other, Helped)
    with pytest.raises(speedup.StorageError, match=r"calls a from_rules\.share_of .* no installed plugin makes"):
        speedup.load(copy.deepcopy(model), tmp_path)
    path = tmp_path / "speedup.json"
    for name, value in (("callee", 3), ("new", 4)):
        data = json.loads(path.read_text())
        edit = next(e for e in data["modules"][""]["becomes"][0]["edits"] if "callee" in e)
        edit[name] = value
        (tmp_path / "speedup.json").write_text(json.dumps(data))
        with pytest.raises(speedup.StorageError, match="damaged"):
            speedup.load(copy.deepcopy(model), tmp_path, registry=REGISTRY)
        edit[name] = {"callee": "from_rules.share_of", "new": None}[name]
        path.write_text(json.dumps(data))


def test_a_traceback_points_to_the_line_in_the_source() -> None:
    model = randomize(Helped()).eval()
    small = speedup.plan(model, X, masks_of(model), registry=REGISTRY).apply()
    assert small.shared.__func__.__code__.co_qualname == "Helped.shared"
    with pytest.raises(TypeError) as caught:
        small.shared("text")
    lines = [(t.path.name, t.lineno) for t in caught.traceback]
    for function in (Helped.shared, helper):
        assert (Path(__file__).name, function.__code__.co_firstlineno) in lines
