"""The command line, from masks to a small model on disk."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import speedup
from speedup import cli

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8 * 16, 5)
    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).view(-1, 8 * 16))
"""
COMMON = ["cli_net:Net", "--weights", "w.safetensors", "--masks", "m.pt", "--input", "1x3x4x4"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cli_net.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cli_net", raising=False)
    save_file(make().state_dict(), tmp_path / "w.safetensors")
    mask = torch.ones(8, 3, 3, 3)
    mask[:3] = 0
    torch.save({"conv": {"weight": mask, "bias": mask[:, 0, 0, 0]}}, tmp_path / "m.pt")
    return tmp_path


def make() -> nn.Module:
    import cli_net  # type: ignore[import-not-found]

    torch.manual_seed(5)
    net: nn.Module = cli_net.Net().eval()
    return net


def test_run_writes_a_small_model_that_loads_elsewhere(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", *COMMON, "--out", "small", "--verify"]) == 0
    said = capsys.readouterr()
    assert "8x3x3x3 -> 5x3x3x3" in said.out and "saved: small" in said.out
    assert said.err == ""  # no terminal: quiet
    small = speedup.load(make(), "small")
    mask = torch.load("m.pt")["conv"]
    masked = make()
    with torch.no_grad():
        masked.conv.weight.mul_(mask["weight"])
        masked.conv.bias.mul_(mask["bias"])
        x = torch.randn(3, 3, 4, 4)
        assert torch.allclose(small(x), masked(x), atol=1e-5)
    assert cli.main(["verify", *COMMON, "--small", "small", "--batch-sizes", "2", "5"]) == 0
    assert "equal on 4 inputs" in capsys.readouterr().out


def test_run_fuses_where_it_is_asked_to(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "cli_norms.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()\n"
    )
    given = ["cli_norms:make", "--criterion", "l1", "--input", "1x3x6x6"]
    assert cli.main(["run", *given, "--out", "plain"]) == 0
    assert "fused" not in capsys.readouterr().out
    assert cli.main(["run", *given, "--out", "small", "--fuse"]) == 0
    assert "fused: 1 into 0" in capsys.readouterr().out
    import cli_norms  # type: ignore[import-not-found]

    small: Any = speedup.load(cli_norms.make(), "small")
    assert type(small[1]) is nn.Identity and small[0].out_channels == 4
    assert cli.main(["verify", *given, "--fuse"]) == 0


def test_verify_says_when_they_differ(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", *COMMON, "--out", "small"]) == 0
    state = make().state_dict()
    state["head.bias"] += 1
    save_file(state, "w.safetensors")
    capsys.readouterr()
    assert cli.main(["verify", *COMMON, "--small", "small", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["equal"] is False
    assert cli.main(["verify", *COMMON]) == 0


def test_plan_changes_and_writes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(p.name for p in project.iterdir())
    assert cli.main(["plan", *COMMON]) == 0
    assert "parameters 869 -> " in capsys.readouterr().out
    assert cli.main(["plan", *COMMON, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"][0]["after"] == [5, 3, 3, 3]
    assert cli.main(["plan", *COMMON, "--explain", "conv"]) == 0
    assert capsys.readouterr().out.startswith("No masked index of conv stays.")
    assert [n for n in sorted(p.name for p in project.iterdir()) if n != "__pycache__"] == [
        n for n in before if n != "__pycache__"
    ]


def test_plan_writes_a_page_and_colours_for_terminals_only(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["plan", *COMMON, "--html", "report.html"]) == 0
    assert "\x1b[" not in capsys.readouterr().out
    assert "Content-Security-Policy" in (project / "report.html").read_text()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for variable, value, colored in (("TERM", "xterm", True), ("NO_COLOR", "1", False)):
        monkeypatch.setenv(variable, value)
        assert cli.main(["plan", *COMMON]) == 0
        assert ("\x1b[" in capsys.readouterr().out) is colored
    assert cli.main(["plan", *COMMON, "--html", "missing/report.html"]) == 1
    assert "missing" in capsys.readouterr().err


def test_demo_goes_the_whole_way(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p for p in project.iterdir() if p.name != "__pycache__"}
    assert cli.main(["demo", "cli_net:Net", "--input", "1x3x4x4"]) == 0
    said = capsys.readouterr()
    assert "8x3x3x3 -> 4x3x3x3" in said.out and "equal on 3 inputs" in said.out and "times as fast" in said.out
    assert said.err == "" and {p for p in project.iterdir() if p.name != "__pycache__"} == before


def test_bench_times_both(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *COMMON, "--repeats", "3", "--threads", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["threads"] == 1 and told["small"]["parameters"] < told["masked"]["parameters"] == 869
    assert told["ratio"] == pytest.approx(told["masked"]["median"] / told["small"]["median"])
    assert cli.main(["bench", *COMMON, "--repeats", "1", "--warmup", "0"]) == 0
    assert "times as fast" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *COMMON, "--repeats", "0"])
    assert stopped.value.code == 2


def test_a_criterion_in_place_of_masks(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [*COMMON[:3], *COMMON[5:], "--criterion", "l1", "--sparsity", "0.5"]
    assert cli.main(["run", *chosen, "--out", "half"]) == 0
    assert speedup.load(make(), "half").conv.out_channels == 4
    assert cli.main(["verify", *chosen, "--small", "half"]) == 0
    assert cli.main(["plan", *chosen, "--ignore", "conv", "--json"]) == 1
    assert cli.main(["plan", *chosen[:-4], "--criterion", "no_such"]) == 1
    assert "no_such" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(["plan", *COMMON, "--criterion", "l1"])
    assert stopped.value.code == 2


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('code of the file was run')",))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--masks": "nowhere.pt"}, "no such file"),
        ({"--masks": "trap.pt"}, "mask file"),
        ({"--weights": "trap.pt"}, "weight file"),
        ({"--input": "1x3x5x5"}, "does not run on the dummy input"),
        ({"--input": "4"}, "does not run on the dummy input"),
        ({"--device": "nothing:0"}, "--device nothing:0"),
        ({"--out": "m.pt"}, "there is a file of that name"),
    ],
)
def test_mistakes_are_told_in_a_line(
    project: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], says: str
) -> None:
    torch.save(Trap(), "trap.pt")
    options = {"--weights": "w.safetensors", "--masks": "m.pt", "--input": "1x3x4x4", "--out": "small", **change}
    assert cli.main(["run", "cli_net:Net", *(part for pair in options.items() for part in pair)]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("speedup: error: ") and says in said.err and "Traceback" not in said.err
    assert not Path("small").exists()
    with pytest.raises(speedup.SpeedupError):
        cli.main(["run", "--debug", "cli_net:Net", *(part for pair in options.items() for part in pair)])


def test_progress_on_a_terminal(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert cli.main(["plan", *COMMON]) == 0
    said = capsys.readouterr().err
    for word in ("building cli_net:Net", "traced: 4 calls", "planned: "):
        assert word in said


def test_in_a_process_of_its_own(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "speedup.cli", "run", *COMMON, "--out", "small"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(p.name for p in Path("small").iterdir()) == ["model.safetensors", "speedup.json"]
    help_of_run = subprocess.run(
        [sys.executable, "-m", "speedup.cli", "run", "--help"], capture_output=True, text=True, check=True
    )
    assert "IMPORTS AND RUNS THAT" in " ".join(help_of_run.stdout.split())
