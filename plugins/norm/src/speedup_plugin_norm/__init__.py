"""speedup rules for layer, RMS, group and instance normalisation, and for weights that are divided by their norm."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from speedup import Rule, hookimpl
from speedup_plugin_norm.custom import NAMES
from speedup_plugin_norm.deviation import DeviationNorm
from speedup_plugin_norm.instance import InstanceNorm
from speedup_plugin_norm.local import LocalResponseNorm
from speedup_plugin_norm.norms import GroupNorm, LayerNorm, RMSNorm
from speedup_plugin_norm.recognised import OffsetLayerNorm, OffsetRMSNorm, OtherGroupNorm, OtherLayerNorm, OtherRMSNorm
from speedup_plugin_norm.response import ResponseNorm
from speedup_plugin_norm.rounds import (
    CompensatedGroupNorm,
    CompensatedLayerNorm,
    CompensatedRMSNorm,
    CountingGroupNorm,
    CountingLayerNorm,
    CountingRMSNorm,
)
from speedup_plugin_norm.spectral import SpectralNorm
from speedup_plugin_norm.weight import WeightNorm


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    return [
        LayerNorm(modules=(nn.LayerNorm,), functions=(F.layer_norm, torch.layer_norm)),
        RMSNorm(modules=(nn.RMSNorm,), functions=(F.rms_norm, torch.rms_norm)),
        OtherLayerNorm(),
        OffsetLayerNorm(),
        CompensatedLayerNorm(),
        CompensatedRMSNorm(),
        CompensatedGroupNorm(),
        OtherRMSNorm(),
        OffsetRMSNorm(),
        OtherGroupNorm(),
        GroupNorm(modules=(nn.GroupNorm,), functions=(F.group_norm, torch.group_norm)),
        *(rule(functions=rule.counting) for rule in (CountingLayerNorm, CountingRMSNorm, CountingGroupNorm)),
        ResponseNorm(),
        LocalResponseNorm(),
        DeviationNorm(),
        WeightNorm(),
        SpectralNorm(),
        *(
            rule(name=f"{rule.name}, {' and '.join(names)}", operands=("input", *names))
            for names in NAMES
            for rule in (OtherLayerNorm, CompensatedLayerNorm, OtherGroupNorm, CompensatedGroupNorm)
        ),
        InstanceNorm(
            modules=(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
            functions=(F.instance_norm, torch.instance_norm),
        ),
    ]
