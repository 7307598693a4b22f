"""Small models as files: they come back bit for bit, in another process too, and bad files change nothing."""

import copy
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import speedup
from speedup import Kept, Node, Registry, Rule, StorageError, default_registry
from tests.saved import net as shop

HERE = Path(__file__).parent


def small_net() -> nn.Module:
    net = shop.make()
    return speedup.plan(net, shop.ids(), shop.masks(net)).apply()


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return small_net()


@pytest.fixture
def saved(small: nn.Module, tmp_path: Path) -> Path:
    return speedup.save(small, tmp_path / "saved")


def answer(model: nn.Module) -> torch.Tensor:
    """On one thread: with several, products of matrices are not the same to the last bit in two runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            out: torch.Tensor = model(shop.ids())
    finally:
        torch.set_num_threads(threads)
    return out


def state(model: nn.Module) -> list[Any]:
    """Everything of a model that a failed load might have changed."""
    return [
        (type(m), {k: v.copy() if isinstance(v, dict | list | set) else v for k, v in vars(m).items()})
        for m in model.modules()
    ] + [(id(t), t.clone().tolist()) for t in (*model.parameters(), *model.buffers())]


def refuse(directory: Path, says: str, model: nn.Module | None = None) -> None:
    model = shop.make() if model is None else model
    before = state(model)
    with pytest.raises(StorageError, match=says):
        speedup.load(model, directory)
    assert state(model) == before


# -- the way there and back ----------------------------------------------------------------------------------------


def test_it_comes_back_bit_for_bit(small: nn.Module, saved: Path, tmp_path: Path) -> None:
    fresh = shop.make().train()
    loaded = speedup.load(fresh, saved)
    assert loaded is fresh and all(m.training for m in loaded.modules())
    loaded.eval()
    assert torch.equal(answer(loaded), answer(small))
    mine, theirs = loaded.state_dict(), small.state_dict()
    assert list(mine) == list(theirs) and all(torch.equal(mine[n], theirs[n]) for n in mine)
    assert repr(loaded) == repr(small)
    assert loaded.head.weight is loaded.table.weight
    for one, two in zip(loaded.modules(), small.modules(), strict=True):
        assert type(one) is type(two)
    again = speedup.save(loaded, tmp_path / "again")
    assert (again / "speedup.json").read_text() == (saved / "speedup.json").read_text()
    answer_of_trained = loaded(shop.ids()).sum()
    answer_of_trained.backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_the_files_are_readable(saved: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == ["model.safetensors", "speedup.json"]
    told = json.loads((saved / "speedup.json").read_text())
    assert (told["format"], told["version"]) == ("speedup", 1)
    assert told["modules"]["lstm"]["attributes"] == {"hidden_size": {"before": 10, "after": 8}}
    assert told["modules"]["norm"]["becomes"] == [{"overlay": "norm.ZerosForward"}]
    assert told["provenance"]["rounds"][0]["parameters"][0] == 4664
    assert load_file(saved / "model.safetensors")["up.weight"].shape == (14, 13, 1)


@pytest.mark.parametrize(
    "travel",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: nn.Sequential(m), lambda m: m.half()],
    ids=["copied", "pickled", "wrapped", "half"],
)
def test_the_record_goes_where_the_model_goes(travel: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    model = travel(small_net())
    speedup.save(model, tmp_path)
    fresh = shop.make()
    loaded = speedup.load(nn.Sequential(fresh) if isinstance(model, nn.Sequential) else fresh, tmp_path)
    for one, two in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True):
        assert one.dtype == two.dtype and torch.equal(one, two)
    for one, two in zip(loaded.buffers(), model.buffers(), strict=True):
        assert one.dtype == two.dtype and torch.equal(one, two)


def test_a_wrapped_model_is_saved_as_what_is_in_it(small: nn.Module, tmp_path: Path) -> None:
    for wrapped in (torch.compile(small), nn.DataParallel(small)):
        speedup.save(wrapped, tmp_path)
        assert torch.equal(answer(speedup.load(shop.make(), tmp_path)), answer(small))


def test_a_model_on_the_meta_device(small: nn.Module, saved: Path) -> None:
    with torch.device("meta"):
        fresh = shop.Net().eval()
    assert torch.equal(answer(speedup.load(fresh, saved)), answer(small))


def test_another_process_has_only_the_source(small: nn.Module, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "my_net.py").write_text(Path(shop.__file__).read_text())
    script = (
        "import sys, torch, speedup, my_net\n"
        "from safetensors.torch import save_file\n"
        "model = speedup.load(my_net.Net(), sys.argv[1]).eval()\n"
        "assert 'tests' not in sys.modules\n"
        "torch.set_num_threads(1)\n"
        "with torch.no_grad():\n"
        "    save_file({'y': model(my_net.ids())}, 'y.safetensors')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(saved)], cwd=tmp_path, check=True)
    assert torch.equal(load_file(tmp_path / "y.safetensors")["y"], answer(small))


def test_several_rounds_are_described_as_one(tmp_path: Path) -> None:
    model = small_net()
    gates = torch.ones(4, 8, 16).double()
    gates[:, 0] = 0
    heads = torch.ones(3, 3, 3, 16).double()
    heads[:, 2] = 0
    heads[:, :, 0] = 0
    masks = {
        "lstm": {"weight_ih_l0": gates.reshape(32, 16), "weight_hh_l0": gates[..., :8].reshape(32, 8)},
        "attention.qkv": {"weight": heads.reshape(27, 16)},
    }
    masks["lstm"] |= {n: gates[..., 0].reshape(32) for n in ("bias_ih_l0", "bias_hh_l0")}
    masked = copy.deepcopy(model)
    for path, by_name in masks.items():
        for name, mask in by_name.items():
            masked.get_submodule(path).get_parameter(name).data.mul_(mask)
    speedup.plan(model, shop.ids(), masks).apply()
    assert torch.allclose(answer(model), answer(masked), rtol=1e-9)
    assert model.lstm.hidden_size == 7 and model.attention.qkv.weight.shape == (12, 16)
    speedup.save(model, tmp_path)
    assert torch.equal(answer(speedup.load(shop.make(), tmp_path)), answer(model))
    told = json.loads((tmp_path / "speedup.json").read_text())
    assert told["modules"]["lstm"]["attributes"]["hidden_size"] == {"before": 10, "after": 7}
    assert len(told["provenance"]["rounds"]) == 2


# -- years later -----------------------------------------------------------------------------------------------------


def test_version_1_is_read() -> None:
    loaded = speedup.load(shop.make(), HERE / "saved" / "version1")
    told = load_file(HERE / "saved" / "version1" / "answers.safetensors")
    with torch.no_grad():
        assert torch.allclose(loaded(told["ids"]), told["output"], rtol=1e-9, atol=1e-12)
    assert type(loaded.norm).__name__ == "CompensatedLayerNorm" and loaded.attention.num_heads == 3


# -- files that are not as they should be ----------------------------------------------------------------------------


def edit(saved: Path, change: Callable[[Any], Any]) -> None:
    path = saved / "speedup.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(change(data) or data))


def in_edit(name: str, value: Any) -> Callable[[Any], None]:
    return lambda d: d["modules"]["attention"]["becomes"][0]["edits"][0].update({name: value})


class Half(nn.Module):
    """A size under the name of a method."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.half = nn.Linear(8, 8), nn.Linear(8, 8), 8  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.b(self.a(x).reshape(len(x), self.half))  # type: ignore[arg-type]
        return result


