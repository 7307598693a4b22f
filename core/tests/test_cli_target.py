"""The model and its input on a command line."""

import argparse
from pathlib import Path

import pytest
import torch
from torch import nn

from speedup import InputError, StorageError
from speedup.cli.target import add_input, add_model, load_input, load_model, make_input, make_model


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_model(parser)
    add_input(parser)
    return parser.parse_args(argv)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "target_of_cli.py").write_text(
        "from torch import nn\n"
        "class Nets:\n    small = staticmethod(lambda: nn.Linear(3, 2))\n"
        "ready = nn.Linear(3, 2)\n"
        "def needs(width): return nn.Linear(width, 2)\n"
        "def number(): return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_callable_of_the_current_folder_makes_the_same_model_every_time(project: Path) -> None:
    first, second = (make_model("target_of_cli:Nets.small") for _ in range(2))
    assert torch.equal(first.weight, second.weight) and not first.training
    assert isinstance(make_model("target_of_cli:ready"), nn.Linear)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("target_of_cli", "module:callable"),
        (":net", "module:callable"),
        ("no_such_module_here:net", "No module named"),
        ("target_of_cli:missing", "has no 'missing'"),
        ("target_of_cli:needs", "without arguments"),
        ("target_of_cli:number", "returns a int"),
    ],
)
def test_what_makes_no_model_is_explained(project: Path, target: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_model(target)


@pytest.mark.parametrize("form", ["safetensors", "state", "checkpoint"])
def test_weights(project: Path, form: str) -> None:
    state = nn.Linear(3, 2).state_dict()
    path = project / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if form == "checkpoint" else state, path)
    model = load_model(arguments("target_of_cli:Nets.small", "--weights", str(path), "--input", "1x3"))
    assert torch.equal(model.weight, state["weight"])


def test_weights_of_another_model_are_refused(project: Path) -> None:
    torch.save(nn.Linear(4, 2).state_dict(), project / "w.pt")
    with pytest.raises(InputError, match="weight is 2x4 in the file and 2x3 in the model"):
        load_model(arguments("target_of_cli:Nets.small", "--weights", "w.pt", "--input", "1x3"))


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code of the file was run')",))


@pytest.mark.parametrize("content", [b"", b"garbage", "trap", "list"])
def test_a_bad_weight_file_is_refused_and_never_run(project: Path, content: bytes | str) -> None:
    path = project / "w.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(Trap() if content == "trap" else [1], path)
    with pytest.raises(StorageError):
        load_model(arguments("target_of_cli:Nets.small", "--weights", str(path), "--input", "1x3"))
    with pytest.raises(StorageError, match="no such file"):
        load_model(arguments("target_of_cli:Nets.small", "--weights", "nowhere.pt", "--input", "1x3"))


def test_inputs() -> None:
    assert make_input(["1x3x8x8"]).shape == (1, 3, 8, 8)
    tokens = make_input(["tokens=2x64:int64:5", "mask=2x64:bool"])
    assert tokens["tokens"].dtype == torch.int64 and int(tokens["tokens"].max()) == 4
    assert tokens["mask"].dtype == torch.bool
    first, second = make_input(["2x3", "scalar:float64"])
    assert first.shape == (2, 3) and second.shape == () and second.dtype == torch.float64
    assert torch.equal(make_input(["4x4"]), make_input(["4x4"]))


def test_an_input_from_a_file(tmp_path: Path) -> None:
    torch.save({"x": torch.arange(3)}, tmp_path / "x.pt")
    args = arguments("a:b", "--input", f"@{tmp_path / 'x.pt'}")
    assert torch.equal(load_input(args)["x"], torch.arange(3))
    torch.save(Trap(), tmp_path / "trap.pt")
    with pytest.raises(InputError, match="cannot be read"):
        make_input([f"@{tmp_path / 'trap.pt'}"])


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        (["1,3"], "SHAPE"),
        (["1x3:float99"], "no dtype"),
        (["1x3:Tensor"], "SHAPE"),
        (["1x3:int64:0"], "limit"),
        (["1x3:float32:4"], "limit"),
        (["a=1x3", "a=1x3"], "already"),
        (["a=1x3", "1x3"], "NAME"),
        (["@a.pt", "1x3"], "once"),
    ],
)
def test_a_bad_specification_is_explained(specs: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_input(specs)


def test_a_file_without_weights_is_told_from_a_whole_model(project: Path) -> None:
    torch.save(nn.Linear(3, 2), "whole.pt")
    Path("junk.pt").write_text("hello")
    for name, what in (("whole.pt", r"model\.state_dict\(\)"), ("junk.pt", "no file of torch.save")):
        with pytest.raises(StorageError, match=what):
            load_model(arguments("target_of_cli:ready", "--weights", name, "--input", "1x3"))
