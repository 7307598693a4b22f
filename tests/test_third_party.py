"""What a third party does, in an environment of its own made of wheels: make a plugin, install it, use it, test it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest

from speedup import scaffold
from tests.environment import Environment

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/third_party/*/pyproject.toml"))
FAMILIES = ("conv", "linear", "activation")


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
