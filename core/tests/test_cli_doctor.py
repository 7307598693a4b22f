"""``speedup doctor`` and ``speedup new-plugin``: what is wrong, and how to begin to mend it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from speedup import cli, scaffold
from speedup.errors import InputError
from speedup.plugins import load_plugins
from speedup.registry import Registry
from speedup.stub import stub_for

InstallPlugin = Callable[..., str]

MODEL = """
import torch
from torch import nn

from speedup_test_library import Mixer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.mixer, self.last = nn.Linear(4, 6), Mixer(6), nn.Linear(6, 2)

    def forward(self, x):
        return torch.cdist(self.last(self.mixer(self.first(x))), x.new_zeros(3, 2))
"""
LIBRARY = """
import torch
from torch import nn


@torch.library.custom_op("speedup_test::mixed", mutates_args=())
def mixed(x: torch.Tensor, gain: torch.Tensor, power: float = 2.0, flip: bool = False) -> torch.Tensor:
    return x * gain**power


class Mixer(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(features))
        self.register_buffer("seen", torch.zeros(features))

    def forward(self, x, mask=None):
        return torch.ops.speedup_test.mixed(x, self.gain)


def plain(x):
    return x
"""
LINEAR = """
    from torch import nn
    import torch
    from speedup import Rule, hookimpl, variants

    @hookimpl
    def speedup_rules():
        operands = ("input", "weight", "bias")
        yield Rule(name="linear", modules=(nn.Linear,), operands=operands, axes="* i, o i, o? -> * o")
        yield Rule(name="made", functions=(torch.Tensor.new_zeros,), axes="~ -> *")
