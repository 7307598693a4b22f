"""Fake plugin distributions on disk, which importlib.metadata discovers as it does installed ones."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

InstallPlugin = Callable[..., str]

RULES = """
    from torch import nn
    from speedup.hookspecs import hookimpl
    from speedup.rule import Rule

    class {type}(nn.Module):
        pass

    def function(x):
        return x

    @hookimpl
    def speedup_rules():
        return [Rule(name="{type}-rule", modules=({type},), functions=(function,), axes="* -> *")]
"""


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InstallPlugin]:
    """Give a function that makes a distribution ``fake-NAME`` with a plugin NAME; the really installed ones are hidden.

    The function takes the name, the source of the module (by default one that claims one module type and one function
    of its own), and optionally the version and the name of the distribution. It returns the name of the module.
    """
    for variable in (
        "SPEEDUP_DISABLE_PLUGINS",
        "SPEEDUP_ONLY_PLUGINS",
        "SPEEDUP_STRICT_PLUGINS",
        "SPEEDUP_PREFER_PLUGINS",
    ):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    real = importlib.metadata.entry_points

    def only_fakes(**selection: Any) -> Any:
        if selection != {"group": "speedup.plugins"}:
            return real(**selection)
        return [entry for entry in real(**selection) if entry.dist and entry.dist.name.startswith("fake-")]

    monkeypatch.setattr(importlib.metadata, "entry_points", only_fakes)
    modules = []

    def install(name: str, source: str | None = None, version: str = "1.0", distribution: str | None = None) -> str:
        distribution = distribution or f"fake-{name}"
        module = f"{distribution}_{name}_plugin".replace("-", "_")
        modules.append(module)
        source = source if source is not None else RULES.format(type=name.capitalize())
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[speedup.plugins]\n{name} = {module}\n")
        importlib.invalidate_caches()
        return module

    yield install
    for module in modules:
        sys.modules.pop(module, None)
