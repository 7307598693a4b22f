"""speedup: turn a pruned model and its masks into a physically smaller model that gives the same answers.

    >>> from speedup import ModelSpeedup
    >>> ModelSpeedup(model, dummy_input, "masks.pt").speedup_model()

For plugins: ``Rule`` and ``Movement`` (see ``speedup.rule`` and ``speedup.axes``), ``hookimpl``, ``variants``.

Each name is imported from its module when it is first asked for: ``import speedup`` costs next to nothing, and a plugin
no more than what it uses (`PEP 562 <https://peps.python.org/pep-0562/>`_).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speedup.arrays import Bools, Floats, along
    from speedup.build import Kept
    from speedup.errors import (
        CheckError,
        InputError,
        MaskError,
        PluginConflictError,
        PluginError,
        RuleError,
        SignatureError,
        SpeedupError,
        StorageError,
        TraceError,
    )
    from speedup.expand import Call, Expanded, Expansion
    from speedup.facts import Affine, Constant, Fact, Unused
    from speedup.fast.plain import Plain
    from speedup.flow import unused_operands
    from speedup.groups.align import align
    from speedup.groups.find import channel_groups
    from speedup.groups.labels import Labels
    from speedup.groups.result import ChannelGroups, Group, Member
    from speedup.hookspecs import CONTRACT_VERSION, hookimpl, hookspec
    from speedup.instead import Instead
    from speedup.kinds import Kind
    from speedup.known import NodeFacts
    from speedup.movement import Movement
    from speedup.names import op_name, variants
    from speedup.node import Node, Ref, Value, rows_of_one
    from speedup.node_keep import NodeKeep
    from speedup.overlay import Overlay, overlaid, plain_class
    from speedup.overwrite import TiedMovement
    from speedup.planned import Plan
    from speedup.planning import ModelSpeedup, plan
    from speedup.products import matmul
    from speedup.pruning.criterion import Criterion
    from speedup.pruning.front import prune_masks
    from speedup.pruning.scene import Scene
    from speedup.registry import Registry, default_registry
    from speedup.regular import kept_shape
    from speedup.rule import Rule, says_nothing
    from speedup.store.reading import load
    from speedup.store.writing import save
    from speedup.verification import Verification, verify

# Where each name is; what type checkers read above says the same.
_HOMES = {
    "speedup.arrays": "Bools Floats along",
    "speedup.build": "Kept",
    "speedup.errors": "CheckError InputError MaskError PluginConflictError PluginError RuleError SignatureError "
    "SpeedupError StorageError TraceError",
    "speedup.expand": "Call Expanded Expansion",
    "speedup.facts": "Affine Constant Fact Unused",
    "speedup.fast.plain": "Plain",
    "speedup.flow": "unused_operands",
    "speedup.groups.align": "align",
    "speedup.groups.find": "channel_groups",
    "speedup.groups.labels": "Labels",
    "speedup.groups.result": "ChannelGroups Group Member",
    "speedup.hookspecs": "CONTRACT_VERSION hookimpl hookspec",
    "speedup.instead": "Instead",
    "speedup.kinds": "Kind",
    "speedup.known": "NodeFacts",
    "speedup.movement": "Movement",
    "speedup.names": "op_name variants",
    "speedup.node": "Node Ref Value rows_of_one",
    "speedup.node_keep": "NodeKeep",
    "speedup.overlay": "Overlay overlaid plain_class",
    "speedup.overwrite": "TiedMovement",
    "speedup.planned": "Plan",
    "speedup.planning": "ModelSpeedup plan",
    "speedup.products": "matmul",
    "speedup.pruning.criterion": "Criterion",
    "speedup.pruning.front": "prune_masks",
    "speedup.pruning.scene": "Scene",
    "speedup.registry": "Registry default_registry",
    "speedup.regular": "kept_shape",
    "speedup.rule": "Rule says_nothing",
    "speedup.store.reading": "load",
    "speedup.store.writing": "save",
    "speedup.verification": "Verification verify",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__version__ = "0.1.0"

__all__ = [
    "CONTRACT_VERSION",
    "Affine",
    "Bools",
    "Call",
    "ChannelGroups",
    "CheckError",
    "Constant",
    "Criterion",
    "Expanded",
    "Expansion",
    "Fact",
    "Floats",
    "Group",
    "InputError",
    "Instead",
    "Kept",
    "Kind",
    "Labels",
    "MaskError",
    "Member",
    "ModelSpeedup",
    "Movement",
    "Node",
    "NodeFacts",
    "NodeKeep",
    "Overlay",
    "Plain",
    "Plan",
    "PluginConflictError",
    "PluginError",
    "Ref",
    "Registry",
    "Rule",
    "RuleError",
    "Scene",
    "SignatureError",
    "SpeedupError",
    "StorageError",
    "TiedMovement",
    "TraceError",
    "Unused",
    "Value",
    "Verification",
    "align",
    "along",
    "channel_groups",
    "default_registry",
    "hookimpl",
    "hookspec",
    "kept_shape",
    "load",
    "matmul",
    "op_name",
    "overlaid",
    "plain_class",
    "plan",
    "prune_masks",
    "rows_of_one",
    "save",
    "says_nothing",
    "unused_operands",
    "variants",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
