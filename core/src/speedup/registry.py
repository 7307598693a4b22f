"""The registry: which rule is responsible for an op.

A rule claims module types (``rule.modules``), functions (``rule.functions``) and, through ``rule.claims(module)``,
modules of a certain structure. The registry turns these claims into tables, so that looking up an op costs a
dictionary access.

A claimed type also covers a subclass that changes nothing about what the module computes: one that adds a constructor,
a ``__repr__`` or new methods is covered, one that overrides ``forward`` or any other part of the claimed type is not.
What is not covered still works: the functions that run inside the module are then looked up one by one.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from speedup.behaviour import behaves_like, calls_super
from speedup.errors import InputError, PluginConflictError, RuleError
from speedup.names import op_name, operator_name
from speedup.plugins import (
    DISABLE_VARIABLE,
    PREFER_VARIABLE,
    PluginInfo,
    check_rule,
    load_plugins,
    preferred_by_environment,
    warn_unknown,
)
from speedup.pruning.criterion import Criterion
from speedup.rule import Rule

_ByNames: TypeAlias = dict[frozenset[str], list[Rule]]


class Registry:
    """The rules in use, keyed by op.

    Build one with `Registry.load`, from the installed plugins, or with `Registry.from_rules`, from rules at hand.

    Attributes:
        plugins: every plugin that was found: loaded, disabled and failed ones.

    Example:
        >>> registry = Registry.load()
        >>> registry.for_module(torch.nn.Linear(3, 4))  # doctest: +SKIP
        <Rule linear>
    """

    def __init__(self, plugins: Iterable[PluginInfo], prefer: Iterable[str] = ()) -> None:
        """Build the tables.

        Args:
            plugins: the plugins whose rules are used.
            prefer: names of plugins that win where two claim the same op, the strongest first; those that the
                environment prefers come after them.

        Raises:
            PluginConflictError: two rules claim the same op, and ``prefer`` does not decide between them.
        """
        if isinstance(prefer, str):
            raise TypeError(f"prefer takes several names, such as [{prefer!r}], not one string")
        prefer = tuple(prefer)
        self.plugins = tuple(plugins)
        self._prefer = (*prefer, *preferred_by_environment())
        self._owners: dict[int, PluginInfo] = {}
        self._rules: list[Rule] = []
        warn_unknown(prefer, self.plugins)
        for plugin in self.plugins:
            for rule in plugin.rules:
                if id(rule) not in self._owners:
                    self._owners[id(rule)] = plugin
                    self._rules.append(rule)
        self._functions = self._table(lambda rule: rule.functions)
        self._modules = self._table(lambda rule: rule.modules)
        self._structural = [rule for rule in self._rules if type(rule).claims is not Rule.claims]
        self._able: weakref.WeakKeyDictionary[type[nn.Module], _ByNames] = weakref.WeakKeyDictionary()
        self._by_type: weakref.WeakKeyDictionary[type[nn.Module], Rule | None] = weakref.WeakKeyDictionary()
        self._by_base: weakref.WeakKeyDictionary[type[nn.Module], Rule | None] = weakref.WeakKeyDictionary()

    @classmethod
    def load(
        cls,
        disable: Iterable[str] = (),
        only: Iterable[str] | None = None,
        prefer: Iterable[str] = (),
        strict: bool | None = None,
    ) -> Registry:
        """Build a registry from the installed plugins.

        Args:
            disable: names of plugins that are not used; see `speedup.plugins.load_plugins`.
            only: if given, the names of the only plugins that are used.
            prefer: names of plugins that win where two claim the same op, the strongest first.
            strict: whether a faulty plugin is an error; None asks the environment.

        Raises:
            PluginError: a plugin is faulty, and ``strict`` holds.
            PluginConflictError: two rules claim the same op, and ``prefer`` does not decide between them.

        Example:
            >>> registry = Registry.load(disable=["pooling"])
        """
        return cls(load_plugins(disable, only, strict), prefer)

    @classmethod
    def from_rules(cls, *rules: Rule) -> Registry:
        """Build a registry from rules at hand, as tests do; installed plugins play no part.

        Raises:
            PluginError: one of them is no proper rule.
            PluginConflictError: two of them claim the same op.
        """
        for rule in rules:
            check_rule(rule)
        return cls([PluginInfo("from_rules", "given directly", "0", __name__, rules=rules)])

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All rules in use, in the order of their plugins."""
        return tuple(self._rules)

    @property
    def criteria(self) -> tuple[str, ...]:
        """The names of all criteria for pruning."""
        return tuple(sorted({c.name for plugin in self.plugins for c in plugin.criteria}))

    def criterion(self, name: str) -> Criterion:
        """Find a criterion for pruning by its name; case, ``-`` and ``_`` do not matter.

        Raises:
            InputError: there is none of that name, or it is no name.
            PluginConflictError: two plugins have one, and ``prefer`` does not decide between them.
        """
        if not isinstance(name, str):
            raise InputError(f"{name!r} is no criterion: give the name of one, or a Criterion (or sparsity={name!r}?)")
        found = [(p, c) for p in self.plugins for c in p.criteria if _plain(c.name) == _plain(name)]
        for preferred in self._prefer:
            found = [each for each in found if each[0].is_called(preferred)] or found
        if not found:
            near = difflib.get_close_matches(name, self.criteria, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            known = f"there are {', '.join(self.criteria)}" if self.criteria else "no plugin with criteria is installed"
            raise InputError(f"no criterion is called {name!r}{hint} ({known})")
        if len(found) > 1:
            labels = " and ".join(plugin.label for plugin, _ in found)
            raise PluginConflictError(f"the criterion {name!r} is in {labels}: say which one wins with prefer=")
        return found[0][1]

    def plugin_of(self, rule: Rule) -> PluginInfo | None:
        """Give the plugin that a rule came from, or None for a rule of some other registry."""
        return self._owners.get(id(rule))

    def hint_for(self, op: str) -> str | None:
        """The plugin package that is known to have rules for an op, None when nobody names one.

        Args:
            op: the name of the op, as ``op_name`` gives it.
        """
        hints = [(pattern, package) for plugin in self.plugins for pattern, package in plugin.hints.items()]
        fitting = [(len(p), package) for p, package in hints if fnmatch.fnmatchcase(op, p)]
        return max(fitting)[1] if fitting else None

    def for_function(self, function: Any) -> Rule | None:
        """Find the rule that claims a function, or None.

        Args:
            function: the function as it arrives when a model runs; any object will do.
        """
        try:
            return self._functions.get(function) or self._functions.get(operator_name(function))
        except TypeError:  # not hashable
            return None

    def for_module(self, module: nn.Module) -> Rule | None:
        """Find the rule that claims a module, or None.

        The nearest claimed type among the bases of the module's type counts; only if there is none are the rules asked
        that claim by structure. A module whose ``forward`` was replaced on the instance belongs to nobody, and so
        does one of TorchScript, which has no code and no attributes of Python's.

        Args:
            module: the module as it is in the model.

        Raises:
            PluginConflictError: two rules claim the module by its structure.
            RuleError: a rule failed when it was asked.
        """
        if "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule):
            return None
        rule = self.for_type(type(module))
        return self._claim_by_structure(module) if rule is None else rule

    def for_type(self, kind: type[nn.Module]) -> Rule | None:
        """Find the rule that claims a module type, or None."""
        try:
            return self._by_type[kind]
        except KeyError:
            rule = self._by_type[kind] = self._claim_by_type(kind)
            return rule

    def for_base(self, kind: type[nn.Module]) -> Rule | None:
        """Find the rule that claims a module type, or the type above it that its own forward calls by ``super()`` and
        of which it changes nothing else; or None."""
        try:
            return self._by_base[kind]
        except KeyError:
            rule = self._by_base[kind] = self.for_type(kind) or self._claim_by_super(kind)
            return rule

    def _claim_by_super(self, kind: type[nn.Module]) -> Rule | None:
        for position, base in enumerate(kind.__mro__):
            if base in self._modules:
                between = kind.__mro__[:position]
                calls = all(calls_super(vars(each)["forward"]) for each in between if "forward" in vars(each))
                alike = behaves_like(between, base, ("forward",))
                return self._modules[base] if calls and alike else None
        return None

    def _claim_by_type(self, kind: type[nn.Module]) -> Rule | None:
        for position, base in enumerate(kind.__mro__):
            if base in self._modules:
                return self._modules[base] if behaves_like(kind.__mro__[:position], base) else None
        return None

    def _claim_by_structure(self, module: nn.Module) -> Rule | None:
        kind, held = type(module), frozenset((*module._parameters, *module._buffers))
        able = self._able.setdefault(kind, {})
        if held not in able:
            able[held] = _those(self._structural, lambda rule: rule.may_claim(kind, held), kind)
        claimants = _those(able[held], lambda rule: rule.claims(module), kind) if able[held] else ()
        return self._choose(kind, claimants) if claimants else None

    def _table(self, claims: Callable[[Rule], Iterable[Any]]) -> dict[Any, Rule]:
        claimants: dict[Any, list[Rule]] = {}
        for rule in self._rules:
            for op in dict.fromkeys(claims(rule)):
                claimants.setdefault(op, []).append(rule)
        return {op: self._choose(op, rules) for op, rules in claimants.items()}

    def _choose(self, op: Any, rules: Sequence[Rule]) -> Rule:
        """Pick the rule for an op among those that claim it."""
        owners: dict[int, Rule] = {}
        for rule in rules:
            owner = self._owners[id(rule)]
            if id(owner) in owners:
                raise PluginConflictError(
                    f"two rules of plugin {owner.label} claim {op_name(op)}: "
                    f"{owners[id(owner)].name!r} and {rule.name!r}. "
                    f"This is a fault of the plugin; until it is mended, disable it: disable=[{owner.name!r}]."
                )
            owners[id(owner)] = rule
        for name in self._prefer:
            preferred = [rule for rule in rules if self._owners[id(rule)].is_called(name)]
            rules = preferred or rules
        if len(rules) == 1:
            return rules[0]
        one, other = (self._owners[id(rule)] for rule in rules[:2])
        # The names of the entry points are the short ones, but two distributions may use the same.
        names = (one.distribution, other.distribution) if one.is_called(other.name) else (one.name, other.name)
        raise PluginConflictError(
            f"two plugins claim {op_name(op)}: {one.label} with rule {rules[0].name!r}, "
            f"and {other.label} with rule {rules[1].name!r}. "
            f"Say which one wins, prefer=[{names[0]!r}] or prefer=[{names[1]!r}], or leave one out with disable=[...]; "
            f"in the environment, with {PREFER_VARIABLE}={names[0]} or {DISABLE_VARIABLE}={names[1]}."
        )


def _those(rules: Iterable[Rule], say: Callable[[Rule], bool], kind: type[nn.Module]) -> list[Rule]:
    """The rules that say yes when they are asked for a module of a type."""
    found = []
    for rule in rules:
        try:
            if say(rule):
                found.append(rule)
        except Exception as error:
            raise RuleError(
                f"{rule.label} failed when it was asked for a {op_name(kind)}: {type(error).__name__}: {error}"
            ) from error
    return found


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


@functools.cache
def default_registry() -> Registry:
    """Give the registry of all installed plugins; it is built once per process.

    ``default_registry.cache_clear()`` makes the next call look again, for instance after the environment has changed.

    Raises:
        PluginError: a plugin is faulty, and ``SPEEDUP_STRICT_PLUGINS`` is set.
        PluginConflictError: two plugins claim the same op; build a registry with ``Registry.load(prefer=...)`` then.
    """
    return Registry.load()
