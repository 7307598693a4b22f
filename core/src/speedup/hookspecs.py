"""The contract between speedup and its plugins. This file is the reference for plugin authors.

A plugin is an importable module that some installed distribution names in the entry-point group ``speedup.plugins``:

.. code-block:: toml

    [project.entry-points."speedup.plugins"]
    swish = "speedup_plugin_swish"

The module implements the hooks below, each marked with `hookimpl`:

.. code-block:: python

    from collections.abc import Iterable

    from speedup.hookspecs import hookimpl
    from speedup.rule import Rule

    from ._rules import SwishRule

    speedup_contract = 1


    @hookimpl
    def speedup_rules() -> Iterable[Rule]:
        return [SwishRule()]

**Contract version.** ``speedup_contract`` is the version of this file that the plugin was written for, a whole number.
It may be left out, and then means 1. A plugin that asks for another version than `CONTRACT_VERSION` is not used.
The version rises only when a plugin that was right before would go wrong; a new hook alone does not raise it.

**Failures.** A plugin is left out, with a warning in the log and the reason in ``speedup plugins``, when

- its module cannot be imported, or a hook raises an exception;
- it asks for another contract version;
- a function is marked with `hookimpl` and no such hook exists (a misspelt name), or it takes arguments that the hook
  does not have;
- it implements no hook at all, for instance because the marker was forgotten;
- a hook returns something that it may not return.

In strict mode (``Registry.load(strict=True)`` or ``SPEEDUP_STRICT_PLUGINS=1``) each of these raises `PluginError`.

**Choice by the user.** A plugin that the user disabled (``disable=``, ``only=``, ``SPEEDUP_DISABLE_PLUGINS``,
``SPEEDUP_ONLY_PLUGINS``) is not even imported. See `speedup.plugins`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pluggy

from speedup.pruning.criterion import Criterion
from speedup.rule import Rule

PROJECT_NAME = "speedup"
"""The name under which pluggy knows this project."""

ENTRY_POINT_GROUP = "speedup.plugins"
"""The entry-point group in which plugins are found."""

CONTRACT_VERSION = 1
"""The version of this contract; a plugin states the one it was written for as ``speedup_contract``."""

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
"""Marks a hook's specification. Only this file uses it."""

hookimpl = pluggy.HookimplMarker(PROJECT_NAME)
"""Marks a plugin's implementation of a hook."""


class HookSpecs:
    """The hooks that a plugin can implement."""

    @hookspec
    def speedup_rules(self) -> Iterable[Rule]:
        """Give the rules of this plugin.

        **When it is called.** Once, when a registry is built. Never during a speedup: the rules go into a table keyed
        by op, and the engine looks into that table only.

        **What to return.** Any iterable of `Rule` *instances*; a generator will do, and so will an empty list.
        ``rule.modules`` (module types) and ``rule.functions`` (torch functions) say which ops a rule claims, and
        ``rule.claims(module)`` can claim a module that no type claim fits, by its structure.
        A rule is used for every model from then on, so it should keep no state.

        **What is an error.**

        - An item that is no `Rule` instance. A `Rule` *class* counts as one: return ``MyRule()``, not ``MyRule``.
        - A rule without a ``name``; an entry of ``modules`` that is no ``nn.Module`` type; an entry of ``functions``
          that cannot be called or hashed; a field that no rule has; ``axes`` with a fault in their text. The plugin is
          left out, as for any failure.
        - Two rules of one plugin that claim the same op, or two plugins that do: a `PluginConflictError`. Which of two
          plugins wins is for the user to say (``prefer=``, or by disabling one), never for a plugin.

        **Example.** A plugin for one activation, its function and its in-place form::

            @hookimpl
            def speedup_rules() -> Iterable[Rule]:
                yield Rule(name="swish", modules=(Swish,), functions=(swish, swish_), axes="* -> *")
        """
        raise NotImplementedError  # pluggy reads the signature only

    @hookspec
    def speedup_criteria(self) -> Iterable[Criterion]:
        """Give the criteria of this plugin: ways to say which channels of a model matter least.

        **When it is called.** Once, when a registry is built, as ``speedup_rules``. ``speedup.prune_masks`` then finds
        a criterion by its name.

        **What to return.** Any iterable of `Criterion` *instances*. One instance serves all models, so it should keep
        nothing of them after ``prepare`` was called for the next.

        **What is an error.**

        - An item that is no `Criterion` instance, or one without a ``name``. The plugin is left out.
        - Two criteria of one name: the one of the plugin that the user prefers (``prefer=``) wins, else a
          `PluginConflictError` is raised when that name is asked for.

        **Example.** Keep what has large weights::

            class L1(Criterion):
                name = "l1"

                def score(self, group, scene):
                    return group.sums({n: p.abs() for n, p in scene.parameters.items()})


            @hookimpl
            def speedup_criteria() -> Iterable[Criterion]:
                yield L1()
        """
        raise NotImplementedError  # pluggy reads the signature only

    @hookspec
    def speedup_hints(self) -> Mapping[str, str]:
        """Name the plugin packages that know ops which this plugin itself does not.

        A library that has its speedup rules in another package, or the maintainers of a family of plugins, tell users
        in this way what to install. ``speedup doctor`` shows the hint beside an op that no rule claims.

        **When it is called.** Once, when a registry is built, after ``speedup_rules``.

        **What to return.** A mapping from names of ops, as reports have them, to names of distributions, as pip takes
        them. In the names of ops ``*`` stands for anything. Where several patterns fit an op, the longest counts.

        **What is an error.** Anything that is no mapping of text to text; the plugin is left out, as for any failure.

        **Example.** A library whose kernels have rules in a package of their own::

            @hookimpl
            def speedup_hints() -> Mapping[str, str]:
                return {"torch.ops.mylib.*": "speedup-plugin-mylib", "mylib.nn.*": "speedup-plugin-mylib"}
        """
        raise NotImplementedError  # pluggy reads the signature only
