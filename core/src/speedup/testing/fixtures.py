"""pytest fixtures: ``pytest_plugins = ["speedup.testing.fixtures"]`` in the ``conftest.py`` of a plugin brings them.

This is the one module of speedup that needs pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from speedup.plugins import DISABLE_VARIABLE, ONLY_VARIABLE
from speedup.registry import Registry, default_registry
from speedup.testing.registries import registry_of


@pytest.fixture
def only_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Registry]]:
    """Give a function that makes the named installed plugins the only ones, for all that is called in this test.

    It returns their registry, which is the default one until the test ends::

        def test_alone(only_plugins):
            only_plugins("conv", "mylib")
            speedup.plan(model, inputs, masks)  # knows the rules of these two plugins and no others
    """

    def choose(*plugins: str) -> Registry:
        monkeypatch.delenv(DISABLE_VARIABLE, raising=False)
        monkeypatch.setenv(ONLY_VARIABLE, ",".join(plugins))
        default_registry.cache_clear()
        registry_of(*plugins)  # whatever is wrong with them is an error here
        return default_registry()

    yield choose
    monkeypatch.undo()
    default_registry.cache_clear()
