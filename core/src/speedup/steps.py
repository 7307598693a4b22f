"""The check of an ill-conditioned model, step by step: rounding that grows from call to call hides no mistake in it.

Every call of the small model is given what the masked one's call was given, but for what was cut. What it gives is then
as exact as one call is, however chaotic the model: where it differs, that very call is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from speedup.bias import is_shifted
from speedup.decisions import Decisions, out_of_reach, place_of
from speedup.graph import Graph
from speedup.keep import KeepSets
from speedup.masking import memory_of
from speedup.node import Node
from speedup.rounding import step_tolerance


class Steps(Decisions):
    """Watches a run of the small model, and makes each call that is right give the numbers of the masked run.

    A call is right if it differs by the rounding of one call, which is far less than that of a whole model.

    Attributes:
        problem: the first call that is wrong, for messages; '' while none is.
    """

    def __init__(self, graph: Graph, keeps: KeepSets, wanted: Sequence[list[torch.Tensor]]) -> None:
        super().__init__(graph, keeps, wanted)
        self.got = None
        self.problem = ""

    def __call__(
        self, number: int, op_name: str, tensors: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """What the call is to give."""
        given = super().__call__(number, op_name, tensors, outputs)
        node = self.node(number, op_name, tensors, outputs)
        # What parameters alone make may differ: constants are folded into them.
        if node is None or not self.graph.from_input.issuperset(node.outputs):
            return given
        for value, tensor in zip(node.outputs, given, strict=True):
            worst = self.wrong(value, tensor)
            if worst:
                self.problem = self.problem or f"first at {place_of(node)}: {worst}{out_of_reach(node)}"
                return given
        return given if is_shifted(node) else self._reset(node, tensors, given)

    def allowed(self, tensor: torch.Tensor) -> float:
        """See ``Decisions``."""
        return step_tolerance(tensor.dtype, self.graph.coarsest)

    def _reset(self, node: Node, tensors: Sequence[torch.Tensor], given: list[torch.Tensor]) -> list[torch.Tensor]:
        """The numbers of the masked run, but for views: those stay what they are of the tensors that they show."""
        read = {memory_of(t) for t in tensors}
        return [
            t if memory_of(t) in read else torch.empty_like(t).copy_(self.expected(v))
            for v, t in zip(node.outputs, given, strict=True)
        ]
