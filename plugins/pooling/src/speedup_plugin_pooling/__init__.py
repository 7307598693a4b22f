"""speedup rules for everything that works inside each channel on its own: pooling, resizing, padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speedup import Floats, Node, Rule, hookimpl, variants


class Window(Rule):
    """Every channel on its own: a window over the last axes. A constant passes when it is the same at all positions."""

    dims = 0

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        inner = f"* ~{self.spatial(node)}"
        return f"{inner} -> {', '.join([inner] * len(node.outputs))}"

    def spatial(self, node: Node) -> int:
        return self.dims

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        # The engine hands over constants that are the same at all positions, as arrays with one position.
        (array,) = arrays
        if array is None or len(node.outputs) != 1:
            return None
        return [array if self.uniform(node) else np.where(array == 0, 0.0, np.nan)]


class AveragePool(Window):
    """With padding that counts, or a divisor of its own, only a constant 0 passes."""

    def uniform(self, node: Node) -> bool:
        padding = node.arg("padding", 0)
        padded = any(padding) if isinstance(padding, Sequence) else bool(padding)
        return node.arg("divisor_override") is None and not (padded and node.arg("count_include_pad", True))


class LpPool(Window):
    """The norm of a window of constants is another constant; only 0 is kept exact."""

    def uniform(self, node: Node) -> bool:
        return False


class Resize(Window):
    """interpolate and upsample: all axes but batch and channel. Cubic weights do not sum to 1 exactly."""

    def spatial(self, node: Node) -> int:
        value = node.operands[0]
        assert value is not None
        return value.ndim - 2

    def uniform(self, node: Node) -> bool:
        return "cubic" not in str(node.arg("mode", "nearest"))


class Pad(Window):
    """Padding of the last axes: constants pass where the filler is the same; other modes repeat what is there."""

    def spatial(self, node: Node) -> int:
        pad = node.arg("pad", node.arg("padding"))
        return 1 if isinstance(pad, int) else len(pad) // 2

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        (array,) = arrays
        if array is None:
            return None
        filler = self.filler(node)
        return [array if filler is None else np.where(array == filler, array, np.nan)]

    def filler(self, node: Node) -> float | None:
        """The value that is padded with, None where entries are repeated."""
        if node.module is not None:
            kind = type(node.module).__name__
            return None if kind.startswith(("Reflection", "Replication", "Circular")) else float(node.arg("value", 0.0))
        value: Any = node.arg("value")
        return float(value or 0.0) if node.arg("mode", "constant") == "constant" else None


def _sized(
    cls: type[Window], name: str, dims: int, modules: tuple[type[nn.Module], ...], functions: Any, call: str
) -> Rule:
    rule = cls(name=f"{name}{dims}d", modules=modules, functions=functions, call=call, operands=("input",))
    assert isinstance(rule, Window)
    rule.dims = dims
    return rule


def _pools(d: int) -> list[Rule]:
    rules = [
        _sized(
            Window,
            "max_pool",
            d,
            (getattr(nn, f"MaxPool{d}d"),),
            variants(f"max_pool{d}d", f"max_pool{d}d_with_indices", missing_ok=True),
            "input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False",
        ),
        _sized(
            AveragePool,
            "avg_pool",
            d,
            (getattr(nn, f"AvgPool{d}d"),),
            variants(f"avg_pool{d}d"),
            "input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, "
            "divisor_override=None",
        ),
        _sized(
            LpPool,
            "lp_pool",
            d,
            (getattr(nn, f"LPPool{d}d"),),
            variants(f"lp_pool{d}d"),
            "input, norm_type, kernel_size, stride=None, ceil_mode=False",
        ),
        _sized(
            Window,
            "adaptive_pool",
            d,
            (getattr(nn, f"AdaptiveAvgPool{d}d"), getattr(nn, f"AdaptiveMaxPool{d}d")),
            variants(
                f"adaptive_avg_pool{d}d",
                f"adaptive_max_pool{d}d",
                f"adaptive_max_pool{d}d_with_indices",
                missing_ok=True,
            ),
            "input, output_size, return_indices=False",
        ),
    ]
    return rules


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    pads = [
        getattr(nn, f"{kind}Pad{d}d")
        for kind in ("Constant", "Zero", "Reflection", "Replication", "Circular")
        for d in (1, 2, 3)
    ]
    return [
        *(rule for d in (1, 2, 3) for rule in _pools(d)),
        Resize(
            name="interpolate",
            modules=(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
            functions=(F.interpolate, F.upsample, F.upsample_nearest, F.upsample_bilinear),
            call="input, size=None, scale_factor=None, mode='nearest', *args, **kwargs",
            operands=("input",),
        ),
        Pad(
            name="pad",
            modules=tuple(pads),
            functions=(F.pad,),
            call="input, pad, mode='constant', value=None",
            operands=("input",),
        ),
        Pad(
            name="constant_pad_nd",
            functions=(torch.constant_pad_nd,),
            call="input, pad, value=0, *, mode='constant'",
            operands=("input",),
        ),
    ]