def test_a_size_under_the_name_of_a_method(tmp_path: Path) -> None:
    model, mask, x = Half(), torch.ones(8, 8), torch.randn(2, 8)
    mask[::2] = 0
    small: Any = speedup.plan(model, x, {"a": {"weight": mask, "bias": mask[:, 0]}}).apply()
    loaded: Any = speedup.load(Half(), speedup.save(small, tmp_path))
    assert loaded.half == small.half == 4 and torch.equal(loaded(x), small(x))


class Lazy(nn.Module):
    """A table that the first call makes, and a longer input a longer one; no checkpoint has it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "table") or len(self.table) < x.shape[1]:
            self.register_buffer("table", torch.arange(x.shape[1], dtype=x.dtype), persistent=False)
        result: torch.Tensor = self.b(self.a(x).relu()) + self.table[: x.shape[1], None]
        return result


@pytest.mark.parametrize("called_with", [None, 3, 9])
def test_a_buffer_that_calls_make_is_as_it_was(tmp_path: Path, called_with: int | None) -> None:
    model, x = Lazy(), torch.randn(2, 5, 4)
    model(x)
    mask = torch.ones(8)
    mask[1::2] = 0
    small = speedup.plan(model, x, {"a": {"weight": mask[:, None].expand(8, 4), "bias": mask}}).apply()
    new = Lazy()
    if called_with is not None:
        new(torch.randn(2, called_with, 4))
    loaded: Any = speedup.load(new, speedup.save(small, tmp_path))
    assert loaded.a.weight.shape == (4, 4) and loaded.table.tolist() == [0, 1, 2, 3, 4]
    assert "table" not in loaded.state_dict()
    for length in (2, 5, 7):
        y = torch.randn(2, length, 4)
        assert torch.equal(loaded(y), small(y))


def test_a_buffer_takes_the_name_of_nothing_else(tmp_path: Path) -> None:
    model, x = Lazy(), torch.randn(2, 5, 4)
    model(x)
    small = speedup.plan(model, x, {"a": {"weight": torch.ones(8, 4)}}).apply()
    speedup.save(small, tmp_path)
    weights, text = tmp_path / "model.safetensors", tmp_path / "speedup.json"
    tensors, told = load_file(weights), json.loads(text.read_text())
    for name in ("forward", "a", "training", "a.forward", "nothing.table", "no name"):
        save_file({**{n: t for n, t in tensors.items() if n != "table"}, name: tensors["table"]}, weights)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        told["weights"].update(sha256=digest, hidden=[name, "not there"])
        text.write_text(json.dumps(told))
        refuse(tmp_path, f"the file has {name}, and the model has not", Lazy())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: [d], "no description"),
        (lambda d: {"version": 1}, "no description"),
        (lambda d: {**d, "version": 3}, "install a newer one"),
        (lambda d: {**d, "version": "1"}, "no version '1'"),
        (lambda d: d.pop("modules") and None, "'modules' is missing"),
        (lambda d: d.update(modules=[]), "damaged"),
        (lambda d: d["weights"].update(sha256=3), "damaged"),
        (lambda d: d["provenance"].update(rounds=3), "damaged"),
        (lambda d: d["provenance"].update(rounds=[3]), "damaged"),
        (lambda d: d["modules"]["up"].pop("tensors") and None, "'tensors' is missing"),
        (lambda d: d["modules"]["up"]["tensors"]["weight"].update(after="14"), "damaged"),
        (lambda d: d["modules"]["up"]["tensors"]["weight"].update(after=[14, 12, 1]), "up.weight should be 14x12x1"),
        (lambda d: d["modules"]["up"]["tensors"]["weight"].update(before=[17, 16, 1]), "up.weight is 16x16x1, and was"),
        (lambda d: d["modules"]["up"]["attributes"].update(a={"after": {"call": "x"}}), "stands for nothing"),
        (lambda d: d["modules"]["up"]["attributes"].update(forward={"after": 3}), "may set"),
        (lambda d: d["modules"]["up"]["attributes"].update(_parameters={"after": {"dict": {}}}), "may set"),
        (lambda d: d["modules"]["up"]["attributes"].update(a={"after": {"tensor": "no"}}), "stands for nothing"),
        (lambda d: d["modules"]["lstm"]["attributes"]["hidden_size"].update(before=9), "hidden_size of lstm is 10"),
        (lambda d: d["modules"]["up"].update({"class": "torch.nn.Linear"}), "up is a Conv1d, and was a Linear"),
        (lambda d: d["modules"]["norm"].update(becomes=[{"overlay": "os.system"}]), "no installed plugin makes"),
        (lambda d: d["modules"]["norm"].update(becomes=[{"class": "norm.LayerNormForward"}]), "is no class"),
        (lambda d: d["modules"]["norm"].update(becomes=[{"import": "os"}]), "nothing that a class can become"),
        (in_edit("new", "__import__('os')"), "damaged"),
        (in_edit("keyword", "a=1, b"), "no name of an argument"),
        (in_edit("span", [1, 2]), "no place"),
        (in_edit("extra", 1), "no edit"),
        (in_edit("digest", "0" * 16), "its source is not at hand, or was changed"),
        (in_edit("method", "__init__"), "its source is not at hand, or was changed"),
        (in_edit("span", [400, 0, 400, 1]), "not found"),
        (lambda d: d["modules"].update(gone=d["modules"].pop("up")), "no module 'gone'"),
    ],
)
def test_a_wrong_description_is_refused(saved: Path, change: Callable[[Any], Any], says: str) -> None:
    edit(saved, change)
    refuse(saved, says)


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('code of the file was run')",))


def test_damaged_files_are_refused(saved: Path, tmp_path: Path) -> None:
    weights, text = (saved / n for n in ("model.safetensors", "speedup.json"))
    good, told = weights.read_bytes(), text.read_text()
    for bad in (b"", good[:-1], good[:100], good[:-3] + b"abc", pickle.dumps(Trap())):
        weights.write_bytes(bad)
        refuse(saved, "is damaged, or was replaced")
    weights.unlink()
    refuse(saved, "there is no model.safetensors")
    weights.write_bytes(good)
    for half in ("", told[: len(told) // 2], "\udcff"):
        text.write_bytes(half.encode("utf-8", "surrogateescape"))
        refuse(saved, "is damaged|cannot be read")
    text.unlink()
    refuse(saved, "there is no speedup.json")
    refuse(tmp_path / "nowhere", "holds no saved model")
    text.write_text(told)
    speedup.load(shop.make(), saved)


def test_a_file_of_other_tensors_is_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    tensors = load_file(path)
    tensors["more"] = tensors.pop("back.bias")
    save_file(tensors, path)
    edit(saved, lambda d: d["weights"].update(sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    refuse(saved, "(?s)back.bias is not in the file.*the file has more, and the model has not")


def test_another_model_is_refused(saved: Path) -> None:
    refuse(saved, "is small already", small_net())
    refuse(saved, "there is no module", nn.Linear(2, 3))
    wider = shop.make()
    wider.back = nn.Linear(10, 13)
    refuse(saved, "back.weight is 13x10, and was 12x10", wider)
    longer = shop.make()
    longer.extra = nn.Linear(2, 2)
    refuse(saved, "extra.weight is not in the file", longer)


def test_a_changed_source_is_refused(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(shop.__file__).read_text().replace("-0.5", "-0.25")
    (tmp_path / "changed_net.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    import changed_net  # type: ignore[import-not-found]

    refuse(saved, "Attention.forward was rewritten .* its source is not at hand, or was changed", changed_net.make())


def test_without_safetensors(small: nn.Module, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading needs no library, writing does."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert torch.equal(answer(speedup.load(shop.make(), saved)), answer(small))
    with pytest.raises(StorageError, match="pip install safetensors"):
        speedup.save(small, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_writing_is_all_or_nothing(small: nn.Module, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        speedup.save(small, saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


# -- models that cannot be saved -------------------------------------------------------------------------------------


class Stateful(nn.Linear):
    def get_extra_state(self) -> str:
        return "much"

    def set_extra_state(self, state: str) -> None:
        pass


def test_what_cannot_be_saved_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="carries no record"):
        speedup.save(nn.Linear(2, 2), tmp_path / "a")
    model = nn.Sequential(nn.Linear(3, 4), Stateful(4, 2))
    mask = torch.ones(4, 3)
    mask[0] = 0
    speedup.plan(model, torch.randn(1, 3), {"0": {"weight": mask}}).apply()
    with pytest.raises(StorageError, match="1 keeps extra state"):
        speedup.save(model, tmp_path / "a")
    model[1] = nn.LazyLinear(2)
    with pytest.raises(StorageError, match=r"1\.weight is a UninitializedParameter"):
        speedup.save(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_product_with_a_mask_that_stays_is_no_data(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    mask = torch.ones(4, 4)
    mask[0, 1] = 0  # at one position of the batch axis alone: no unit can go for it
    speedup.plan(model, torch.randn(4, 3), {"1": {"_output_0": mask}}).apply()
    with pytest.raises(StorageError, match="1 multiplies activations with a mask"):
        speedup.save(model, tmp_path / "a")


class Scale(nn.Module):
    """A layer of a third party's, which becomes one of another class."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class SmallScale(nn.Module):
    weight: nn.Parameter

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x


