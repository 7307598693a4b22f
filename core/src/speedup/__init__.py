"""speedup: turn a pruned model and its masks into a physically smaller model that gives the same answers.

    >>> from speedup import ModelSpeedup
    >>> ModelSpeedup(model, dummy_input, "masks.pt").speedup_model()

For plugins: ``Rule`` and ``Movement`` (see ``speedup.rule`` and ``speedup.axes``), ``hookimpl``, ``variants``.
"""

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
from speedup.facts import Affine, Bools, Constant, Fact, Floats, Unused, along
from speedup.graph import Node, Ref, Value, rows_of_one
from speedup.groups.align import align
from speedup.groups.find import channel_groups
from speedup.groups.labels import Labels
from speedup.groups.result import ChannelGroups, Group, Member
from speedup.hookspecs import CONTRACT_VERSION, hookimpl, hookspec
from speedup.infer import NodeFacts
from speedup.keep import NodeKeep
from speedup.movement import Movement
from speedup.names import op_name, variants
from speedup.overlay import Overlay, overlaid
from speedup.overwrite import TiedMovement
from speedup.plan import ModelSpeedup, Plan, plan
from speedup.pruning.criterion import Criterion
from speedup.pruning.front import prune_masks
from speedup.pruning.scene import Scene
from speedup.registry import Registry, default_registry
from speedup.regular import kept_shape
from speedup.rule import Rule
from speedup.store.reading import load
from speedup.store.writing import save
from speedup.verify import Verification, verify

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
    "Kept",
    "Labels",
    "MaskError",
    "Member",
    "ModelSpeedup",
    "Movement",
    "Node",
    "NodeFacts",
    "NodeKeep",
    "Overlay",
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
    "op_name",
    "overlaid",
    "plan",
    "prune_masks",
    "rows_of_one",
    "save",
    "variants",
    "verify",
]
