"""speedup rules for everything that only moves entries: views, permutations, slices, splits, shuffles.

The engine runs the op on coordinates to see where each entry goes; a rule says which arguments are sizes that the
smaller call has anew (``resize``) and which axes the call divides evenly (``parts``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
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
    NodeKeep,
    Ref,
    Rule,
    SignatureError,
    TiedMovement,
    Value,
    along,
    hookimpl,
    kept_shape,
    variants,
)
from speedup_plugin_reshape.lookup import Gather, IndexSelect, Lookup, TakeAlong, is_data
from speedup_plugin_reshape.parts import is_put_back
from speedup_plugin_reshape.repeat import Repeat, RepeatInterleave
from speedup_plugin_reshape.scatter import Assign, Scatter, ScatterRows


def _shape(node: Node, keep: Sequence[Bools], k: int) -> tuple[int, ...]:
    value = node.values[k]
    assert value is not None
    return kept_shape(keep[k], value.shape)


class View(Movement):
    """view, reshape, expand: the sizes are those of the output."""

    call = "input, *sizes"
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


class Select(Movement):
    """One position along an axis. The code says which, so what stands before it stays."""

    call = "input, dim, index"
    operands: tuple[str, ...] = ("input",)

    def positions(self, node: Node, value: Value) -> Mapping[int, int]:
        """The position by axis, where the code has a number."""
        index = node.arg("index")
        return {node.arg("dim") % value.ndim: index} if isinstance(index, int) else {}

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        value = node.operands[0]
        assert value is not None
        for axis, position in self.positions(node, value).items():
            if not keep.rigid[0][axis]:
                # Of the lines before it, what is kept of any line.
                before = _before(keep, value, axis, position) & keep.sets[0].any(axis=axis, keepdims=True)
                keep.grow(0, before, "the code of the call holds a position after it", 0)
        super().constrain(node, keep)


def _before(keep: NodeKeep, value: Value, axis: int, position: int) -> Bools:
    """The lines up to a position (from it on, if it counts from the end) of which nothing is needed otherwise."""
    needed = along(~(keep.facts.unused(0) | keep.facts.mask(0)), axis)
    line = np.arange(value.shape[axis])
    counted = line >= value.shape[axis] + position if position < 0 else line <= position
    return (counted & ~needed).reshape([-1 if a == axis else 1 for a in range(value.ndim)])


class Index(Select):
    """x[index], and x[index] = value: slices move with what is kept before them."""

    call = "input, index"

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.lookup = Lookup(name=f"{self.name} of data")

    def claim(self, node: Node) -> None:
        self.lookup.claim(node) if is_data(node) else super().claim(node)

    def positions(self, node: Node, value: Value) -> Mapping[int, int]:
        return {axis: item for item, axis in _items(node) if isinstance(item, int) and axis is not None}

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        items = _items(node)
        if not items:
            return {}
        new = [_kept_slice(i, keep[0], a) if isinstance(i, slice) and a is not None else i for i, a in items]
        return {"index": tuple(new)}


def _items(node: Node) -> list[tuple[Any, int | None]]:
    """The parts of an index with the axis that each is about; empty when some part is no number, slice, None or ..."""
    index = node.arg("index")
    items = index if isinstance(index, tuple) else (index,)
    value = node.operands[0]
    simple = all(i is None or i is Ellipsis or (isinstance(i, int | slice) and not isinstance(i, bool)) for i in items)
    if value is None or not simple:
        return []
    found: list[tuple[Any, int | None]] = []
    axis = 0
    for item in items:
        if item is None or item is Ellipsis:
            found.append((item, None))
        else:
            found.append((item, axis))
            axis += 1
        if item is Ellipsis:
            axis = value.ndim - sum(isinstance(i, int | slice) for i in items[len(found) :])
    return found


def _kept_slice(item: slice, keep: Bools, axis: int) -> slice:
    if keep.shape[axis] == 1 or item.step not in (None, 1):
        return item
    line = along(keep, axis)
    start, stop, _ = item.indices(len(line))
    return slice(int(np.sum(line[:start])), int(np.sum(line[:stop])))


class SetItem(TiedMovement, Index):
    """x[index] = value. With a mask that is computed, entry by entry one or the other."""

    call = "input, index, value"
    operands = ("input", "value")
    fills = True
    fill_stays = False

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.where = Where(name=f"{self.name} where", axes="*, ... -> *")
        self.at_data = Assign(name=f"{self.name} at data")
        self.back = PutBack(name=f"{self.name} back")

    def claim(self, node: Node) -> None:
        if _is_masked(node):
            self.where.claim(node)
        elif is_put_back(node):
            self.back.claim(node)
        elif _is_at_data(node):
            self.at_data.claim(node)
        else:
            Movement.claim(self, node)


def _is_masked(node: Node) -> bool:
    """Whether one number is assigned where a computed mask of the same shape says so."""
    if len(node.args) != 3 or not isinstance(node.args[1], Ref) or len(node.tensors) < 2:
        return False
    x, mask, *more = node.tensors
    one = more[0].ndim == 0 if more else isinstance(node.args[2], int | float)
    return one and mask.dtype == torch.bool and mask.shape == x.shape and mask.tensor is None


def _is_at_data(node: Node) -> bool:
    """Whether a tensor is assigned to at an index of which the model holds not all parts."""
    items = node.args[1] if len(node.args) == 3 else ()
    parts = items if isinstance(items, tuple) else (items,)
    return not all(node.tensors[i.number].is_known for i in parts if isinstance(i, Ref))


class PutBack(Index):
    """What Python does last for ``x[index] += y``: it assigns a part of x, a view that was changed in place, to itself.

    Both tensors count as changed, and come out as they are.
    """

    call = "input, index, value"
    operands = ("input", "value")

    def claim(self, node: Node) -> None:
        Movement.claim(self, node)

    def perform(self, node: Node, tensors: Sequence[torch.Tensor], **changed: Any) -> Any:
        whole, part = tensors
        if whole[changed.get("index", node.args[1])].shape != part.shape:
            raise SignatureError("the part has another size")
        return whole, part


class Where(Rule):
    """x[mask] = value."""

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        x, mask, *more = arrays
        if x is None or mask is None:
            return None
        value = float(node.args[2]) if not more else more[0]
        return None if value is None else [np.where(mask != 0, value, x)]


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
        kept = _kept_slice(slice(start, start + length), keep[0], dim % keep[0].ndim)
        return {"start": kept.start, "length": kept.stop - kept.start}


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
    "flatten ravel permute transpose swapaxes swapdims movedim moveaxis t adjoint T mT H mH squeeze unsqueeze "
    "unbind hsplit vsplit dsplit tensor_split roll flip fliplr flipud rot90 diagonal "
    "pixel_shuffle pixel_unshuffle unfold"
).split()


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    plain = [f for f in variants(*_AS_THEY_ARE, missing_ok=True) if f is not F.unfold]
    return [
        Movement(
            name="move",
            modules=(nn.Flatten, nn.PixelShuffle, nn.PixelUnshuffle),
            functions=tuple(plain),
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
        Narrow(name="narrow", functions=variants("narrow")),
    ]
