"""speedup rules for convolutions and transposed convolutions, with groups, in one to three dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from speedup import Node, Overlay, Rule, hookimpl, overlaid


class FixedForward(Overlay):
    """A convolution whose weights were all 0: its bias, in the shape that the convolution would give."""

    label = "Fixed{}"
    bias: torch.Tensor
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        d = len(self.kernel_size)
        windows = zip(x.shape[-d:], self.kernel_size, self.stride, self.dilation, self._margins(), strict=True)
        sizes = [(size + margin - over * (kernel - 1) - 1) // step + 1 for size, kernel, step, over, margin in windows]
        shape = (*x.shape[: -d - 1], self.bias.numel(), *sizes)
        # With memory of its own, into which the next call may write.
        return self.bias.reshape(-1, *[1] * d).expand(shape).clone(memory_format=torch.contiguous_format)

    def _margins(self) -> list[int]:
        """How much longer each axis is with what is padded on both sides."""
        if self.padding == "same":
            return [over * (kernel - 1) for over, kernel in zip(self.dilation, self.kernel_size, strict=True)]
        return [0] * len(self.kernel_size) if self.padding == "valid" else [2 * p for p in self.padding]


class Conv(Rule):
    """out[n, g, o, .] = sum over i and the window of x[n, g, i, .] w[g, o, i, .] + b[g, o]."""

    operands = ("input", "weight", "bias")
    sizes = {"in_channels": "g i", "out_channels": "g o", "groups": "g"}  # noqa: RUF012
    bias = "bias"
    makes: tuple[type, ...] = (FixedForward,)

    def fixed(self, node: Node, module: nn.Module) -> nn.Module | None:
        module.register_parameter("weight", None)
        module.__class__ = overlaid(FixedForward, type(module))
        return module

    def signature(self, node: Node) -> str:
        d = _dims(node)
        return f"* (g i) ~{d}, (g o) i ~{d}, (g o)? -> * (g o) ~{d}"

    def uniform(self, node: Node) -> bool:
        """Zero padding sets the border apart from the inside."""
        padding = node.arg("padding", 0)
        if node.module is not None and node.arg("padding_mode") != "zeros":
            return True
        if padding == "same":
            weight = node.operand("weight")
            return weight is not None and all(k == 1 for k in weight.shape[2:])
        return padding == "valid" or not any(padding if isinstance(padding, Sequence) else (padding,))


class ConvTranspose(Conv):
    """As a convolution, with the weight stored input channels first; the window is spread, so borders always differ."""

    makes = ()

    def fixed(self, node: Node, module: nn.Module) -> nn.Module | None:
        return None

    def signature(self, node: Node) -> str:
        d = _dims(node)
        return f"* (g i) ~{d}, (g i) o ~{d}, (g o)? -> * (g o) ~{d}"

    def uniform(self, node: Node) -> bool:
        weight = node.operand("weight")
        assert weight is not None
        ones = (1,) * _dims(node)
        plain = all(
            _tuple(node.arg(name, default), len(ones)) == (default,) * len(ones)
            for name, default in (("stride", 1), ("padding", 0), ("output_padding", 0))
        )
        return plain and weight.shape[2:] == ones

    def multiply_accumulates(self, node: Node, shapes: Sequence[tuple[int, ...] | None]) -> int:
        d = _dims(node)
        inputs, weight = shapes[0] or (), shapes[1] or ()
        return prod(inputs) * prod(weight[1:]) if d else 0


def _dims(node: Node) -> int:
    weight = node.operand("weight")
    assert weight is not None
    return weight.ndim - 2


def _tuple(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,) * count


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
    ]
