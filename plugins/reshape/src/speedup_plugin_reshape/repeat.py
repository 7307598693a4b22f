"""Copies of a tensor side by side. Of one channel that is repeated there are as many copies as are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from speedup import Bools, Movement, Node, kept_shape


class Repeat(Movement):
    """repeat, tile: how often along each axis of the output (of ``tile``, its last ones)."""

    call = "input, *counts, **named"
    operands = ("input",)

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        counts, copies = list(_counts(node)), self.copies(node)
        if not copies:
            return {}
        (out,) = node.outputs
        shape = kept_shape(keep[1], out.shape)
        first = out.ndim - len(counts)
        return {"counts": (tuple(shape[a + first] if a + first in copies else n for a, n in enumerate(counts)),)}

    def copies(self, node: Node) -> frozenset[int]:
        value, (out,) = node.operands[0], node.outputs
        if value is None or not _counts(node):
            return frozenset()
        before = (1,) * (out.ndim - value.ndim) + tuple(value.shape)
        # The first axis counts samples: those that it meets are all there.
        return frozenset(a for a, size in enumerate(out.shape) if a and before[a] == 1 and size > 1)


def _counts(node: Node) -> tuple[int, ...]:
    """The numbers of the call; none where they have a name."""
    counts = node.arguments["counts"]
    if len(counts) == 1 and isinstance(counts[0], tuple | list):
        (counts,) = counts
    return tuple(counts) if all(isinstance(n, int) for n in counts) else ()


class RepeatInterleave(Movement):
    """repeat_interleave: every entry as often along one axis, or each as often as the model says."""

    call = "input, repeats, dim=None, **named"
    operands = ("input",)

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        shape = kept_shape(keep[1], node.outputs[0].shape)
        copies = [shape[axis] for axis in self.copies(node)]
        return {"repeats": copies[0]} if copies else {}

    def copies(self, node: Node) -> frozenset[int]:
        value, (out,), dim = node.operands[0], node.outputs, node.arg("dim")
        if value is None or not isinstance(dim, int) or not isinstance(node.arg("repeats"), int):
            return frozenset()
        axis = dim % value.ndim
        return frozenset({axis} if axis and value.shape[axis] == 1 and out.shape[axis] > 1 else ())
