"""speedup rules for everything that only moves entries: views, permutations, slices, splits, shuffles.

The engine runs the op on coordinates to see where each entry goes; a rule says which arguments are sizes that the
smaller call has anew (``resize``) and which axes the call divides evenly (``parts``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speedup import (
    Bools,
    Floats,
    Movement,
    Node,
    Rule,
    SignatureError,
    TiedMovement,
    hookimpl,
    kept_shape,
    variants,
)
from speedup_plugin_reshape.held import IndexSelect
from speedup_plugin_reshape.indexing import Index, Select, SetItem, kept_slice
from speedup_plugin_reshape.lookup import Gather, TakeAlong
from speedup_plugin_reshape.pattern import Pattern
from speedup_plugin_reshape.repeat import Repeat, RepeatInterleave
from speedup_plugin_reshape.scatter import FillRows, MaskedRows, MaskedScatter, Scatter, ScatterRows, masked_rows


def _shape(node: Node, keep: Sequence[Bools], k: int) -> tuple[int, ...]:
    value = node.values[k]
    assert value is not None
    return kept_shape(keep[k], value.shape)


class View(Movement):
    """view, reshape, expand: the sizes are those of the output."""

    call = "input, *sizes"
    also = MappingProxyType({"shape": "sizes", "size": "sizes", "dtype": "sizes"})
    operands = ("input",)

    def check(self, node: Node) -> None:
        if any(isinstance(s, torch.dtype) for s in node.arguments["sizes"]):
            raise TypeError("a view as another dtype")
        super().check(node)

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        return {"sizes": (_shape(node, keep, 1),)}

    def copies(self, node: Node) -> frozenset[int]:
        value, (out,) = node.operands[0], node.outputs
        if value is None or prod(value.shape) == prod(out.shape):
            return frozenset()
        new = out.ndim - value.ndim
        wide = (a for a, s in enumerate(out.shape) if s > 1 and (a < new or value.shape[a - new] == 1))
        return frozenset(wide) - {0}  # which counts samples: those that it meets are all there


class Flatten(Movement):
    """Neighbouring axes become one."""

    merges = True


class Unflatten(Movement):
    """One axis becomes several: as an argument ``sizes`` or a module attribute ``unflattened_size``."""

    call = "input, dim, sizes"
    operands = ("input",)

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        name = "sizes" if node.module is None else "unflattened_size"
        dim, old, shape = node.arg("dim"), node.arg(name), _shape(node, keep, 1)
        start = dim % len(_shape(node, keep, 0))
        if not all(isinstance(s, int) for s in old):
            return {}
        return {name: shape[start : start + len(old)]}


class Split(Movement):
    """Sections along one axis; one size for all means equal parts."""

    call = "input, sections, dim=0"
    also = MappingProxyType(
        {
            "tensor": "input",
            "split_size_or_sections": "sections",
            "split_size": "sections",
            "split_sizes": "sections",
        }
    )
    operands = ("input",)

    def parts(self, node: Node) -> Mapping[int, tuple[int, int]]:
        value = node.operands[0]
        assert value is not None
        dim, sections = node.arg("dim") % value.ndim, node.arg("sections")
        equal = isinstance(sections, int) and value.shape[dim] % len(node.outputs) == 0
        return {0: (dim, len(node.outputs))} if equal else {}

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        sizes = [_shape(node, keep, k)[node.arg("dim")] for k in range(1, len(keep))]
        return {"sections": sizes[0] if isinstance(node.arg("sections"), int) else sizes}


class Chunk(Movement):
    """Equal parts by their number, which stays."""

    call = "input, chunks, dim=0"
    operands = ("input",)

    def parts(self, node: Node) -> Mapping[int, tuple[int, int]]:
        value = node.operands[0]
        assert value is not None
        dim = node.arg("dim") % value.ndim
        return {0: (dim, len(node.outputs))} if value.shape[dim] % len(node.outputs) == 0 else {}


class SplitAt(Movement):
    """tensor_split and its short forms: a number of parts, or the indices at which the parts begin."""

    call = "input, sections, dim=0"
    also = MappingProxyType({"indices_or_sections": "sections", "indices": "sections"})
    operands = ("input",)
    axis: int | None = None  # of a short form, which has no argument for it

    def parts(self, node: Node) -> Mapping[int, tuple[int, int]]:
        value, dim = node.operands[0], self._dim(node)
        assert value is not None
        equal = isinstance(node.arg("sections"), int) and value.shape[dim] % len(node.outputs) == 0
        return {0: (dim, len(node.outputs))} if equal else {}

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        old = node.arg("sections")
        if not isinstance(old, list | tuple):
            return {}
        ends = accumulate(_shape(node, keep, k)[self._dim(node)] for k in range(1, len(keep) - 1))
        return {"sections": type(old)(ends)}

    def _dim(self, node: Node) -> int:
        value = node.operands[0]
        assert value is not None
        axis: int = node.arg("dim") if self.axis is None else min(self.axis, value.ndim - 1)
        return axis % value.ndim


class SplitAcross(SplitAt):
    """hsplit: along the second axis, or the only one."""

    call = "input, sections"
    axis = 1


class SplitDown(SplitAcross):
    """vsplit: along the first axis."""

    axis = 0


class SplitDeep(SplitAcross):
    """dsplit: along the third axis."""

    axis = 2


class Shuffle(Movement):
    """channel_shuffle: the groups keep equal counts."""

    call = "input, groups"
    operands = ("input",)

    def parts(self, node: Node) -> Mapping[int, tuple[int, int]]:
        return {0: (1, node.arg("groups"))}


class ShapedAs(TiedMovement):
    """view_as, reshape_as: the shape of another tensor, of which nothing else is read."""

    call = "input, other"
    operands = ("input", "other")
    tied = 1


class Filling(Movement):
    """Fills in zeros between what it moves, as many as the smaller tensor asks for."""

    fills = True
    fill_stays = False


class Narrow(Movement):
    call = "input, dim, start, length"
    operands = ("input",)

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        dim, start, length = node.arg("dim"), node.arg("start"), node.arg("length")
        if not isinstance(start, int):
            return {}
        kept = kept_slice(slice(start, start + length), keep[0], dim % keep[0].ndim)
        return {"start": kept.start, "length": kept.stop - kept.start}


class Places(Rule):
    """The places of what is not 0. They are numbers made of data, so what is looked through stays whole."""

    seeks = True

    def check(self, node: Node) -> None:
        raise SignatureError("how many places there are is for the data to say")


class Chosen(Rule):
    """masked_select: entries that a mask chooses, one after the other."""

    def seek(self, args: tuple[Any, ...], found: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Any, ...]:
        return (args[0], found(args[1])) if len(args) == 2 else args

    def check(self, node: Node) -> None:
        raise SignatureError("entries of all channels come one after the other")


class Fold(Rule):
    """The inverse of unfold: the entries of every window are added at their places.

    All entries of a channel's window stay together. How many windows meet at a place differs, so of constants only
    zeros are known to come out.
    """

    call = "input, output_size, kernel_size, *args, **kwargs"
    operands = ("input",)

    def signature(self, node: Node) -> str:
        batch = "n" if node.outputs[0].ndim == 4 else ""
        return f"{batch} (c ~k) ~1 -> {batch} c ~2"

    def uniform(self, node: Node) -> bool:
        return False

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        (array,) = arrays
        if array is None:
            return None
        if array.shape[-2] > 1:  # channels and windows; a constant is the same all along a window
            array = array.reshape(*array.shape[:-2], node.outputs[0].shape[-3], -1)[..., :1]
        return [np.where(array == 0, 0.0, np.nan)[..., None]]


_AS_THEY_ARE = (
    "permute transpose swapaxes swapdims movedim moveaxis t adjoint T mT H mH squeeze unsqueeze "
    "unbind roll flip fliplr flipud rot90 diagonal "
    "pixel_shuffle pixel_unshuffle unfold"
).split()


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    plain = [f for f in variants(*_AS_THEY_ARE, missing_ok=True) if f is not F.unfold]
    return [
        Movement(
            name="move",
            modules=(nn.PixelShuffle, nn.PixelUnshuffle),
            functions=tuple(plain),
            call="input, *args, **kwargs",
            operands=("input",),
        ),
        Flatten(
            name="flatten",
            modules=(nn.Flatten,),
            functions=variants("flatten", "ravel"),
            call="input, *args, **kwargs",
            operands=("input",),
        ),
        Filling(
            name="move with filling",
            modules=(nn.Unfold,),
            functions=(F.unfold, *variants("tril", "triu")),
            call="input, *args, **kwargs",
            operands=("input",),
        ),
        Fold(name="fold", modules=(nn.Fold,), functions=(F.fold,)),
        Repeat(name="repeat", functions=variants("repeat", "tile")),
        RepeatInterleave(name="repeat_interleave", functions=variants("repeat_interleave")),
        View(name="view", functions=variants("view", "reshape", "expand", "broadcast_to")),
        Unflatten(name="unflatten", modules=(nn.Unflatten,), functions=variants("unflatten")),
        Split(name="split", functions=(torch.split, torch.split_with_sizes, torch.Tensor.split_with_sizes)),
        Split(name="Tensor.split", functions=(torch.Tensor.split,)),
        SplitAt(name="tensor_split", functions=variants("tensor_split")),
        SplitAcross(name="hsplit", functions=variants("hsplit")),
        SplitDown(name="vsplit", functions=variants("vsplit")),
        SplitDeep(name="dsplit", functions=variants("dsplit")),
        ShapedAs(name="shaped as", functions=variants("view_as", "reshape_as")),
        Chunk(name="chunk", functions=variants("chunk", "unsafe_chunk")),
        Shuffle(
            name="channel_shuffle",
            modules=(nn.ChannelShuffle,),
            functions=variants("channel_shuffle", "native_channel_shuffle"),
        ),
        Select(name="select", functions=variants("select")),
        Index(name="index", functions=variants("getitem")),
        IndexSelect(name="index_select", functions=variants("index_select")),
        Gather(name="gather", functions=variants("gather")),
        TakeAlong(name="take_along_dim", functions=variants("take_along_dim")),
        SetItem(name="assign", functions=variants("setitem")),
        ScatterRows(name="scatter rows", functions=variants("index_add", "index_copy", "index_reduce")),
        Scatter(
            name="scatter",
            functions=variants("scatter", "scatter_add", "scatter_reduce"),
            call="input, dim, index, src, *args, **kwargs",
            operands=("input", "index", "src"),
        ),
        FillRows(name="index_fill", functions=variants("index_fill")),
        MaskedScatter(name="masked_scatter", functions=variants("masked_scatter")),
        MaskedRows(name="masked rows", functions=(masked_rows,)),
        Narrow(name="narrow", functions=variants("narrow")),
        Places(name="nonzero", functions=variants("nonzero", "argwhere")),
        Chosen(name="masked_select", functions=variants("masked_select")),
        Pattern(),
    ]
