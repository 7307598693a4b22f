"""The distributions agree with each other, and plugins use nothing but the public API of the core."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FAMILIES = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))


def pyproject(folder: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())


def private_imports(source: str) -> Iterator[str]:
    """Give what a source imports from private modules of speedup, or as private names from public ones."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, *others = name.split(".")
            if first == "speedup" and any(part.startswith("_") for part in others):
                yield name


def test_the_umbrella_names_every_plugin() -> None:
    root = pyproject(".")
    modules = {f"speedup_plugin_{family}" for family in FAMILIES}
    distributions = {f"speedup-plugin-{family}" for family in FAMILIES}
    assert FAMILIES
    assert {each.split(">")[0] for each in root["project"]["dependencies"]} == distributions | {"speedup-core"}
    assert set(root["tool"]["uv"]["sources"]) == distributions | {"speedup-core"}
    importlinter = root["tool"]["importlinter"]
    assert set(importlinter["root_packages"]) == modules | {"speedup"}
    core_contract, plugin_contract = importlinter["contracts"]
    assert set(core_contract["forbidden_modules"]) == modules
    assert set(plugin_contract["modules"]) == modules
    sources = {f"plugins/{family}/src" for family in FAMILIES} | {"core/src"}
    assert set(root["tool"]["mypy"]["mypy_path"]) == sources


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plugin_is_packaged_like_the_others(family: str) -> None:
    module = f"speedup_plugin_{family}"
    project = pyproject(f"plugins/{family}")["project"]
    assert project["name"] == f"speedup-plugin-{family}"
    assert project["entry-points"]["speedup.plugins"] == {family: module}
    assert "speedup-core>=0.1,<0.2" in project["dependencies"]
    for name in ("README.md", "LICENSE", f"src/{module}/__init__.py", f"src/{module}/py.typed"):
        assert (ROOT / "plugins" / family / name).is_file(), name


def test_all_versions_are_the_same() -> None:
    folders = [".", "core", *(f"plugins/{family}" for family in FAMILIES)]
    assert len({pyproject(folder)["project"]["version"] for folder in folders}) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plugin_uses_the_public_api_only(family: str) -> None:
    found = {
        str(path.relative_to(ROOT)): private
        for path in (ROOT / "plugins" / family / "src").rglob("*.py")
        if (private := list(private_imports(path.read_text())))
    }
    assert found == {}


def test_private_imports_are_seen() -> None:
    source = "import speedup._a\nfrom speedup import _b\nfrom speedup._c import d\nfrom speedup.rule import Rule, _e\n"
    assert list(private_imports(source)) == ["speedup._a", "speedup._b", "speedup._c.d", "speedup.rule._e"]
    assert list(private_imports("from ._own import x\nimport torch._C\nfrom speedup.rule import Rule\n")) == []