class ScaleRule(Rule):
    def replace(self, node: Node, keep: Kept) -> nn.Module:
        made = SmallScale()
        made.weight = keep.tensors["weight"]  # type: ignore[assignment]
        made.note = [1, (2.5, "text")]  # type: ignore[assignment]
        made.label = "in braces }"  # type: ignore[assignment]
        return made


def scale_rules(makes: Iterable[type]) -> Registry:
    rule = ScaleRule(
        name="scale",
        modules=(Scale,),
        operands=("input", "weight"),
        axes="* c, c -> * c",
        annihilates={"weight": ("input",), "input": ("weight",)},
        makes=tuple(makes),
    )
    return Registry.from_rules(rule, *default_registry().rules)


def test_a_class_of_a_plugin(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), Scale(4), nn.Linear(4, 2))

    mask = torch.ones(4, 3)
    mask[0] = 0
    model, rules = make(), scale_rules([SmallScale])
    speedup.plan(model, torch.randn(1, 3), {"0": {"weight": mask, "bias": mask[:, 0]}}, registry=rules).apply()
    assert isinstance(model[1], SmallScale)
    with pytest.raises(StorageError, match="SmallScale, which no installed rule lists in `makes`"):
        speedup.save(model, tmp_path, registry=scale_rules([]))
    speedup.save(model, tmp_path, registry=rules)
    fresh = make()
    with pytest.raises(StorageError, match="which no installed plugin makes"):
        speedup.load(fresh, tmp_path)
    loaded = speedup.load(fresh, tmp_path, registry=rules)
    assert isinstance(loaded[1], SmallScale) and loaded[1].note == [1, (2.5, "text")]
    assert loaded[1].label == "in braces }"
    x = torch.randn(2, 3)
    assert torch.equal(loaded(x), model(x))
