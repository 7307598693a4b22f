"""speedup rules for convolutions and transposed convolutions, with groups, in one to three dimensions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from speedup import Rule, hookimpl
from speedup_plugin_conv.plain import Conv, ConvTranspose
from speedup_plugin_conv.standardized import StandardizedConv


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    return [
        Conv(
            name="conv",
            modules=(nn.Conv1d, nn.Conv2d, nn.Conv3d),
            functions=(torch.conv1d, torch.conv2d, torch.conv3d),
            call="input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1",
        ),
        ConvTranspose(
            name="conv_transpose",
            modules=(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
            functions=(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
            call="input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1",
        ),
        StandardizedConv(),
    ]
