"""A release: versions in lockstep, and wheels that do what the README says where nothing else of this is installed."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.environment import Environment

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(name, str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


release = script("release")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """With every distribution of this repository from its wheel."""
    made = Environment(tmp_path_factory.mktemp("release"))
    made.install(*release.projects(ROOT))
    yield made
    shutil.rmtree(made.folder)


def wheel(environment: Environment, name: str) -> zipfile.ZipFile:
    (path,) = (environment.folder / "wheels").glob(f"{name}-*.whl")
    return zipfile.ZipFile(path)


def test_the_quick_start_runs_from_wheels(environment: Environment) -> None:
    text = (ROOT / "README.md").read_text()
    code, shown = re.findall(r"^```(?:python|text)\n(.*?)^```", text, re.M | re.S)[:2]
    (environment.folder / "start.py").write_text(code)
    assert environment.run("python", "start.py").strip() == shown.strip()


def test_a_page_is_written_from_wheels(environment: Environment) -> None:
    code = """
import torch, speedup
from torch import nn
model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
mask = torch.ones(6, 4)
mask[0] = 0
speedup.plan(model, torch.ones(1, 4), {"0": {"weight": mask}}).report("report.html")
print(speedup.__file__)
"""
    assert str(environment.folder) in environment.run("python", "-c", code)
    assert (environment.folder / "report.html").stat().st_size > 50_000


def test_every_plugin_is_found(environment: Environment) -> None:
    listed = environment.run("speedup", "plugins", "--strict")
    for path in ROOT.glob("plugins/*"):
        if (path / "pyproject.toml").exists():
            assert re.search(rf"^{path.name} +\S+ +speedup-plugin-{path.name} +loaded", listed, re.M), path.name


def test_wheels_hold_what_they_need_and_nothing_beside(environment: Environment) -> None:
    core = set(wheel(environment, "speedup_core").namelist())
    for part in ("py.typed", "report/page/template.html", "report/page/main.js", "report/page/vendor/dagre.min.js"):
        assert f"speedup/{part}" in core
    assert "speedup/report/page/vendor/dagre.LICENSE" in core
    for path in (environment.folder / "wheels").glob("*.whl"):
        names = zipfile.ZipFile(path).namelist()
        assert any(name.endswith("LICENSE") for name in names), path.name
        module = path.name.partition("-")[0].removesuffix("_core")
        tops = {name.partition("/")[0] for name in names}
        assert {top for top in tops if not top.endswith(".dist-info")} <= {module}, path.name


def test_versions_agree() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", release.check(ROOT))


def copy_of_versions(folder: Path) -> Path:
    for name in ("CITATION.cff", "CHANGELOG.md", "core/src/speedup/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for project in release.projects(ROOT):
        there = folder / project.relative_to(ROOT)
        there.mkdir(parents=True, exist_ok=True)
        shutil.copy(project / "pyproject.toml", there)
    return folder


def test_a_version_is_set_everywhere(tmp_path: Path) -> None:
    folder = copy_of_versions(tmp_path)
    release.set_version(folder, "0.7.0rc1")
    with pytest.raises(SystemExit, match=r"CHANGELOG.md has no line '## \[0.7.0rc1\]'"):
        release.check(folder)
    changes = folder / "CHANGELOG.md"
    changes.write_text(f"## [0.7.0rc1] - today\n{changes.read_text()}")
    assert release.check(folder) == "0.7.0rc1"
    assert '"speedup-core>=0.7,<0.8"' in (folder / "plugins/conv/pyproject.toml").read_text()
    assert '"speedup-plugin-conv>=0.7,<0.8"' in (folder / "pyproject.toml").read_text()


def test_a_version_that_is_missing_somewhere_is_named(tmp_path: Path) -> None:
    folder = copy_of_versions(tmp_path)
    path = folder / "plugins/norm/pyproject.toml"
    path.write_text(path.read_text().replace('version = "', 'version = "9', 1))
    with pytest.raises(SystemExit, match="plugins/norm has 9"):
        release.check(folder)
    with pytest.raises(SystemExit, match="is no version"):
        release.set_version(folder, "next")
