"""Movements of which one operand has the shape of the output, and what an in-place op does to other views of a tensor.

A tensor that was changed in place may share its storage with others: ``x[:, 2:4].zero_()`` changes ``x``. Where one of
them is a block of the other, as views are, what happened is data movement: the block of the old contents, or of the
new ones, is replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from speedup.arrays import Bools
from speedup.facts import Fact, Unused
from speedup.groups.labels import Labels
from speedup.known import NodeFacts
from speedup.movement import Movement
from speedup.node import Node
from speedup.node_keep import NodeKeep
from speedup.order import Orders
from speedup.origin import Origin


class TiedMovement(Movement):
    """One operand has the shape of the output, whatever moves from it."""

    tied = 0

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        # What is written over is not used, though as many entries come out as go in.
        used = self.scatter(node, [~facts.unused(len(node.operands))])
        return {name: Unused(~u) for name, u in zip(node.operand_names, used, strict=True) if not u.all()}

    def rigid(self, node: Node, rigid: Sequence[Sequence[bool]]) -> list[list[bool]]:
        return [list(rigid[self.tied])]

    def tie(self, node: Node, labels: Labels) -> None:
        super().tie(node, labels)
        tied = node.operands[self.tied]
        assert tied is not None
        for a, b in zip(labels.arrays(tied), labels.arrays(node.outputs[0]), strict=False):
            labels.join(a, b)

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        last = len(node.operands)
        super().constrain(node, keep)
        while keep.grow(self.tied, keep.sets[last], "it has the same shape", last) or keep.grow(
            last, keep.sets[self.tied], "it has the same shape", self.tied
        ):
            super().constrain(node, keep)


@dataclass(frozen=True)
class Block:
    """The part of one tensor that another one of the same storage is.

    Attributes:
        ranges: where it is along each axis: first index, end, step. (A slice has no hash before Python 3.12, and calls
            that are made alike are known by theirs, see ``speedup.recall``.)
        order: the axes of the part of more than one index, as the other tensor has them.
        shape: of the other tensor.
    """

    ranges: tuple[tuple[int, int, int], ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, part: torch.Tensor, whole: torch.Tensor) -> Block | None:
        """Where a part of a tensor is; None where it is no block of it."""
        steps = [int(s) for s in whole.stride()]
        if part.dtype != whole.dtype or part.numel() == 0 or min((*part.stride(), *steps), default=1) < 1:
            return None
        left = int(part.storage_offset()) - int(whole.storage_offset())
        axes = sorted((a for a, n in enumerate(whole.shape) if n > 1), key=lambda a: -steps[a])
        start = dict.fromkeys(range(whole.ndim), 0)
        for axis in axes:
            start[axis], left = divmod(left, steps[axis])
        ranges = {a: (s, s + 1, 1) for a, s in start.items()}
        order: list[int] = []
        for size, stride in zip(part.shape, part.stride(), strict=True):
            if size == 1:
                continue
            able = [a for a in axes if a not in order and stride % steps[a] == 0]
            if not able:
                return None
            axis, step = able[0], stride // steps[able[0]]
            ranges[axis] = start[axis], start[axis] + (size - 1) * step + 1, step
            order.append(axis)
        fits = all(ranges[a][0] >= 0 and ranges[a][1] <= n for a, n in enumerate(whole.shape))
        block = cls(tuple(ranges[a] for a in range(whole.ndim)), tuple(order), tuple(part.shape))
        return block if left == 0 and fits else None

    def _of(self, whole: torch.Tensor) -> torch.Tensor:
        """The part, with all axes left."""
        return whole[tuple(slice(*along) for along in self.ranges)]

    def take(self, whole: torch.Tensor) -> torch.Tensor:
        part = self._of(whole)
        rest = [a for a in range(whole.ndim) if a not in self.order]
        return part.permute(*rest, *self.order).reshape(self.shape)

    def put(self, whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        whole = whole.clone()
        target = self._of(whole)
        wide = part.reshape([n for n in self.shape if n > 1])
        back = [self.order.index(a) for a in sorted(self.order)]
        target.copy_(wide.permute(back).reshape(target.shape))
        return whole

    def origin(self, whole: tuple[int, ...]) -> Origin:
        """Where the entries come from of a tensor (operand 0) in which the part (operand 1) was put."""
        rank = len(whole)

        def line(axis: int) -> np.ndarray[Any, np.dtype[np.int64]]:
            return np.arange(whole[axis]).reshape([-1 if a == axis else 1 for a in range(rank)])

        inside = np.ones((1,) * rank, dtype=bool)
        for axis, (start, stop, step) in enumerate(self.ranges):
            if (start, stop, step) != (0, whole[axis], 1):
                at = line(axis)
                inside = inside & (at >= start) & (at < stop) & ((at - start) % step == 0)
        axis_of = dict(zip([a for a, n in enumerate(self.shape) if n > 1], self.order, strict=True))
        none = np.zeros((1,) * rank, dtype=np.int64)
        olds, news = [], []
        for axis in range(max(rank, len(self.shape))):
            its = axis_of.get(axis)
            start, _, step = self.ranges[its] if its is not None else (0, 0, 1)
            olds.append(line(axis) if axis < rank else none)
            news.append(np.clip((line(its) - start) // step, 0, self.shape[axis] - 1) if its is not None else none)
        return Origin(inside.astype(np.int64), (olds, news), np.zeros((1,) * rank))


@dataclass(frozen=True)
class Relaid:
    """All entries of a tensor, which another one of the same memory lays out otherwise: ``x.flatten(2).mT`` of ``x``.

    Attributes:
        order: the axes of the other tensor, as they lie in memory.
        shape: of the tensor, its axes as they lie in memory.
        back: the places of the tensor's axes among these.
    """

    order: tuple[int, ...]
    shape: tuple[int, ...]
    back: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor, other: torch.Tensor) -> Relaid | None:
        """How to lay out the entries of another tensor; None where these are not the same, each once."""
        order, its = _in_memory(tensor), _in_memory(other)
        alike = tensor.dtype == other.dtype and tensor.numel() == other.numel()
        if order is None or its is None or not alike or tensor.storage_offset() != other.storage_offset():
            return None
        return cls(its, tuple(tensor.shape[a] for a in order), tuple(order.index(a) for a in range(tensor.ndim)))

    def take(self, other: torch.Tensor) -> torch.Tensor:
        return other.permute(self.order).reshape(self.shape).permute(self.back)


def _in_memory(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """The axes of a tensor as they lie in memory, the outermost first; None where it has gaps, or entries twice."""
    strides = [int(s) for s in tensor.stride()]
    order = sorted(range(tensor.ndim), key=lambda a: (-strides[a], tensor.shape[a]))
    step = 1
    for axis in reversed(order):
        if tensor.shape[axis] != 1 and strides[axis] != step:
            return None
        step *= tensor.shape[axis]
    return tuple(order)


@dataclass(frozen=True)
class Changed:
    """The new contents of a tensor of which another view was changed in place."""

    old_in_new: Block | Relaid | None
    new_in_old: Block | None

    def __call__(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        if self.old_in_new is not None:
            return self.old_in_new.take(new)
        assert self.new_in_old is not None
        return self.new_in_old.put(old, new)


class InPlaceChange(TiedMovement):
    """The old contents of a tensor, with those of the view that was changed in it.

    No call does that: it follows from the views, which were made by calls of their own.
    """

    def claim_change(self, node: Node, tensor: torch.Tensor, changed: Sequence[torch.Tensor]) -> None:
        """Take a node whose tensors are the old contents and the outputs of the call that changed a view of them."""
        if any(t.layout != torch.strided for t in (tensor, *changed)):
            return
        if any(Block.of(t, changed[0]) is None for t in changed[1:]):
            return
        node.tensors = node.tensors[:2]  # the others are parts of the first
        part = Block.of(tensor, changed[0])
        change = Changed(part or Relaid.of(tensor, changed[0]), Block.of(changed[0], tensor))
        if change.old_in_new is not None or change.new_in_old is not None:
            node.op = change
            self.claim(node)

    def _find_origins(self, node: Node) -> list[Origin]:
        """Where each entry comes from: what a block of a tensor is, its ranges say."""
        block = node.op.new_in_old if node.op.old_in_new is None else None
        if block is None or any(0 in v.shape for v in node.tensors):
            return super()._find_origins(node)
        return [block.origin(node.tensors[0].shape)]

    def arrange(
        self, node: Node, keep: Sequence[Bools], orders: Sequence[Orders], call: Node | None = None
    ) -> Sequence[Orders] | None:
        return None if any(orders) else orders
