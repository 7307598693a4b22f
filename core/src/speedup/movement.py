"""Rules for pure data movement: view, permute, cat, chunk, roll, pixel_shuffle and the like.

One mechanism serves all: the op itself is run on tensors of coordinates, and from what comes out one reads where each
output entry came from. Facts and keep sets then move along, whatever the op.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from speedup.arrays import Bools, Floats, along, any_of, every, everything, some
from speedup.coordinates import CoordinateRule, without_repeats, writable
from speedup.cutting import cut
from speedup.errors import SignatureError
from speedup.facts import Affine, Fact, Unused, affine, constant
from speedup.groups.labels import Labels
from speedup.groups.tying import by_movement
from speedup.kinds import Kind
from speedup.node import Node, Value, rows_of_one
from speedup.order import Orders, in_order, reordering
from speedup.origin import Origin
from speedup.recall import call_key
from speedup.regular import is_box, regularize, varied
from speedup.rule import says_nothing
from speedup.shell import shell_of

if TYPE_CHECKING:
    from speedup.build import Kept
    from speedup.known import NodeFacts
    from speedup.node_keep import NodeKeep

_MANY = 2**16  # entries of keep sets above which an answer is not remembered


class Movement(CoordinateRule):
    """A rule for ops whose output entries are copies of input entries (or fixed fillers).

    Only the tensors named in ``operands`` move (by default all tensors of the call); others, such as an index, must
    be tensors that the model holds. ``resize`` gives the arguments of the call for smaller operands, where they
    contain sizes. ``fills`` says that the op also puts in entries of its own; unless ``fill_stays`` is False, how many
    of them is written in the code, so that they stay (padding of channels).

    Attributes:
        merges: whether the op joins neighbouring axes whole, whatever their sizes are (``torch.flatten``).
    """

    merges = False

    def sums_to_one(self, node: Node) -> int | None:
        """Where all entries of a row of the operand of ``node`` come out side by side, in whatever order."""
        value = node.operands[0] if len(node.operands) == 1 else None
        axis = rows_of_one(value) if value is not None else None
        if value is None or axis is None:
            return None
        origin = self.origins(node)[0]
        axes = self._target(node, 0, axis)
        if len(axes) != 1 or (origin.source != 0).any():
            return None
        row = np.sort(origin.coordinates[axis], axis=None)
        return axes.pop() if np.array_equal(row, np.arange(value.shape[axis])) else None

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        """Arguments (by their names in ``call``) or module attributes that the smaller call has (override).

        Args:
            node: the call as it was recorded.
            keep: what is kept of the operands, then of the outputs; ``speedup.kept_shape`` gives the new shapes.
        """
        return {}

    def parts(self, node: Node) -> Mapping[int, tuple[int, int]]:
        """Axes that the call ``node`` divides evenly: ``{operand number: (axis, into how many)}`` (override)."""
        return {}

    def copies(self, node: Node) -> frozenset[int]:
        """Axes of the only output along which the call ``node`` repeats its entries, as often as a size in its
        arguments says: fewer copies are as good (override)."""
        return frozenset()

    # -- inference ------------------------------------------------------------------------------------------------

    infer_from_weight = says_nothing

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        operands = range(len(node.operands))
        combined = [facts.affine(k) for k in operands]
        masks = [facts.mask(k) if a is None else a.mask for k, a in enumerate(combined)]
        if not any(map(some, masks)):
            return {}
        values = [facts.value(k) if a is None else a.offset for k, a in enumerate(combined)]
        fills = [o.fill for o in self.origins(node)]
        moved = zip(self.gather(node, masks, True), self.gather(node, values, fills), strict=True)
        found: dict[str, Fact] = {}
        for number, (mask, value) in enumerate(moved):
            fact = self._affine(node, number, combined, mask, value) if any(combined) else constant(mask, value)
            if fact is not None:
                found["output" if len(node.outputs) == 1 else f"output{number}"] = fact
        return found

    def _affine(
        self, node: Node, number: int, combined: Sequence[Affine | None], mask: Bools, value: Floats
    ) -> Fact | None:
        """The moved facts of one output, where the axis that shares unknowns comes out as one axis."""
        terms: list[Floats] = []
        axes: set[int] = set()
        for k, fact in enumerate(combined):
            for term in () if fact is None else fact.terms:
                arrays = [term if j == k else np.zeros((1,) * v.ndim) for j, v in enumerate(node.operands) if v]
                terms.append(self.gather(node, arrays, 0.0)[number])
            if fact is not None:
                axes |= self._target(node, number, fact.axis)
        if len(axes) != 1:
            known = np.logical_and.reduce(np.broadcast_arrays(mask, *(t == 0 for t in terms)))
            return constant(known, value)
        one_hot = all(fact.one_hot for fact in combined if fact is not None)
        return affine(axes.pop(), mask, terms, value, one_hot)

    def _target(self, node: Node, number: int, axis: int) -> set[int]:
        """The axes of an output along which only ``axis`` of the operands varies; none where others vary too."""
        coordinates = self.origins(node)[number].coordinates
        ndim = node.outputs[number].ndim
        along = [{a + ndim - c.ndim for a, s in enumerate(c.shape) if s > 1} for c in coordinates]
        mixed = any(along[axis] & other for d, other in enumerate(along) if d != axis)
        return {-1, -2} if mixed or len(along[axis]) != 1 else along[axis]

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        first = len(node.operands)
        unused = [facts.unused(first + k) for k in range(len(node.outputs))]
        used = self.scatter(node, [~u for u in unused]) if any(map(some, unused)) or _partial(node) else None
        if used is None:
            return {}
        return {name: Unused(~u) for name, u in zip(node.operand_names, used, strict=True) if not every(u)}

    # -- keep sets ------------------------------------------------------------------------------------------------

    def derived(self, node: Node) -> set[int]:
        return set()

    def folds(self, node: Node) -> bool:
        return False

    def multiply_accumulates(self, node: Node, shapes: Sequence[tuple[int, ...] | None]) -> int:
        return 0

    def rigid(self, node: Node, rigid: Sequence[Sequence[bool]]) -> list[list[bool]]:
        copies = self.copies(node)
        if all(map(all, rigid)) and not copies:
            return [[True] * v.ndim for v in node.outputs]
        given = tuple(map(tuple, rigid))
        found = []
        for origin, value in zip(self.origins(node), node.outputs, strict=True):
            if given not in origin.rigid:
                origin.rigid[given] = self._rigid(origin, value.ndim, given)
            flags = origin.rigid[given]
            found.append([f and a not in copies for a, f in enumerate(flags)] if copies else [*flags])
        return found

    def _rigid(self, origin: Origin, ndim: int, rigid: Sequence[Sequence[bool]]) -> list[bool]:
        """As ``rigid``, of one output; wherever its entries are copies is left out."""
        flags = [True] * ndim
        for a, free in enumerate(self._free(origin, rigid)):
            # Beside each other, what one of the operands can lose is lost; side by side, what all can lose.
            flags[a] = not (free and (any(free) if origin.source.shape[a] > 1 else all(free)))
        return flags

    def _free(self, origin: Any, rigid: Sequence[Sequence[bool]]) -> list[list[bool]]:
        """Per axis of an output, whether each operand that differs along it can lose an index there."""
        found: list[list[bool]] = [[] for _ in origin.source.shape]
        mixed = {a for a, size in enumerate(origin.source.shape) if size > 1}
        varies = [{a for a, size in enumerate(c.shape) if size > 1} for c in origin.coordinates]
        for k in range(len(rigid)):
            here = origin.source == k
            if not some(here):
                continue
            differs: list[list[bool]] = [[] for _ in found]
            for axis, fixed in enumerate(rigid[k]):
                c = origin.coordinates[axis]
                for a in varies[axis]:
                    # What varies along other axes than the operands do has all its values in each of them.
                    if not varies[axis] & mixed or (
                        here.all() or (np.where(here, c, -1).max(a) > np.where(here, c, 2**62).min(a)).any()
                    ):
                        differs[a].append(not fixed)
            for own, mine in zip(differs, found, strict=True):
                mine += [any(own)] if own else []
        return found

    def tie(self, node: Node, labels: Labels) -> None:
        by_movement(self, node, labels)

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        n, copies, parts = len(node.operands), self.copies(node), self.parts(node)
        if all(map(all, keep.rigid)):
            for k, own in enumerate(keep.sets):
                keep.grow(k, everything(own.ndim), "moved with a tensor that keeps it", k, Kind.RIGID)
            keep.settled = True
            return
        grown = True
        while grown:
            grown = False
            for k, mask in enumerate(self._with_fill(node, self.gather(node, keep.sets[:n], False)), n):
                for axis in copies:
                    mask = mask & any_of(keep.sets[k], tuple(a for a in range(mask.ndim) if a != axis))
                grown |= keep.grow(k, mask, "moved from a tensor that keeps it", _asker(keep, k, range(n)))
            for k, mask in enumerate(self.scatter(node, keep.sets[n:])):
                grown |= keep.grow(
                    k, mask, "moved to a tensor that keeps it", _asker(keep, k, range(n, len(keep.sets)))
                )
            for k, own in enumerate(keep.sets):
                if (k in parts or (own.size > 1 and own.size not in own.shape)) and not keep.patient:
                    regular = self._regular(node, k, keep.sets[k])
                    grown |= keep.grow(k, regular, "every part keeps the same count", k, Kind.COUNT)
            for k in range(n):
                grown |= self._keep_untaken(node, k, keep)
        keep.settled = True

    def _with_fill(self, node: Node, moved: Sequence[Bools]) -> Sequence[Bools]:
        """What is kept of the outputs, with what the op puts in: all along the axes that it puts it along, beside what
        is kept along the others."""
        if not (self.fills and self.fill_stays):
            return moved
        ones = [np.ones((1,) * v.ndim, dtype=bool) for v in node.operands if v is not None]
        own = [~mask for mask in self.gather(node, ones, False)]
        return [mask | (fill & any_of(mask, tuple(varied(fill)))) for mask, fill in zip(moved, own, strict=True)]

    def _keep_untaken(self, node: Node, k: int, keep: NodeKeep) -> bool:
        """Keep what no call takes of a parameter, where all that this call takes is kept.

        How much is taken of a table of positions, ``table[:x.shape[1]]``, may depend on the size of the input.
        """
        value = node.operands[k]
        if value is None or keep.facts.from_input(k):
            return False
        grown = False
        for axis, taken in _taken(node, value).items():
            kept = keep.sets[k]
            if kept.shape[axis] > 1 and along(kept, axis)[taken].all():
                left = ~taken
                for other, _ in value.uses:
                    left = left & ~_taken(other, value).get(axis, np.ones_like(left))
                left = left.reshape([-1 if a == axis else 1 for a in range(kept.ndim)])
                grown |= keep.grow(k, left & any_of(kept, axis), "an input of another size may take it", k)
        return grown

    def _regular(self, node: Node, k: int, keep: Bools) -> Bools:
        """A set of value ``k`` of the call grown to a regular one; parts of a divided axis keep equal counts."""
        divided = self.parts(node).get(k)
        if divided is None or keep.shape[divided[0]] == 1:
            return regularize(keep)
        axis, count = divided
        shape = keep.shape
        inner = (*shape[:axis], count, shape[axis] // count, *shape[axis + 1 :])
        return regularize(keep.reshape(inner)).reshape(shape)

    def fits(self, node: Node, keep: Sequence[Bools], call: Node | None = None) -> bool:
        found = self.arrange(node, keep, [{}] * len(keep), call)
        return found is not None and not any(found)

    def arrange(
        self, node: Node, keep: Sequence[Bools], orders: Sequence[Orders], call: Node | None = None
    ) -> Sequence[Orders] | None:
        n = len(node.operands)
        if not any(orders[:n]) and all(map(every, keep)):
            return orders
        if all([0 in v.shape for v in node.outputs]):  # nothing comes out, whatever is left
            return [*orders[:n], *({} for _ in node.outputs)]
        changed = self.resize(node, keep) if call is None else {}
        if any(orders[:n]):
            return self._arranged(node, keep, orders, call, changed)
        key = self._key(node, call and call_key(call), *map(_frozen, keep))
        if sum(k.size for k in keep) > _MANY or (call is not None and call_key(call) is None):
            key = None
        return self._known.get(key, lambda: self._in_order(node, keep, orders, call, changed))

    def _in_order(
        self,
        node: Node,
        keep: Sequence[Bools],
        orders: Sequence[Orders],
        call: Node | None,
        changed: Mapping[str, Any],
    ) -> Sequence[Orders] | None:
        """As ``arrange``, where the operands stand as they stood: mostly the outputs do too, which is told faster."""
        n = len(node.operands)
        if self.fills or not all(map(is_box, keep)):
            return self._arranged(node, keep, orders, call, changed)
        lines = [{a: along(k, a) for a in varied(k)} for k in keep]
        shapes = [v.shape for v in node.operands if v is not None]
        for axis in sorted({a for own in lines[:n] for a in own} | {0}):
            tensors, base = self._encoded(shapes, axis)
            try:
                small = [_cut_line(t, axis, own) for t, own in zip(tensors, lines, strict=False)]
                small = [t if t.numel() else t.new_empty(0) for t in small]  # to be joined with tensors of any width
                made = self._run(node, writable(node, small), call, **changed)
            except (RuntimeError, ValueError, IndexError, TypeError, SignatureError):
                return None
            if len(made) != len(node.outputs):
                return None
            for out, own, origin, value in zip(made, lines[n:], self.origins(node), node.outputs, strict=True):
                wanted = np.take(base, origin.source) + origin.coordinates[axis]
                wanted = wanted.reshape((1,) * (value.ndim - wanted.ndim) + wanted.shape)
                for a, line in own.items():
                    wanted = np.compress(line, wanted, axis=a) if wanted.shape[a] > 1 else wanted
                shape = tuple(int(own[a].sum()) if a in own else s for a, s in enumerate(value.shape))
                if out.shape != shape or not (without_repeats(out).numpy() == wanted).all():
                    return self._arranged(node, keep, orders, call, changed)
        return [*orders[:n], *({} for _ in node.outputs)]

    def _arranged(
        self,
        node: Node,
        keep: Sequence[Bools],
        orders: Sequence[Orders],
        call: Node | None,
        changed: Mapping[str, Any],
    ) -> Sequence[Orders] | None:
        n = len(node.operands)
        axes = {a for k in keep[:n] for a, s in enumerate(k.shape) if s > 1} | {a for o in orders[:n] for a in o}
        shapes = [v.shape for v in node.operands if v is not None]
        wanted: list[list[torch.Tensor]] = [[] for _ in node.outputs]
        got: list[list[torch.Tensor]] = [[] for _ in node.outputs]
        for axis in sorted(axes | {0}):
            tensors, _ = self._encoded(shapes, axis)
            whole = [cut(t, k) for t, k in zip(self._run(node, writable(node, tensors)), keep[n:], strict=True)]
            try:
                small = [in_order(cut(t, k).clone(), o) for t, k, o in zip(tensors, keep, orders, strict=False)]
                small = [t if t.numel() else t.new_empty(0) for t in small]
                made = self._run(node, small, call, **changed)
            except (RuntimeError, ValueError, IndexError, TypeError, SignatureError):
                return None
            if len(made) != len(whole):
                return None
            for k, (a, b) in enumerate(zip(whole, made, strict=True)):
                wanted[k].append(a)
                got[k].append(b)
        outputs = [reordering(a, b) for a, b in zip(wanted, got, strict=True)]
        return None if any(o is None for o in outputs) else [*orders[:n], *(o for o in outputs if o is not None)]

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = shell_of(keep.module)
        for attribute, value in self.resize(node, keep.sets).items():
            setattr(module, attribute, value)
        return module


def _frozen(keep: Bools) -> Hashable:
    return keep.shape, keep.tobytes()


def _asker(keep: NodeKeep, k: int, others: range) -> int:
    """The first other operand that keeps anything: the one named as the cause."""
    for j in others:
        own = keep.sets[j]
        if own.size > 1 or own:  # what is written out has grown
            return j
    return k


def _taken(node: Node, value: Value) -> dict[int, Bools]:
    """The indices of a value that a call moves anywhere, for the axes along which it does not take all."""
    rule = node.rule
    if not isinstance(rule, Movement):
        return {}
    known: dict[Value, dict[int, Bools]] | None = node.__dict__.get("_taken")
    if known is None:
        whole = rule.scatter(node, [np.ones((1,) * v.ndim, dtype=bool) for v in node.outputs])
        moved: dict[Value, Bools] = {}
        for operand, mask in zip(node.operands, whole, strict=True):
            assert operand is not None
            moved[operand] = moved[operand] | mask if operand in moved else mask
        lines = {v: {a: along(m, a) for a, s in enumerate(m.shape) if s > 1} for v, m in moved.items()}
        known = {v: {a: line for a, line in own.items() if not line.all()} for v, own in lines.items()}
        node.__dict__["_taken"] = known
    return known.get(value, {})


def _partial(node: Node) -> bool:
    """Whether the outputs may leave entries of the operands out."""
    return sum([prod(v.shape) for v in node.outputs]) < sum([prod(v.shape) for v in node.operands if v is not None])


def _cut_line(tensor: torch.Tensor, axis: int, lines: Mapping[int, Bools]) -> torch.Tensor:
    """What is kept of a tensor that varies along one axis only."""
    shape = [int(lines[a].sum()) if a in lines else s for a, s in enumerate(tensor.shape)]
    line = tensor[tuple(slice(None) if a == axis else slice(0, 1) for a in range(tensor.ndim))]
    if axis in lines:
        line = line.index_select(axis, torch.from_numpy(np.flatnonzero(lines[axis])))
    return line.expand(shape)
