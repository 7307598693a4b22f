"""speedup rules for reductions over any axes, and for ops that run along an axis.

Where removing zeros changes nothing (sum, norm), the reduced axes are contracted; elsewhere (mean) they stay whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from speedup import Floats, Node, Rule, hookimpl, variants


class Reduction(Rule):
    """Reduces the axes in ``dim`` (all of them when it is not given)."""

    call = "input, dim=None, keepdim=False, *, axis=None, keepdims=None, dtype=None, out=None, correction=None"
    operands = ("input",)

    def neutral(self, node: Node) -> bool:
        """Whether entries that are 0 may be left out."""
        return False

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        reduced = _axes(node.arg("dim", node.arg("axis")), node.arg("axis"), value.ndim)
        keep = node.arg("keepdim") or node.arg("keepdims")
        gone = "x" if self.neutral(node) else "~x"
        inner = " ".join(f"{gone}{i}" if i in reduced else f"a{i}" for i in range(value.ndim))
        outer = " ".join(("1" if keep else "") if i in reduced else f"a{i}" for i in range(value.ndim))
        return f"{inner} -> {', '.join([outer] * len(node.outputs))}"


class Choice(Reduction):
    """The result is one of the entries (max, median) or their mean: among equal ones it is what they are.

    A second output that says where it was found is no constant: which of equal entries is taken depends on how many
    there are. ``torch.max(x, y)`` is something else, the larger of two entries.
    """

    indexed = True

    def __init__(self, **fields: object) -> None:
        super().__init__(**fields)
        self.of_two = Rule(name=f"{self.name} of two", axes="*, * -> *")

    def claim(self, node: Node) -> None:
        (self.of_two if len(node.tensors) == 2 else super()).claim(node)

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        (array,) = arrays
        if array is None:
            return None
        # The engine hands over one entry for all the reduced ones.
        found = [array.reshape(_fitting(array.shape, node.outputs[0].shape, node.layout.operands[0]))]
        unknown = np.full(found[0].shape, np.nan)
        return found + [unknown if self.indexed else found[0]] * (len(node.outputs) - 1)


class Ranked(Choice):
    """kthvalue, topk, quantile: the second argument says which entries."""

    call = "input, rank, dim=-1, keepdim=False, *args, **kwargs"

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        reduced = _axes(node.arg("dim"), None, value.ndim)
        inner = " ".join(f"~x{i}" if i in reduced else f"a{i}" for i in range(value.ndim))
        stays = node.outputs[0].ndim == value.ndim
        outer = " ".join(("~x" + str(i) if stays else "") if i in reduced else f"a{i}" for i in range(value.ndim))
        return f"{inner} -> {', '.join([outer] * len(node.outputs))}"
