"""speedup rules for activations: entry by entry, with slopes (PReLU), gated (GLU), over an axis (softmax); dropout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speedup import Constant, Fact, Floats, Kept, Node, NodeFacts, Rule, Unused, Value, hookimpl, rows_of_one, variants

_MODULES = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid,
    nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh,
    nn.Tanhshrink, nn.Threshold,
)  # fmt: skip
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_TORCH_DROPOUT = (
    torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout,
    torch.dropout_, torch.alpha_dropout_, torch.feature_dropout_, torch.feature_alpha_dropout_,
)  # fmt: skip
_FUNCTIONS = (
    "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu relu6 selu silu "
    "sigmoid expit softplus softshrink softsign tanhshrink threshold"
).split()


class OverAxis(Rule):
    """Entries along one axis are normalised together (softmax): that axis stays whole."""

    counts = True  # of n equal entries each becomes 1 / n

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        return across(value.ndim, _dim(node, value), "~x", "~x")

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        """Of parameters alone (the weights of a sum of branches) every entry is known."""
        value, (array,) = node.operands[0], arrays
        if value is None or array is None or not value.ndim or array.shape[_dim(node, value)] == 1:
            return super().evaluate(node, arrays)
        return [node.run([torch.from_numpy(array.copy())]).double().numpy()]

    def sums_to_one(self, node: Node) -> int | None:
        value = node.operands[0]
        return None if value is None or not value.ndim or "log" in node.op_name.lower() else _dim(node, value)


def _dim(node: Node, value: Value) -> int:
    dim: int | None = node.arg("dim")
    if dim is None:  # torch's implicit choice
        dim = 0 if value.ndim in (0, 1, 3) else 1
    return dim


class Glu(Rule):
    """out[a] = x[a] * sigmoid(x[half + a]): both halves keep the same positions, and a gate goes with its value."""

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        return across(value.ndim, node.arg("dim", -1), "(~half x)", "x")

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """Constant are a value of 0, and two constants."""
        (known, gate_known), (value, gate) = self._halves(node, facts.mask(0)), self._halves(node, facts.value(0))
        zero = known & (value == 0)
        mask = zero | (known & gate_known)
        if not mask.any():
            return {}
        with np.errstate(over="ignore"):
            result = np.where(zero | ~mask, 0.0, value / (1 + np.exp(-gate)))
        return {"output": Constant(mask, np.broadcast_to(result, mask.shape))}

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """The gate of a value of 0 is not read."""
        value, _ = self._halves(node, facts.zero(0))
        unused = facts.unused(1)
        shape = list(np.broadcast_shapes(value.shape, unused.shape))
        shape[node.arg("dim", -1)] = node.outputs[0].shape[node.arg("dim", -1)]
        halves = [np.broadcast_to(half, shape) for half in (unused, unused | value)]
        mask = np.concatenate(halves, axis=node.arg("dim", -1))
        return {"input": Unused(mask)} if mask.any() else {}

    @staticmethod
    def _halves(node: Node, fact: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        axis = node.arg("dim", -1)
        return [fact, fact] if fact.shape[axis] == 1 else np.split(fact, 2, axis)


class Prelu(Rule):
    """One slope for all, or one per channel (the second axis)."""

    call = "input, weight"
    operands = ("input", "weight")
    scales = True
    makes = (nn.Identity,)

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        return "*, 1 -> *" if value.ndim < 2 else "n c *, c -> n c *"

    def scaling(self, node: Node) -> bool:
        slopes = node.operands[1]
        return slopes is not None and slopes.tensor is not None and bool((slopes.tensor == 1).all())

    def omit(self, node: Node) -> nn.Module:
        return nn.Identity()

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = super().replace(node, keep)
        if "weight" in keep.tensors:
            setattr(module, "num_parameters", keep.tensors["weight"].numel())  # noqa: B010
        return module


class Unchanged(Rule):
    """What comes in goes out."""

    axes = "* -> *"
    averages = True
    scales = True

    def sums_to_one(self, node: Node) -> int | None:
        value = node.operands[0]
        return None if value is None else rows_of_one(value)


class Dropout(Unchanged):
    """Nothing in eval mode; a function told to drop all the same is random, and no rule holds."""

    makes = (nn.Identity,)

    def omit(self, node: Node) -> nn.Module | None:
        return nn.Identity()

    def signature(self, node: Node) -> str:
        if node.module is None and (node.arg("training", False) or node.arg("train", False)):
            raise TypeError("it drops at random in eval mode")
        return self.axes


class Random(Dropout):
    """As dropout, but what comes out in eval mode is not what came in."""

    averages = False
    scales = False

    def sums_to_one(self, node: Node) -> int | None:
        return None


def across(ndim: int, dim: int, before: str, after: str) -> str:
    """A signature that maps every axis but ``dim``."""
    names = [f"a{i}" for i in range(ndim)]
    left, right = list(names), list(names)
    if ndim:
        left[dim], right[dim] = before, after
    return f"{' '.join(left)} -> {' '.join(right)}"


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    softmax = (nn.Softmax, nn.LogSoftmax, nn.Softmin)
    dropout = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
    return [
        Rule(
            name="activation",
            modules=_MODULES,
            functions=variants(*_FUNCTIONS),
            call="input, *args, **kwargs",
            operands=("input",),
            axes="* -> *",
        ),
        Unchanged(name="identity", modules=(nn.Identity,), operands=("input",)),
        Dropout(
            name="dropout",
            modules=_DROPOUT,
            functions=dropout,
            call="input, p=0.5, training=True, inplace=False",
            operands=("input",),
        ),
        Dropout(
            name="torch.dropout",
            functions=_TORCH_DROPOUT,
            call="input, p, train",
            operands=("input",),
        ),
        Random(
            name="rrelu",
            modules=(nn.RReLU,),
            functions=variants("rrelu"),
            call="input, lower=1/8, upper=1/3, training=False, *args, **kwargs",
            operands=("input",),
        ),
        OverAxis(name="softmax2d", modules=(nn.Softmax2d,), operands=("input",)),
        OverAxis(
            name="softmax",
            modules=softmax,
            functions=variants("softmax", "log_softmax", "softmin", missing_ok=True),
            call="input, dim=None, *args, **kwargs",
            operands=("input",),
        ),
        Glu(name="glu", modules=(nn.GLU,), functions=variants("glu"), call="input, dim=-1", operands=("input",)),
        Prelu(name="prelu", modules=(nn.PReLU,), functions=variants("prelu")),
    ]
