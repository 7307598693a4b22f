"""Registries that hold nothing but the plugins under test."""

from __future__ import annotations

from collections.abc import Sequence

from speedup.errors import PluginError
from speedup.plugins import load_plugins
from speedup.registry import Registry
from speedup.rule import Rule


def registry_of(*plugins: str, rules: Sequence[Rule] = (), prefer: Sequence[str] = ()) -> Registry:
    """Give a registry of the named installed plugins and of these rules, and of no others.

    Args:
        plugins: names of installed plugins, as in ``Registry.load(only=...)``.
        rules: rules at hand, for a plugin that is not installed; see ``rules_of``.
        prefer: names of plugins that win where two claim the same op.

    Raises:
        PluginError: a plugin is not installed, disabled by the environment, or faulty; the message says why.

    Example:
        >>> registry = registry_of("conv", "linear")
        >>> registry.for_function(torch.relu) is None
        True
    """
    found = load_plugins(only=list(plugins), strict=True) if plugins else ()
    for name in plugins:
        mine = [p for p in found if p.is_called(name)]
        if not mine:
            raise PluginError(f"no plugin {name!r} is installed; `speedup plugins` lists those that are")
        if all(p.disabled for p in mine):
            raise PluginError(f"plugin {name!r} is disabled by the environment; see SPEEDUP_DISABLE_PLUGINS")
    loaded = [p for p in found if p.status == "loaded"]
    return Registry([*loaded, *(Registry.from_rules(*rules).plugins if rules else ())], prefer)
