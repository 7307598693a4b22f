"""uᵀ A v, a number that a layer makes of its own tensors alone: the estimate of a singular value.

Entries of A that go are missing from it. v takes that up: v · (uᵀ A v) / (uᵀ (kept A) v) gives the same number whatever
the entries are. So ``torch.nn.utils.spectral_norm`` divides a weight by what it did before, and its columns can go.

Source: Miyato et al., Spectral Normalization for Generative Adversarial Networks (2018),
https://arxiv.org/abs/1802.05957.
"""

from __future__ import annotations

import numpy as np
import torch

from speedup import Node, NodeKeep, Value

_SMALL = 1e-6  # of what a product adds up: what is left of it says nothing about the whole


def inner(node: Node) -> bool:
    """Whether a call is the product A v of such a number."""
    return bool(node.once("form", lambda: _vectors(node) is not None))


def outer(node: Node) -> bool:
    """Whether a call is the product of u with A v."""
    makers = [v.producer for v in node.operands if v is not None and v.producer is not None]
    return any(m.op_name.rpartition(".")[2] == "mv" and inner(m) for m in makers)


def ratio(node: Node, keep: NodeKeep) -> float | None:
    """The number by what is left of it, of the call A v; None where that is not to be told, or nothing is left."""
    vectors = _vectors(node)
    matrix = None if node.operands[0] is None else _contents(node.operands[0])
    if vectors is None or matrix is None:
        return None
    u, v = (each.contents().double() for each in vectors)
    summands = u[:, None] * matrix.double() * v
    kept = torch.from_numpy(np.broadcast_to(keep.sets[0], matrix.shape).copy()).to(matrix.device)
    left = summands * kept
    if not bool(left.sum().abs() > _SMALL * summands.abs().sum()):
        return None
    return float(summands.sum() / left.sum())


def _vectors(node: Node) -> tuple[Value, Value] | None:
    """u and v, which are buffers of this number alone; None where there is another thing computed."""
    if node.op_name.rpartition(".")[2] != "mv" or len(node.operands) != 2 or len(node.outputs[0].uses) != 1:
        return None
    matrix, v = node.operands
    reader, _ = node.outputs[0].uses[0]
    others = [o for o in reader.operands if o is not None and o is not node.outputs[0]]
    if reader.outputs[0].ndim or len(others) != 1 or reader.rule is None or v is None or matrix is None:
        return None
    own = all(o.kind == "buffer" and o.is_known and len(o.uses) == 1 and not o.is_output for o in (others[0], v))
    return (others[0], v) if own and _contents(matrix) is not None else None


def _contents(value: Value) -> torch.Tensor | None:
    """The numbers of a parameter, or of what is moved from one; None for anything else."""
    if value.tensor is not None:
        return value.contents() if value.is_known else None
    node = value.producer
    if node is None or node.rule is None or not node.rule.moves or len(node.tensors) != 1 or node.module is not None:
        return None
    source = _contents(node.tensors[0])
    moved = None if source is None else node.run([source])
    return moved if isinstance(moved, torch.Tensor) else None