"""
CLAIMS_LINEAR = """
    from torch import nn
    from speedup import Rule, hookimpl

    @hookimpl
    def speedup_rules():
        return [Rule(name="other", modules=(nn.Linear,), axes="* -> *")]
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A library with an op of its own, imported once: an op is registered once per process."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "speedup_test_library.py").write_text(LIBRARY)
    (folder / "speedup_test_models.py").write_text(MODEL)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def project(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


ON_MODEL = ["doctor", "speedup_test_models:Net", "--input", "5x4"]


def test_healthy_plugins_are_counted(install_plugin: InstallPlugin, capsys: pytest.CaptureFixture[str]) -> None:
    install_plugin("good")
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "plugins: 1 loaded" in out and "plugin interface 1" in out


def test_what_is_wrong_with_plugins(
    install_plugin: InstallPlugin, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    install_plugin("one", LINEAR, version="1.1")
    install_plugin("two", CLAIMS_LINEAR, version="2.2")
    install_plugin("newer", "speedup_contract = 99")
    install_plugin("broken", "import no_such_module_at_all")
    install_plugin("off")
    monkeypatch.setenv("SPEEDUP_DISABLE_PLUGINS", "off")
    assert cli.main(ON_MODEL) == 1
    out = capsys.readouterr().out
    assert "plugins: 2 loaded, 2 failed, 1 disabled" in out
    assert "failed: 'newer' (fake-newer 1.0): it was written for contract version 99, and this speedup has 1" in out
    assert "failed: 'broken' (fake-broken 1.0): its module cannot be imported: ModuleNotFoundError" in out
    assert "disabled: 'off' (fake-off 1.0)" in out
    assert "conflict: two plugins claim torch.nn.Linear: 'one' (fake-one 1.1)" in out and "'two' (fake-two 2.2)" in out
    assert "was not looked at" in out
    # Whoever says which one wins sees the model.
    assert cli.main([*ON_MODEL, "--prefer", "two"]) == 1
    assert "conflict" not in (out := capsys.readouterr().out)
    monkeypatch.setenv("SPEEDUP_PREFER_PLUGINS", "one")
    assert cli.main(["plugins", "--strict"]) == 1, "two failed all the same"
    assert "conflict" not in capsys.readouterr().out
    assert cli.main(ON_MODEL) == 1
    assert "conflict" not in (out := capsys.readouterr().out)
    assert "speedup_test_models:Net: 3 of 5 calls have a rule" in out


def test_ops_without_a_rule_come_with_the_command_to_begin_one(
    install_plugin: InstallPlugin, capsys: pytest.CaptureFixture[str], project: Path
) -> None:
    install_plugin("linear", LINEAR)
    assert cli.main([*ON_MODEL, "--json"]) == 1
    mixed, cdist = json.loads(capsys.readouterr().out)["model"]["barriers"]
    assert mixed["op"] == "torch.ops.speedup_test.mixed" and mixed["calls"] == 1
    line = next(n for n, text in enumerate(LIBRARY.splitlines(), 1) if "return torch.ops" in text)
    assert mixed["where"].endswith(f"speedup_test_library.py:{line}")
    wanted = "speedup new-plugin speedup-test --op torch.ops.speedup_test.mixed --import speedup_test_library"
    assert mixed["command"] == wanted
    assert cdist["command"] == "speedup new-plugin cdist --op torch.cdist"
    for command in (mixed["command"], cdist["command"]):
        assert cli.main([*command.split()[1:], "--into", f"made-{command.split()[2]}"]) == 0
        assert cli.main(ON_MODEL) == 1
        assert f"to write a rule for it: {command}" in capsys.readouterr().out


def test_known_packages_are_named(
    install_plugin: InstallPlugin, capsys: pytest.CaptureFixture[str], project: Path
) -> None:
    install_plugin("linear", LINEAR)
    hints = """
        from speedup import hookimpl

        @hookimpl
        def speedup_hints():
            return {"torch.ops.speedup_test.*": "speedup-plugin-of-test", "torch.ops.*": "speedup-plugin-of-all"}
    """
    install_plugin("hints", hints)
    registry = Registry(load_plugins(strict=True))
    assert registry.hint_for("torch.ops.speedup_test.mixed.default") == "speedup-plugin-of-test"
    assert registry.hint_for("torch.ops.else.where") == "speedup-plugin-of-all"
    assert registry.hint_for("torch.cdist") is None
    assert cli.main(ON_MODEL) == 1
    assert "speedup-plugin-of-test is known to have rules for it: pip install speedup-plugin-of-test" in (
        capsys.readouterr().out
    )


def test_a_call_that_a_rule_does_not_fit_says_why(
    install_plugin: InstallPlugin, capsys: pytest.CaptureFixture[str], project: Path
) -> None:
    begun = """
        import speedup_test_library, torch
        from speedup import Rule, hookimpl

        @hookimpl
        def speedup_rules():
            op = torch.ops.speedup_test.mixed
            call = "x, gain, power=2.0, flip=False"
            return [Rule(name="begun", functions=(op, op.default), call=call, operands=("x",))]
    """
    install_plugin("linear", LINEAR)
    install_plugin("begun", begun)
    assert cli.main(ON_MODEL) == 1
    out = capsys.readouterr().out
    assert "rule 'begun' of plugin 'begun' (fake-begun 1.0) does not fit this call: the signature is empty" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["doctor", "speedup_test_models:Net"], "a model and --input belong together"),
        (["doctor", "--input", "3"], "a model and --input belong together"),
        (["doctor", "speedup_test_models:Net", "--input", "5x9"], "does not run on --input 5x9: RuntimeError"),
        (["new-plugin", "9lives"], "cannot be the name of a plugin"),
        (["new-plugin", "x", "--op", "torch.no_such_function"], "'torch.no_such_function' cannot be imported here"),
        (["new-plugin", "x", "--op", "torch.ops.nothing.there"], "which module registers it? Give it with --import"),
        (["new-plugin", "x", "--op", "speedup_test_library.plain"], "is a plain Python function"),
        (["new-plugin", "x", "--op", "torch.float32"], "neither a module type nor a function"),
        (["new-plugin", "x", "--import", "no_such_module"], "--import no_such_module: No module named"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, project: Path, capsys: pytest.CaptureFixture[str], install_plugin: InstallPlugin
) -> None:
    install_plugin("linear", LINEAR)
    assert cli.main(arguments) == 1
    assert message in capsys.readouterr().err
    assert list(project.glob("speedup-plugin*")) == []


def test_a_project_is_written_once(
    project: Path, capsys: pytest.CaptureFixture[str], install_plugin: InstallPlugin
) -> None:
    assert cli.main(["new-plugin", "My_Lib"]) == 0
    assert "pip install -e '.[test]'" in capsys.readouterr().out
    made = project / "speedup-plugin-my-lib"
    written = {str(p.relative_to(made)): p.read_text() for p in made.rglob("*") if p.is_file()}
    assert written == scaffold.project("my-lib") == scaffold.project("speedup-plugin-my-lib")
    assert "src/speedup_plugin_my_lib/py.typed" in written and ".github/workflows/test.yml" in written
    assert not any("{{" in text or "{{" in path for path, text in written.items())
    assert cli.main(["new-plugin", "my-lib"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert {str(p.relative_to(made)): p.read_text() for p in made.rglob("*") if p.is_file()} == written


def test_what_can_be_read_off_an_op_is_written_down(library: Path) -> None:
    module = stub_for("speedup_test_library.Mixer")
    assert 'operands=("x", "mask", "gain", "seen"),' in module.text and "modules=(Mixer,)," in module.text
    assert module.imports == ("from speedup_test_library import Mixer",)
    op = stub_for("torch.ops.speedup_test.mixed.default")
    assert 'call="x, gain, power=2.0, flip=False",' in op.text and 'operands=("x", "gain"),' in op.text
    assert "functions=(torch.ops.speedup_test.mixed, torch.ops.speedup_test.mixed.default)," in op.text
    function = stub_for("torch.nn.functional.cosine_similarity")
    assert 'functions=variants("cosine_similarity"),' in function.text
    assert 'call="x1, x2, dim=1, eps=1e-08",' in function.text
    for stub in (module, op, function):
        compile("\n".join(stub.imports) + "\n" + stub.text, "stub", "exec")
        assert 'axes="",' in stub.text
    with pytest.raises(InputError):
        stub_for("torch")
    assert torch.ops.speedup_test.mixed
