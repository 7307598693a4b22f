"""One position, slices, and what is assigned to them: ``x[index]``, and ``x[index] = value``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

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
)
from speedup_plugin_reshape.held import ByHeld, is_held
from speedup_plugin_reshape.lookup import Lookup, is_data
from speedup_plugin_reshape.parts import is_put_back
from speedup_plugin_reshape.scatter import Assign


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
        self.by_buffer = ByHeld(name=f"{self.name} by a buffer")

    def claim(self, node: Node) -> None:
        if is_held(node):
            self.by_buffer.claim(node)
        if node.rule is None:
            self.lookup.claim(node) if is_data(node) else super().claim(node)

    def in_parts(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Callable[..., Any] | None:
        """x[None, index]: x[index], and then the new axes."""
        if len(args) != 2 or not isinstance(args[1], tuple):
            return None
        new = [i for i in args[1] if i is None]
        if not new or len(new) == len(args[1]) or not any(isinstance(i, torch.Tensor) for i in args[1]):
            return None
        widened = _widened(args[1])
        return lambda x, items: x[tuple(i for i in items if i is not None)][widened]

    def seek(self, args: tuple[Any, ...], found: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Any, ...]:
        """Masks in the index choose what is not 0 in them."""
        if len(args) < 2:
            return args
        items = args[1] if isinstance(args[1], tuple) else (args[1],)
        told = tuple([found(i) if isinstance(i, torch.Tensor) and i.dtype == torch.bool else i for i in items])
        return (args[0], told if isinstance(args[1], tuple) else told[0], *args[2:])

    def positions(self, node: Node, value: Value) -> Mapping[int, int]:
        return {axis: item for item, axis in _items(node) if isinstance(item, int) and axis is not None}

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        items = _items(node)
        if not items:
            return {}
        new = [kept_slice(i, keep[0], a) if isinstance(i, slice) and a is not None else i for i, a in items]
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


def _widened(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """The new axes of an index alone, for what the rest of it gives: its tensors give their axes at the first one."""
    tensors = [i for i in items if isinstance(i, torch.Tensor)]
    given = max(1 if t.dtype == torch.bool else t.ndim for t in tensors)
    found: list[Any] = []
    for item in items:
        if item is None or item is Ellipsis:
            found.append(item)
        elif isinstance(item, slice):
            found.append(slice(None))
        elif item is tensors[0]:
            found += [slice(None)] * given
    return tuple(found)


def kept_slice(item: slice, keep: Bools, axis: int) -> slice:
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
