"""Finding and loading plugins: entry points in, a `PluginInfo` for each of them out.

Nothing here raises because of a faulty plugin unless ``strict`` is asked for: the fault is logged, written down in
`PluginInfo.error`, and the plugin is left out.

Environment variables, all read at the time of loading:

- ``SPEEDUP_DISABLE_PLUGINS``: comma-separated names of plugins that are not to be used, or ``all``;
- ``SPEEDUP_ONLY_PLUGINS``: comma-separated names; every other plugin is disabled;
- ``SPEEDUP_PREFER_PLUGINS``: comma-separated names of plugins that win where two claim the same op, the strongest
  first, after those that code prefers;
- ``SPEEDUP_STRICT_PLUGINS``: ``1`` makes a faulty plugin an error.

A plugin goes by the name of its entry point or by that of its distribution; case, ``-`` and ``_`` do not matter.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pluggy
from torch import nn

from speedup import hookspecs
from speedup.errors import PluginError
from speedup.names import names_operator
from speedup.pruning.criterion import Criterion
from speedup.rule import Rule

DISABLE_VARIABLE = "SPEEDUP_DISABLE_PLUGINS"
ONLY_VARIABLE = "SPEEDUP_ONLY_PLUGINS"
PREFER_VARIABLE = "SPEEDUP_PREFER_PLUGINS"
STRICT_VARIABLE = "SPEEDUP_STRICT_PLUGINS"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PluginInfo:
    """What is known of one plugin.

    Attributes:
        name: the name of its entry point.
        distribution: the installed distribution that brought it.
        version: the version of that distribution.
        module: what the entry point refers to.
        contract: the contract version it was written for; None if it was never imported.
        rules: its rules; empty if it was not loaded.
        criteria: its criteria for pruning, likewise.
        hints: the plugin packages that it names for ops of others, by patterns of op names.
        error: why it was left out, or None.
        disabled: whether the user disabled it; it was then not imported.
    """

    name: str
    distribution: str
    version: str
    module: str
    contract: int | None = None
    rules: tuple[Rule, ...] = ()
    criteria: tuple[Criterion, ...] = ()
    hints: Mapping[str, str] = field(default_factory=dict, hash=False)
    error: str | None = None
    disabled: bool = False

    @property
    def status(self) -> Literal["loaded", "disabled", "failed"]:
        """One word for the outcome."""
        if self.disabled:
            return "disabled"
        return "failed" if self.error is not None else "loaded"

    @property
    def label(self) -> str:
        """How messages call this plugin, such as ``'conv' (speedup-plugin-conv 0.1.0)``."""
        return f"{self.name!r} ({self.distribution} {self.version})"

    def is_called(self, name: str) -> bool:
        """Tell whether a name means this plugin, by its entry point or its distribution."""
        return _normal(name) in (_normal(self.name), _normal(self.distribution))


def load_plugins(
    disable: Iterable[str] = (), only: Iterable[str] | None = None, strict: bool | None = None
) -> tuple[PluginInfo, ...]:
    """Load every installed plugin that the user did not disable.

    Args:
        disable: names of plugins to leave out; ``"all"`` leaves out all. The environment variable adds to them.
        only: if given, every plugin that is not named is left out. The environment variable narrows it further, so
            that code cannot widen what the environment allows.
        strict: whether a faulty plugin is an error; None asks the environment.

    Returns:
        All plugins in the order of their names: loaded, disabled and failed ones.

    Raises:
        PluginError: a plugin is faulty, and ``strict`` holds.

    Example:
        >>> [plugin.name for plugin in load_plugins(disable=["all"]) if plugin.status == "loaded"]
        []
    """
    if strict is None:
        strict = strict_by_environment()
    found = _discover()
    disabled = [*_names(disable, "disable"), *_listed(DISABLE_VARIABLE)]
    allowed = [] if only is None else [_names(only, "only")]
    if listed := _listed(ONLY_VARIABLE):
        allowed.append(listed)
    warn_unknown((*disabled, *(name for names in allowed for name in names)), [info for info, _ in found])

    plugins = []
    for info, entry in found:
        off = any(_normal(name) == "all" or info.is_called(name) for name in disabled)
        off = off or not all(any(info.is_called(name) for name in names) for names in allowed)
        plugin = replace(info, disabled=True) if off else _load(info, entry, strict)
        plugins.append(plugin)
    return tuple(plugins)


def strict_by_environment() -> bool:
    """Tell whether the environment asks for strict loading."""
    return os.environ.get(STRICT_VARIABLE, "").strip().lower() in ("1", "true", "yes", "on")


def preferred_by_environment() -> list[str]:
    """The names of plugins that the environment prefers, the strongest first."""
    return _listed(PREFER_VARIABLE)


def warn_unknown(names: Sequence[str], plugins: Sequence[PluginInfo]) -> None:
    """Log a warning for each name that means no plugin, with the nearest that does.

    Args:
        names: names as the user gave them.
        plugins: the plugins that exist.
    """
    known = {_normal(name): name for plugin in plugins for name in (plugin.distribution, plugin.name)}
    for name in dict.fromkeys(names):
        if _normal(name) in known or _normal(name) == "all":
            continue
        close = difflib.get_close_matches(_normal(name), list(known), n=1)
        hint = f"; did you mean {known[close[0]]!r}?" if close else ""
        _log.warning("no plugin is called %r%s", name, hint)


def check_rule(rule: object) -> None:
    """Check that an object is a rule whose claims the registry can use.

    Raises:
        PluginError: it is not; the message says why.
    """
    if not isinstance(rule, Rule):
        hint = f": return {rule.__name__}(), not the class" if isinstance(rule, type) and issubclass(rule, Rule) else ""
        raise PluginError(f"speedup_rules() gave {rule!r}, which is no Rule{hint}")
    if not isinstance(rule.name, str) or not rule.name:
        raise PluginError(f"the rule {rule!r} has no name")
    for module in rule.modules:
        if not (isinstance(module, type) and issubclass(module, nn.Module)):
            raise PluginError(f"rule {rule.name!r}: modules holds {module!r}, which is no nn.Module type")
    for function in rule.functions:
        if isinstance(function, str):
            if not names_operator(function):
                names = "names no operator: write torch.ops.library.name"
                raise PluginError(f"rule {rule.name!r}: functions holds {function!r}, which {names}")
            continue
        if not callable(function):
            raise PluginError(f"rule {rule.name!r}: functions holds {function!r}, which cannot be called")
        try:
            hash(function)
        except TypeError:
            raise PluginError(f"rule {rule.name!r}: functions holds {function!r}, which cannot be hashed") from None


def check_criterion(criterion: object) -> None:
    """Check that an object is a criterion with a name.

    Raises:
        PluginError: it is not; the message says why.
    """
    if not isinstance(criterion, Criterion):
        is_class = isinstance(criterion, type) and issubclass(criterion, Criterion)
        hint = f": return {criterion.__name__}(), not the class" if is_class else ""  # type: ignore[attr-defined]
        raise PluginError(f"speedup_criteria() gave {criterion!r}, which is no Criterion{hint}")
    if not isinstance(criterion.name, str) or not criterion.name:
        raise PluginError(f"the criterion {criterion!r} has no name")


def _discover() -> list[tuple[PluginInfo, importlib.metadata.EntryPoint]]:
    found: dict[tuple[str, str, str], tuple[PluginInfo, importlib.metadata.EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=hookspecs.ENTRY_POINT_GROUP):
        dist = entry.dist
        distribution = dist.name if dist else "unknown"
        info = PluginInfo(entry.name, distribution, dist.version if dist else "unknown", entry.value)
        found.setdefault((_normal(entry.name), _normal(distribution), entry.value), (info, entry))
    return [found[key] for key in sorted(found)]


def _load(info: PluginInfo, entry: importlib.metadata.EntryPoint, strict: bool) -> PluginInfo:
    try:
        try:
            module = entry.load()
        except Exception as error:
            raise PluginError(f"its module cannot be imported: {_describe(error)}") from error
        info = replace(info, contract=_contract(module))
        rules, criteria, hints = _answers(module, info)
        return replace(info, rules=rules, criteria=criteria, hints=hints)
    except PluginError as error:
        message = f"plugin {info.label}: {error}"
        if strict:
            raise PluginError(message) from error
        _log.warning("%s; it is left out", message)
        return replace(info, error=str(error))


def _contract(module: object) -> int:
    contract = getattr(module, "speedup_contract", 1)
    if type(contract) is not int:
        raise PluginError(f"speedup_contract must be a whole number, not {contract!r}")
    ours = hookspecs.CONTRACT_VERSION
    if contract != ours:
        advice = "update speedup-core" if contract > ours else "update the plugin"
        raise PluginError(f"it was written for contract version {contract}, and this speedup has {ours}: {advice}")
    return contract


def _answers(module: object, info: PluginInfo) -> tuple[tuple[Rule, ...], tuple[Criterion, ...], Mapping[str, str]]:
    """What the hooks of a plugin give."""
    # One manager per plugin, so that a fault in one cannot touch the others, and its source is plain.
    manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
    manager.add_hookspecs(hookspecs.HookSpecs)
    try:
        manager.register(module, name=info.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(_hook_fault(error, manager)) from error
    if not manager.get_hookcallers(module):
        named = next((name for name in _hooks() if hasattr(module, name)), None)
        marker = "no function is marked with" if named is None else f"{named} is not marked with"
        raise PluginError(f"it implements no hook: {marker} speedup.hookspecs.hookimpl")
    try:
        rules = [rule for given in manager.hook.speedup_rules() for rule in given]
    except Exception as error:
        raise PluginError(f"speedup_rules() failed: {_describe(error)}") from error
    for rule in rules:
        check_rule(rule)
        rule.origin = info.label
    try:
        criteria = [criterion for given in manager.hook.speedup_criteria() for criterion in given]
    except Exception as error:
        raise PluginError(f"speedup_criteria() failed: {_describe(error)}") from error
    for criterion in criteria:
        check_criterion(criterion)
    try:
        hints = {op: package for given in manager.hook.speedup_hints() for op, package in given.items()}
    except Exception as error:
        raise PluginError(f"speedup_hints() failed: {_describe(error)}") from error
    if not all(isinstance(text, str) for pair in hints.items() for text in pair):
        raise PluginError(f"speedup_hints() gave {hints!r}, which is no mapping of names of ops to names of packages")
    return tuple(rules), tuple(criteria), hints


def _hooks() -> list[str]:
    return sorted(name for name in vars(hookspecs.HookSpecs) if not name.startswith("_"))


def _hook_fault(error: pluggy.PluginValidationError, manager: pluggy.PluginManager) -> str:
    known = _hooks()
    unknown = sorted(name for name in vars(manager.hook) if not name.startswith("_") and name not in known)
    if not unknown:
        return " ".join(str(error).split())
    close = difflib.get_close_matches(unknown[0], known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"the hooks are {', '.join(known)}"
    return f"there is no hook called {unknown[0]}; {hint}"


def _names(given: Iterable[str], parameter: str) -> list[str]:
    if isinstance(given, str):
        raise TypeError(f"{parameter} takes several names, such as [{given!r}], not one string")
    return list(given)


def _listed(variable: str) -> list[str]:
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
