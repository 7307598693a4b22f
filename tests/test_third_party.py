"""What a third party does, in an environment of its own from built wheels: make a plugin, install it, use it, test it.

The environment sees torch, numpy, pluggy and pytest of the environment that runs the tests, by links; speedup and every
plugin are installed there from wheels, and nothing else of this repository is in reach.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest

from speedup import scaffold

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/third_party/*/pyproject.toml"))
FAMILIES = ("conv", "linear", "activation")
BUILD = """
import os, sys
from hatchling.build import build_wheel
for folder in sys.argv[2:]:
    os.chdir(folder)
    build_wheel(sys.argv[1])
"""


class Environment:
    """A virtual environment that holds nothing but the test's tools and what is installed into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv" / "bin" / "python"
        (folder / "tools").mkdir()
        for place in {p for p in sys.path if Path(p).name == "site-packages"}:
            for path in Path(place).iterdir():
                ours = "speedup" in path.name or path.name.startswith("__editable__") or path.suffix == ".pth"
                if not ours and path.name != "__pycache__" and not (folder / "tools" / path.name).exists():
                    (folder / "tools" / path.name).symlink_to(path)
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        (site / "tools.pth").write_text(str(folder / "tools"))

    def install(self, *projects: Path) -> None:
        """Build wheels of these folders, and install them."""
        wheels = self.folder / "wheels"
        built = set(wheels.glob("*.whl"))
        wheels.mkdir(exist_ok=True)
        subprocess.run([sys.executable, "-c", BUILD, wheels, *projects], check=True, capture_output=True)
        new = sorted(set(wheels.glob("*.whl")) - built)
        assert len(new) == len(projects)
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*pip, "--disable-pip-version-check", *new], check=True)

    def run(self, *command: str | Path, code: int = 0) -> str:
        """Run a command of the environment in its folder; its output."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("SPEEDUP", "PYTHON", "COV_"))}
        done = subprocess.run(
            [self.python.parent / command[0], *command[1:]],
            cwd=self.folder,
            env={**variables, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, f"{command} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """With the core, some families and the two examples from wheels, and two projects made in it and installed."""
    made = Environment(tmp_path_factory.mktemp("third_party"))
    made.install(ROOT / "core", *(ROOT / "plugins" / family for family in FAMILIES), *EXAMPLES)
    made.run("speedup", "new-plugin", "mylib")
    made.run("speedup", "new-plugin", "distance", "--op", "torch.cdist", "--into", "elsewhere")
    made.install(made.folder / "speedup-plugin-mylib", made.folder / "elsewhere")
    yield made
    shutil.rmtree(made.folder)


def test_installed_plugins_are_used_at_once(environment: Environment) -> None:
    listed = json.loads(environment.run("speedup", "plugins", "--json", "--strict"))
    found = {p["name"]: (p["status"], p["distribution"], p["rules"]) for p in listed["plugins"]}
    assert found["mylib"] == ("loaded", "speedup-plugin-mylib", ["channel_gain"])
    assert found["distance"] == ("loaded", "speedup-plugin-distance", ["channel_gain", "cdist"])
    assert found["kronecker"] == ("loaded", "speedup-plugin-kronecker", ["kronecker"])
    assert found["silu-and-mul"] == ("loaded", "speedup-plugin-silu-and-mul", ["silu_and_mul"])
    assert set(found) == {"mylib", "distance", "kronecker", "silu-and-mul", *FAMILIES}


def test_made_projects_and_examples_pass_their_tests(environment: Environment) -> None:
    tests = [environment.folder / name / "tests" for name in ("speedup-plugin-mylib", "elsewhere")]
    tests += [example / "tests" for example in EXAMPLES]
    out = environment.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *tests)
    counted = re.search(r"(\d+) passed", out)
    assert counted and int(counted[1]) >= 40 and "skipped" not in out
    where = environment.run("python", "-c", "import speedup; print(speedup.__file__)")
    assert str(environment.folder) in where, "it is not the installed one that was tested"


# -- the template -----------------------------------------------------------------------------------------------------


def test_copier_makes_the_same_project() -> None:
    """The template as Jinja, which copier uses, and as `speedup new-plugin` reads it, with copier's own answers."""
    asked = (ROOT / "contrib_template" / "copier.yml").read_text()
    given = {"name": "mylib", **scaffold.answers("mylib")}
    for name, value in given.items():
        assert re.search(rf"^{name}:", asked, re.M), f"copier.yml does not answer {name}"
        default = re.search(rf'^{name}: {{type: \w+, default: "?(.*?)"?, when: false}}$', asked, re.M)
        if default and "{{" not in default[1]:
            assert default[1] == value, name
    language = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    files = scaffold.project("mylib")
    template = ROOT / "contrib_template" / "project"
    for path in (p for p in template.rglob("*") if p.is_file()):
        target = language.from_string(path.relative_to(template).as_posix()).render(given).removesuffix(".jinja")
        text = path.read_text()
        assert files.pop(target) == (language.from_string(text).render(given) if path.suffix == ".jinja" else text)
    assert not files
    assert scaffold.TEMPLATE.resolve() == template.resolve(), "one source"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_made_from_the_template(example: Path) -> None:
    """What is not the rule, the layer or the tests is as it was made; and the rule is short."""
    files = scaffold.project(example.name)
    own = {path for path in files if path.endswith(("rules.py", "layers.py", ".yml"))}
    for path in sorted(set(files) - own):
        made = re.sub(r"\(c\) \d+", "(c)", files[path])
        assert re.sub(r"\(c\) \d+", "(c)", (example / path).read_text()) == made, path
    (rules,) = example.glob("src/*/rules.py")
    code = [x for x in rules.read_text().splitlines() if x.strip() and not x.strip().startswith(("#", '"""'))]
    assert len(code) <= 60
