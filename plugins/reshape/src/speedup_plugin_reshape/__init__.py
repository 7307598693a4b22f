"""speedup rules for everything that only moves entries: views, permutations, slices, splits, shuffles.

The engine runs the op on coordinates to see where each entry goes; a rule says which arguments are sizes that the
smaller call has anew (``resize``) and which axes the call divides evenly (``parts``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speedup import Bools, Movement, Node, Rule, along, hookimpl, kept_shape, variants


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


class Index(Movement):
    """x[index], and x[index] = value: slices move with what is kept before them."""

    call = "input, index"
    operands: tuple[str, ...] = ("input",)

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        index = node.arg("index")
        items = index if isinstance(index, tuple) else (index,)
        rank = node.operands[0].ndim if node.operands[0] is not None else 0
        if not all(isinstance(i, int | slice) or i is None or i is Ellipsis for i in items):
            return {}
        new: list[Any] = []
        axis = 0
        for item in items:
            if isinstance(item, slice):
                new.append(_kept_slice(item, keep[0], axis))
            else:
                new.append(item)
            if item is Ellipsis:
                axis = rank - sum(isinstance(i, int | slice) for i in items[len(new) :])
            elif item is not None:
                axis += 1
        return {"index": tuple(new)}


def _kept_slice(item: slice, keep: Bools, axis: int) -> slice:
    if keep.shape[axis] == 1 or item.step not in (None, 1):
        return item
    line = along(keep, axis)
    start, stop, _ = item.indices(len(line))
    return slice(int(np.sum(line[:start])), int(np.sum(line[:stop])))


class SetItem(Index):
    call = "input, index, value"
    operands = ("input", "value")
    fills = True


class Narrow(Movement):
    call = "input, dim, start, length"
    operands = ("input",)

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        dim, start, length = node.arg("dim"), node.arg("start"), node.arg("length")
        if not isinstance(start, int):
            return {}
        kept = _kept_slice(slice(start, start + length), keep[0], dim % keep[0].ndim)
        return {"start": kept.start, "length": kept.stop - kept.start}


_AS_THEY_ARE = (
    "flatten ravel permute transpose swapaxes swapdims movedim moveaxis t adjoint T mT H mH squeeze unsqueeze "
    "repeat tile repeat_interleave unbind select hsplit vsplit tensor_split roll flip fliplr flipud rot90 "
    "diagonal pixel_shuffle pixel_unshuffle index_select take_along_dim gather unfold"
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
        Movement(
            name="move with filling",
            modules=(nn.Unfold,),
            functions=(F.unfold, *variants("tril", "triu")),
            call="input, *args, **kwargs",
            operands=("input",),
            fills=True,
        ),
        View(name="view", functions=variants("view", "reshape", "expand", "broadcast_to")),
        Unflatten(name="unflatten", modules=(nn.Unflatten,), functions=variants("unflatten")),
        Split(name="split", functions=(torch.split, torch.split_with_sizes, torch.Tensor.split_with_sizes)),
        Split(name="Tensor.split", functions=(torch.Tensor.split,)),
        Chunk(name="chunk", functions=variants("chunk")),
        Shuffle(name="channel_shuffle", modules=(nn.ChannelShuffle,), functions=variants("channel_shuffle")),
        Index(name="index", functions=variants("getitem")),
        SetItem(name="assign", functions=variants("setitem")),
        Narrow(name="narrow", functions=variants("narrow")),
    ]
