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
from speedup.graph import Node, Ref, Value
from speedup.hookspecs import CONTRACT_VERSION, hookimpl, hookspec
from speedup.infer import NodeFacts
from speedup.keep import NodeKeep
from speedup.movement import Movement
from speedup.names import op_name, variants
from speedup.overlay import Overlay, overlaid
from speedup.overwrite import TiedMovement
from speedup.plan import ModelSpeedup, Plan, plan
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
    "CheckError",
    "Constant",
    "Expanded",
    "Expansion",
    "Fact",
    "Floats",
    "InputError",
    "Kept",
    "MaskError",
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
    "SignatureError",
    "SpeedupError",
    "StorageError",
    "TiedMovement",
    "TraceError",
    "Unused",
    "Value",
    "Verification",
    "along",
    "default_registry",
    "hookimpl",
    "hookspec",
    "kept_shape",
    "load",
    "op_name",
    "overlaid",
    "plan",
    "save",
    "variants",
    "verify",
]
