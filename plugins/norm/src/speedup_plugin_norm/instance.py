"""Instance norm: every channel on its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speedup import Floats, Node, Rule


class InstanceNorm(Rule):
    """Every channel on its own, over all positions; with running statistics, as a batch norm."""

    name = "instance_norm"
    operands = ("input", "running_mean", "running_var", "weight", "bias")
    call = (
        "input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, "
        "eps=1e-5, cudnn_enabled=True"
    )
    sizes = {"num_features": "c"}  # noqa: RUF012
    annihilates = {"weight": ("input", "running_mean", "running_var")}  # noqa: RUF012

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        dims = value.ndim - 2
        if node.module is not None:
            dims = int(type(node.module).__mro__[0].__name__[-2]) if type(node.module).__name__[-1] == "d" else dims
        batch = "n" if value.ndim == dims + 2 else ""
        return f"{batch} c ~{dims}, c?, c?, c?, c? -> {batch} c ~{dims}"

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        """A constant channel is its own mean: only the bias comes out."""
        if node.arg("use_input_stats", True) if node.module is None else not node.module.track_running_stats:
            bias = arrays[4]
            ndim = node.outputs[0].ndim
            dims = len(node.layout.mixed) // 2
            if arrays[0] is None or max(arrays[0].shape[ndim - dims :], default=1) > 1:
                return None  # a parameter, which is not the same at all positions
            if bias is None:
                return [np.zeros((1,) * ndim)]
            return [bias.reshape(-1, *(1,) * dims).reshape((1,) * (ndim - dims - 1) + (-1,) + (1,) * dims)]
        return super().evaluate(node, arrays)
