"""Global response normalisation (ConvNeXt V2), recognised by what it computes.

out[c] = x[c] + weight[c] * x[c] * G[c] / (mean of G over all channels + eps) + bias[c], where G[c] is the Euclidean
norm of channel c over all positions. A channel that is 0 adds nothing to the sum behind the mean; the module that takes
the layer's place goes on dividing by the number of channels that there were.

Source: Woo et al., ConvNeXt V2 (2023), https://arxiv.org/abs/2301.00808, section 3.2.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import nn

from speedup import Kept, Node
from speedup_plugin_norm.compensated import Compensated, compensate
from speedup_plugin_norm.zeros import ZerosGo

_EPS = 1e-6  # where a module has it in its code, and not in an attribute


class ResponseNormForward(Compensated):
    """Over all positions of an image, channels along ``stat_axis``; ``total`` counts those that were removed too."""

    stat_axis: int
    total: int
    weight: torch.Tensor
    bias: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return respond(x, self.weight, self.bias, self.stat_axis, self.stat_eps, self.total)


def respond(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, axis: int, eps: float, total: int
) -> torch.Tensor:
    """What the layer computes where ``total`` channels count."""
    shape = [1, 1, 1, -1] if axis == -1 else [1, -1, 1, 1]
    norms = torch.linalg.vector_norm(x, dim=(1, 2) if axis == -1 else (2, 3), keepdim=True)
    response = norms / (norms.sum(axis, keepdim=True) / total + eps)
    result: torch.Tensor = x + weight.reshape(shape) * (x * response) + bias.reshape(shape)
    return result


_known: WeakKeyDictionary[nn.Module, tuple[int, float] | None] = WeakKeyDictionary()


def response_of(module: nn.Module) -> tuple[int, float] | None:
    """The axis of the channels and the eps of a module that computes this; None for any other."""
    own = module._parameters
    if set(own) != {"weight", "bias"} or module._modules or module._buffers or isinstance(module, Compensated):
        return None
    if any(p is None or not p.is_floating_point() or p.numel() != max(p.shape, default=0) for p in own.values()):
        return None
    if module not in _known:
        _known[module] = _recognise(module)
    return _known[module]


def _recognise(module: nn.Module) -> tuple[int, float] | None:
    weight, bias = module.weight, module.bias
    assert isinstance(weight, nn.Parameter) and isinstance(bias, nn.Parameter)
    width = weight.numel()
    # Its own numbers do not matter; on the meta device it has none.
    like = torch.empty(0, dtype=weight.dtype) if weight.is_meta else weight
    numbers = torch.Generator().manual_seed(0)
    epsilons = dict.fromkeys([*(v for v in vars(module).values() if isinstance(v, float) and 0 < v < 1), _EPS])
    for axis, shape in ((-1, (2, 3, 2, width)), (1, (2, width, 3, 2))):
        if width in (2, 3):
            continue  # the axes could not be told apart
        for eps in epsilons:
            # As small as eps, so that eps matters, and of ordinary size.
            probes = [(torch.randn(shape, generator=numbers) * size).to(like) for size in (eps, 1.0)]
            if all(_computes(module, x, axis, eps) for x in probes):
                return axis, eps
    return None


def _computes(module: nn.Module, x: torch.Tensor, axis: int, eps: float) -> bool:
    # Parameters of their own: those of a new layer are 0, which would tell nothing.
    numbers = torch.Generator().manual_seed(1)
    own = {n: torch.randn(p.shape, generator=numbers).to(x) for n, p in module._parameters.items() if p is not None}
    own["bias"] = own["bias"] * x.abs().amax()
    try:
        got = torch.func.functional_call(module, own, (x.clone(),))
    except Exception:
        return False
    wanted = respond(x, own["weight"], own["bias"], axis, eps, own["weight"].numel())
    if not isinstance(got, torch.Tensor) or got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    return torch.allclose(got, wanted, rtol=1e-2 if x.dtype.itemsize == 2 else 1e-4, atol=1e-4 * float(x.abs().amax()))


class ResponseNorm(ZerosGo):
    """Channels that are 0 can go; all others are counted with each other."""

    name = "global_response_norm"
    makes = (ResponseNormForward,)
    operands = ("input", "weight", "bias")
    counts_it = "the mean over channels counts it"

    def may_claim(self, kind: type[nn.Module], held: frozenset[str]) -> bool:
        return held == {"weight", "bias"}

    def claims(self, module: nn.Module) -> bool:
        return response_of(module) is not None

    def signature(self, node: Node) -> str:
        if self._form(node)[0] == 1:
            return "n c ~2, c, c -> n c ~2"
        weight = node.operand("weight")
        one = "1 1 1 c" if weight is not None and weight.ndim == 4 else "c"
        return f"n ~2 c, {one}, {one} -> n ~2 c"

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        module = super().replace(node, keep)
        axis, eps = self._form(node)
        total = node.layout.sizes["c"]
        if keep.size("c") == total:
            return module
        return compensate(module, ResponseNormForward, stat_axis=axis, stat_eps=eps, total=total)

    def _form(self, node: Node) -> tuple[int, float]:
        known = response_of(node.module) if node.module is not None else None
        assert known is not None
        return known
