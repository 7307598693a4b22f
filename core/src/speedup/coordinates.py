"""Where the entries of an output come from, read off the op itself, run on tensors of coordinates.

`speedup.movement` says what follows from it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch

from speedup.arrays import Bools, Floats, compact_axes, nothing, some
from speedup.errors import SignatureError
from speedup.node import Node, Ref
from speedup.origin import FILLED, Origin, groups_of, with_index, written
from speedup.recall import Recall, call_key
from speedup.rule import Rule
from speedup.tracks import Track

_EXACT = 2**24  # whole numbers up to here are exact in float32


class CoordinateRule(Rule):
    """A rule for ops whose output entries are copies of input entries, or fillers: what it moves, and from where.

    See ``speedup.Movement`` for its fields.
    """

    moves = True
    fills = False
    fill_stays = True

    def __init__(self, **fields: Any) -> None:
        self.fills = fields.pop("fills", type(self).fills)
        self.fill_stays = fields.pop("fill_stays", type(self).fill_stays)
        super().__init__(**fields)
        self._known = Recall()

    # -- what a call is -------------------------------------------------------------------------------------------

    def bind(self, node: Node) -> None:
        if node.module is None and self._parameters is not None:
            node.arguments = self.arguments(node)
        moving = self.moving(node)
        node.__dict__["_moving"] = [r.number for r in moving]
        node.operands = tuple(node.tensors[r.number] for r in moving)
        node.operand_names = tuple(str(i) for i in range(len(moving)))

    def moving(self, node: Node) -> list[Ref]:
        """The tensors of a call, ``node``, that move (override)."""
        if self.operands and node.module is None:
            return [node.arguments[n] for n in self.operands if isinstance(node.arguments.get(n), Ref)]
        return [Ref(i) for i in range(len(node.tensors))]

    def check(self, node: Node) -> None:
        if not node.operands or not node.outputs:
            raise SignatureError("it moves no tensor")
        if not all(v.is_known for v in node.others):
            meta = any(v.tensor is not None for v in node.others)
            why = "is in a tensor without contents (on meta)" if meta else "depends on the input of the model"
            raise SignatureError(f"where entries go {why}")
        if self._known.get(self._key(node, "outputs"), lambda: self._outputs(node)) != len(node.outputs):
            raise SignatureError("it changes other tensors than it returns")

    def _outputs(self, node: Node) -> int:
        """How many tensors the call makes of tensors of the recorded shapes."""
        probe = [torch.zeros(()).expand(v.shape) for v in node.operands if v is not None]
        try:
            return len(self._run(node, writable(node, probe)))
        except (RuntimeError, IndexError) as error:
            raise SignatureError(f"it cannot be run on zeros: {error}") from error

    def _key(self, node: Node, *more: Hashable) -> Hashable | None:
        """What calls have in common that move entries alike; None where that cannot be told."""
        if "_call_key" not in node.__dict__:
            alone = len(node.tensors) == len(node.__dict__["_moving"])
            node.__dict__["_call_key"] = call_key(node) if alone else None
        key = node.__dict__["_call_key"]
        return None if key is None else (key, more)

    def perform(self, node: Node, tensors: Sequence[torch.Tensor], **changed: Any) -> Any:
        """What the call ``node`` gives for other tensors (override where that is not what it returns).

        Args:
            node: the call.
            tensors: in the place of ``node.tensors``. What the call writes into may be written into.
            changed: other arguments, as ``resize`` names them.

        Returns:
            one tensor for each of ``node.outputs``; where there is one, None stands for the first of ``tensors``.
        """
        return node.run(tensors, **changed)

    # -- coordinates ----------------------------------------------------------------------------------------------

    def _run(
        self, node: Node, tensors: Sequence[torch.Tensor], call: Node | None = None, **changed: Any
    ) -> list[torch.Tensor]:
        """Run the call with these tensors for the operands; the outputs."""
        call = node if call is None else call
        given = dict(zip(node.__dict__["_moving"], tensors, strict=True))
        real: list[torch.Tensor] = []
        for number, value in enumerate(call.tensors):
            if number in given:
                real.append(given[number])
            else:
                assert value.tensor is not None
                real.append(value.contents())
        try:
            out = self.perform(call, real, **changed)
        except RuntimeError:
            # A view may ask for a memory layout, which has nothing to do with where entries go.
            real = [t.contiguous() if n in given else t for n, t in enumerate(real)]
            out = self.perform(call, real, **changed)
        if len(node.outputs) == 1 and not isinstance(out, torch.Tensor):
            out = [real[0]] if out is None else out
        return [out] if isinstance(out, torch.Tensor) else list(out or ())

    def moved(self, node: Node, tensors: Sequence[torch.Tensor], keep: Sequence[Bools]) -> list[torch.Tensor] | None:
        """The outputs of a call that is made on smaller tensors; None where it cannot be made.

        Args:
            node: the call as it was recorded.
            tensors: for the operands.
            keep: what is kept of the operands, then of the outputs: it says which sizes the call has to name.
        """
        try:
            return self._run(node, writable(node, list(tensors)), **self.resize(node, keep))
        except (RuntimeError, ValueError, IndexError, TypeError, SignatureError):
            return None

    def _encoded(self, shapes: Sequence[tuple[int, ...]], axis: int) -> tuple[list[torch.Tensor], list[int]]:
        """Per operand a tensor that says which operand and which index along ``axis`` an entry has."""
        tensors: list[torch.Tensor] = []
        base = [1]
        for shape in shapes:
            base.append(base[-1] + (shape[axis] if axis < len(shape) else 1))
        dtype = torch.float32 if base[-1] < _EXACT and not self.fills else torch.float64
        for shape, start, end in zip(shapes, base[:-1], base[1:], strict=True):
            line = torch.arange(start, end, dtype=dtype)
            line = line.reshape([end - start if a == axis else 1 for a in range(len(shape))])
            tensors.append(line.expand(shape))
        return tensors, base

    def origins(self, node: Node) -> list[Origin]:
        """Where every output entry of the call ``node`` comes from (computed once per call)."""
        known: list[Origin] | None = node.__dict__.get("_origins")
        if known is None:
            known = self._known.get(self._key(node, "origins"), lambda: self._find_origins(node))
            node.__dict__["_origins"] = known
        return known

    def _shapes(self, node: Node) -> list[tuple[int, ...]]:
        """The shapes of the operands to find origins with: where nothing comes out (of no boxes, say), those of one
        index instead of none, if the call takes these and gives one too."""
        shapes = [v.shape for v in node.operands if v is not None]
        if all(0 in v.shape for v in node.outputs):
            filled = [with_index(s) for s in shapes]
            with contextlib.suppress(RuntimeError, ValueError, IndexError, TypeError):
                outs = self._run(node, writable(node, [torch.zeros(()).expand(s) for s in filled]))
                if [tuple(t.shape) for t in outs] == [with_index(v.shape) for v in node.outputs]:
                    return filled
        return shapes

    def _find_origins(self, node: Node) -> list[Origin]:
        shapes = self._shapes(node)
        rank = max([1, *(v.ndim for v in node.operands if v is not None)])
        coordinates: list[list[np.ndarray[Any, Any]]] = [[] for _ in node.outputs]
        sources: list[np.ndarray[Any, Any]] = []
        fills: list[Floats] = []
        for axis in range(rank):
            if (axis or len(node.operands) == 1) and not self.fills and _is_flat(shapes, axis):
                for number, value in enumerate(node.outputs):  # there is one index only
                    coordinates[number].append(_zeros(value.ndim))
                    if axis == 0:
                        sources.append(_zeros(value.ndim))
                        fills.append(np.zeros((1,) * value.ndim))
                continue
            tensors, base = self._encoded(shapes, axis)
            outs = [_shrunk(t) for t in self._run(node, writable(node, tensors))]
            other = [_shrunk(t) for t in self._run(node, writable(node, [-t for t in tensors]))] if self.fills else None
            for number, array in enumerate(outs):
                source, index = _decoded(base, array)
                fill: Floats = np.zeros((1,) * array.ndim)
                if other is not None:
                    array, negative = np.broadcast_arrays(array, other[number])
                    filled = array == negative
                    source, index = np.where(filled, FILLED, source), np.where(filled, 0, index)
                    fill = np.where(filled, array, 0.0)
                coordinates[number].append(compact_axes(index.astype(np.int64))[0])
                if axis == 0:
                    sources.append(compact_axes(source)[0])
                    fills.append(fill)
        return [Origin(s, (c,), f) for s, c, f in zip(sources, coordinates, fills, strict=True)]

    def gather(self, node: Node, arrays: Sequence[np.ndarray[Any, Any]], filler: Any) -> list[np.ndarray[Any, Any]]:
        """Move ``arrays`` that broadcast to the operands of ``node`` to its outputs; ``filler`` goes in between."""
        results = []
        for number, origin in enumerate(self.origins(node)):
            if origin.only is not None:
                out = _moved(arrays[origin.only], origin.coordinates)
            elif (joined := self._joined(node, origin, arrays)) is not None:
                out = joined
            else:
                fill = filler[number] if isinstance(filler, list) else filler
                out = np.asarray(fill, dtype=arrays[0].dtype)
                for source, array in enumerate(arrays):
                    here = origin.source == source
                    moved = _moved(array, origin.of(source), None if origin.is_apart else here)
                    out = np.where(here, moved, out)
            results.append(out.reshape((1,) * (node.outputs[number].ndim - out.ndim) + out.shape))
        return results

    def _joined(
        self, node: Node, origin: Origin, arrays: Sequence[np.ndarray[Any, Any]]
    ) -> np.ndarray[Any, Any] | None:
        """As ``gather``, of what varies along the one axis along which operands are joined; None where it is not so."""
        axis = origin.joined
        if axis is None:
            return None
        out = np.empty(origin.source.size, arrays[0].dtype)
        for track, array in zip(origin.tracks_along(axis, node.operands), arrays, strict=True):
            if track is None or array.dtype != out.dtype:
                return None
            if array.size > 1 and array.size != array.shape[track.axis]:
                return None
            line = array.reshape(-1)
            out[track.at] = line if track.index is None or line.size == 1 else line[track.index]
        return out.reshape(origin.source.shape)

    def scatter(self, node: Node, arrays: Sequence[Bools]) -> list[Bools]:
        """Move bool ``arrays`` that broadcast to the outputs of ``node`` to its operands: true where any copy is."""
        results = [nothing(v.ndim) for v in node.operands if v is not None]
        for origin, array in zip(self.origins(node), arrays, strict=True):
            line, tracks = self._line(node, origin, array)
            for number in range(len(node.operands)) if origin.only is None else (origin.only,):
                value = node.operands[number]
                assert value is not None
                track = tracks[number] if tracks else None
                if track is not None:
                    if some(line[track.at]):
                        back = track.back(line)
                        results[number] = back if results[number] is nothing(value.ndim) else results[number] | back
                    continue
                chosen = array if origin.only is not None else (origin.source == number) & array
                if chosen.any():
                    back = _scattered(chosen, origin, number, with_index(value.shape))
                    results[number] = back if results[number] is nothing(value.ndim) else results[number] | back
        return results

    def _line(self, node: Node, origin: Origin, array: Bools) -> tuple[Bools, Sequence[Track | None]]:
        """What varies along one axis of an output, by itself, and where that comes from; no tracks where it is not so.

        What varies along none does so along the axis that says which operand an entry is of.
        """
        size, shape = array.size, array.shape
        if size > 1 and size in shape:
            return array.reshape(-1), origin.tracks_along(shape.index(size), node.operands)
        if size == 1 and (axis := origin.joined) is not None:
            return np.full(origin.source.size, array.item()), origin.tracks_along(axis, node.operands)
        return array, ()


def _moved(
    array: np.ndarray[Any, Any], coordinates: Sequence[np.ndarray[Any, Any]], here: Bools | None = None
) -> np.ndarray[Any, Any]:
    """The entries at these coordinates of an array that broadcasts to an operand; what is not ``here`` may be any."""
    if not array.size:
        array = np.zeros(with_index(array.shape), array.dtype)
    at: list[Any] = [0] * array.ndim
    for axis in [a for a, size in enumerate(array.shape) if size > 1]:
        at[axis] = coordinates[axis] if here is None else np.where(here, coordinates[axis], 0)
    return np.asarray(array[tuple(at)]) if at else array


def _scattered(chosen: Bools, origin: Origin, number: int, shape: tuple[int, ...]) -> Bools:
    """True at the coordinates of every chosen entry of an output; a broadcasting array for a tensor of this shape.

    Coordinates that vary along other axes of the output than the rest, and than what is chosen, take all their values
    whatever the others are: each such group is written out by itself.
    """
    varies = tuple([s > 1 for s in chosen.shape])
    coordinates = origin.of(number)
    key = varies, shape, number if origin.is_apart else None
    known = origin.groups.get(key)
    if known is None:
        known = origin.groups[key] = groups_of(varies, coordinates, shape)
    axes, back = known
    if axes:
        part = written(chosen, axes, coordinates, shape)
        back = back if part.all() else back & part
    return back


def writable(node: Node, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Copies where the call writes into a tensor."""
    if node.writes:
        return [t.clone() for t in tensors]
    return tensors


def without_repeats(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with every expanded axis reduced to size 1."""
    for axis in range(tensor.ndim):
        if tensor.shape[axis] > 1 and tensor.stride(axis) == 0:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _shrunk(tensor: torch.Tensor) -> Floats:
    """A coordinate tensor with every axis along which it does not vary reduced to size 1."""
    array: Floats = without_repeats(tensor).numpy()
    return compact_axes(array)[0]


def _is_flat(shapes: Sequence[tuple[int, ...]], axis: int) -> bool:
    """Whether no operand has more than one index along an axis."""
    return all(axis >= len(s) or s[axis] == 1 for s in shapes)


def _zeros(ndim: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.zeros((1,) * ndim, dtype=np.int64)


def _decoded(base: Sequence[int], array: Floats) -> tuple[np.ndarray[Any, Any], Floats]:
    """Which operand encoded entries are of, and their indices there.

    Args:
        base: where the numbers of each operand begin, and where they end; there are few, and many entries.
    """
    index: Floats = array - array.dtype.type(base[0])
    source = _zeros(array.ndim)
    for before, first in itertools.pairwise(base[:-1]):
        later = array >= first
        np.subtract(index, index.dtype.type(first - before), out=index, where=later)
        source = source + later
    return source, index
