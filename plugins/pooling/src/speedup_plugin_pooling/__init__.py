"""speedup rules for everything that works inside each channel on its own: pooling, resizing, padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from speedup import Affine, Fact, Floats, Movement, Node, NodeFacts, Ref, Rule, hookimpl, variants


class Window(Rule):
    """Every channel on its own: a window over the last axes. A constant passes when it is the same at all positions."""

    dims = 0

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        mixes = self.mixes(node)
        inner = " ".join(["*", *("~1" if mixed else f"k{n}" for n, mixed in enumerate(mixes))])
        inner = inner if not all(mixes) else f"* ~{len(mixes)}"
        return f"{inner} -> {', '.join([inner] * len(node.outputs))}"

    def mixes(self, node: Node) -> list[bool]:
        """Of the last axes, whether the window reaches over more than one entry: a stack of channels is often given an
        axis more, and pooled with a window of 1 along them."""
        size = node.arg("kernel_size")
        if size is None or len(node.outputs) > 1:  # positions count all axes of the window together
            return [True] * self.spatial(node)
        sizes, strides, pads = (
            [number] * self.dims if isinstance(number, int) else [*number] * (self.dims // len(number))
            for number in (size, node.arg("stride") or size, node.arg("padding", 0))
        )
        return [each != (1, 1, 0) for each in zip(sizes, strides, pads, strict=True)]

    def spatial(self, node: Node) -> int:
        return self.dims

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        # The engine hands over constants that are the same at all positions, as arrays with one position; but of
        # parameters (a table of positions, resized) all of them.
        (array,) = arrays
        if array is None:
            return None
        array = self._same(node, array)
        value = self.passed(node, array) if self.uniform(node) else np.where(array == 0, 0.0, np.nan)
        # A second output holds the positions of what was taken: no constants, and they depend on the size.
        return [value, *[np.full((1,) * array.ndim, np.nan)] * (len(node.outputs) - 1)]

    def _same(self, node: Node, array: Floats) -> Floats:
        """With one position: what is the same at all of them, else NaN."""
        inner = node.layout.mixed
        axes = tuple(a for a, dim in enumerate(node.layout.operands[0] or ()) if inner.intersection(dim))
        low, high = array.min(axis=axes, keepdims=True), array.max(axis=axes, keepdims=True)
        return np.where(low == high, low, np.nan)

    def passed(self, node: Node, array: Floats) -> Floats:
        """What comes of constants that are the same at all positions."""
        return array


def bordered(node: Node, facts: NodeFacts, filler: float) -> dict[str, Fact]:
    """The facts behind a call that gives, at each position, m of what is inside and 1 - m of a filler.

    entry = sum of terms · (u m) + offset · m + filler · (1 - m), m of the position only: one unknown more.
    """
    known = facts.affine(0)
    mask, offset = (facts.mask(0), facts.value(0)) if known is None else (known.mask, known.offset)
    terms = () if known is None else known.terms
    arrays = (mask, np.broadcast_to(offset, mask.shape), *terms)
    mixed = {a for a, dim in enumerate(node.layout.operands[0] or ()) if node.layout.mixed.issuperset(dim)}
    varied = {a for array in arrays for a, size in enumerate(array.shape) if size > 1}
    channels = known.axis if known is not None else min(varied or {1})
    if not mask.any() or not varied <= {channels} - mixed:
        return {}
    return {
        "output": Affine(channels, mask, (*terms, np.where(mask, offset - filler, 0.0)), np.full_like(offset, filler))
    }


def one_window(node: Node, array: Floats, dims: int) -> Floats:
    """The call on a single window that is filled with constants."""
    size = node.arg("kernel_size")
    window = (size,) * dims if isinstance(size, int) else tuple(size) * (dims // len(size))
    window = tuple([max(*pair) for pair in zip(window, array.shape[-dims:], strict=True)])
    filled = torch.from_numpy(np.broadcast_to(array, (*array.shape[:-dims], *window)).copy())
    result: Floats = node.run([filled]).numpy()
    return result


class AveragePool(Window):
    """With padding that counts only a constant 0 passes, and so with a divisor of its own where windows are cut off."""

    def uniform(self, node: Node) -> bool:
        padding = node.arg("padding", 0)
        padded = any(padding) if isinstance(padding, Sequence) else bool(padding)
        if node.arg("divisor_override") is not None:
            return not padded and not node.arg("ceil_mode", False)
        return not (padded and node.arg("count_include_pad", True))

    def averaging(self, node: Node) -> bool:
        return self.uniform(node) and node.arg("divisor_override") is None

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """What is padded counts as 0, and a divisor of its own weighs windows that are cut off less."""
        if self.uniform(node) or facts.is_weight(0):
            return super().infer_from_input(node, facts)
        return bordered(node, facts, 0.0) or super().infer_from_input(node, facts)

    def passed(self, node: Node, array: Floats) -> Floats:
        return array if node.arg("divisor_override") is None else one_window(node, array, self.dims)


class LpPool(Window):
    """The norm of a window of constants is another constant; torch scales a cut-off window up to a whole one."""

    def passed(self, node: Node, array: Floats) -> Floats:
        return one_window(node, array, self.dims)


class Unpool(Window):
    """Puts entries back where the indices say, and 0 elsewhere: only a constant 0 passes, wherever it is put."""

    def signature(self, node: Node) -> str:
        inner = f"* ~{self.dims}"
        return f"{inner}, {inner} -> {inner}"

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        return None if arrays[0] is None else [np.where(arrays[0] == 0, 0.0, np.nan)]


class Sample(Unpool):
    """grid_sample: every channel is sampled at the same places."""

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        return f"n c ~{value.ndim - 2}, n ~{value.ndim - 1} -> n c ~{value.ndim - 2}"


class AdaptivePool(Window):
    def averaging(self, node: Node) -> bool:
        return "avg" in node.op_name.lower()


class Resize(Window):
    """interpolate and upsample: all axes but batch and channel. The weights of every mode sum to 1."""

    averages = True

    def spatial(self, node: Node) -> int:
        value = node.operands[0]
        assert value is not None
        return value.ndim - 2


class Pad(Window):
    """Padding: constants pass where the filler is the same; other modes, and cropping, repeat what is there.

    Padding of the channel axis with constants, as in the shortcut of a ResNet without projection, is data movement and
    left to ``channels``. The code says how many channels are added, so these all stay.
    """

    channels: Movement
    places = ("pad",)

    def claim(self, node: Node) -> None:
        super().claim(node)
        if node.rule is not None and _pads_channels(node):
            self.channels.claim(node)

    def signature(self, node: Node) -> str:
        pads = _pads(node)
        _filler(node)  # a filler that is no number is a TypeError: the call stays a barrier
        inner = " ".join(f"~x{axis}" if any(pad) else f"a{axis}" for axis, pad in enumerate(pads))
        return f"{inner} -> {inner}"

    def averaging(self, node: Node) -> bool:
        return _added(node) is None

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        filler = _added(node)
        if filler is None or facts.is_weight(0):
            return super().infer_from_input(node, facts)
        return bordered(node, facts, filler) or super().infer_from_input(node, facts)

    def passed(self, node: Node, array: Floats) -> Floats:
        filler = _added(node)
        return array if filler is None else np.where(array == filler, array, np.nan)


def _pads(node: Node) -> list[tuple[int, int]]:
    """Entries that are padded before and after, per axis of the input; negative numbers crop.

    How many a tensor says is not looked at: some, wherever channels are not among them.
    """
    pairs = _given(node)
    return [(0, 0)] * (node.tensors[0].ndim - len(pairs)) + pairs


def _given(node: Node) -> list[tuple[int, int]]:
    """The same for the axes that the call names, the last ones."""
    pad = node.arg("pad", node.arg("padding"))
    sides = [pad, pad] if isinstance(pad, int) else [1 if isinstance(p, Ref) else int(p) for p in pad]
    return list(zip(sides[::2], sides[1::2], strict=True))[::-1]


def _filler(node: Node) -> float | None:
    """The value that is padded with, None where entries are repeated."""
    if node.module is not None:
        kind = type(node.module).__name__
        return None if kind.startswith(("Reflection", "Replication", "Circular")) else float(node.arg("value", 0.0))
    value: Any = node.arg("value")
    return float(value or 0.0) if node.arg("mode", "constant") == "constant" else None


def _added(node: Node) -> float | None:
    """The filler, None where none comes in.

    A call that pads by nothing here may pad an input of another size: what fills it up to whole windows is computed.
    """
    adds = any(max(pad) > 0 or (pad == (0, 0) and node.module is None) for pad in _given(node))
    return _filler(node) if adds else None


def _pads_channels(node: Node) -> bool:
    if any(isinstance(p, Ref) for p in tree_leaves(node.arg("pad", node.arg("padding")))):
        return False
    pads = _pads(node)
    padded = [axis for axis, pad in enumerate(pads) if any(pad)]
    # The second of three axes is that of tokens, more often than not.
    return len(pads) != 3 and padded == [1] and min(pads[1]) >= 0 and _filler(node) is not None


def _sized(
    cls: type[Window], name: str, dims: int, modules: tuple[type[nn.Module], ...], functions: Any, call: str
) -> Rule:
    rule = cls(name=f"{name}{dims}d", modules=modules, functions=functions, call=call, operands=("input",))
    assert isinstance(rule, Window)
    rule.dims = dims
    if issubclass(cls, Unpool):
        rule.operands, rule.annihilates = ("input", "indices"), {"input": ("indices",)}
    return rule


def _pad(name: str, modules: tuple[type[nn.Module], ...], function: Any, call: str) -> Rule:
    rule = Pad(name=name, modules=modules, functions=(function,), call=call, operands=("input",))
    rule.channels = Movement(name=f"{name} of channels", call=call, operands=("input",), fills=True)
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
            AdaptivePool,
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
        _sized(
            Unpool,
            "max_unpool",
            d,
            (getattr(nn, f"MaxUnpool{d}d"),),
            variants(f"max_unpool{d}d"),
            "input, indices, kernel_size, stride=None, padding=0, output_size=None",
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
        Sample(
            name="grid_sample",
            functions=(F.grid_sample,),
            call="input, grid, *args, **kwargs",
            operands=("input", "grid"),
            annihilates={"input": ("grid",)},
        ),
        _pad("pad", tuple(pads), F.pad, "input, pad, mode='constant', value=None"),
        _pad("constant_pad_nd", (), torch.constant_pad_nd, "input, pad, value=0, *, mode='constant'"),
    ]
