"""The experts of a mixture as one module, recognised by what it computes (Mixtral, Qwen, DeepSeek in transformers).

out[t] = sum over k of weights[t, k] · down[e] (act(gate[e] x[t]) · (up[e] x[t])), where e = indices[t, k], and gate and
up are the two halves of one parameter. Which experts are chosen is data. All of them lose equal numbers of inner units,
each at positions of its own; the stream that comes in goes out, so both keep the same.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from speedup import Bools, Constant, Fact, Node, NodeFacts, NodeKeep, Rule, unused_operands

_STREAM, _GATE_UP, _DOWN, _OUT = 0, 3, 4, 5
_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def are_experts(module: nn.Module) -> bool:
    """Whether a module computes this."""
    own = module._parameters
    if set(own) != {"gate_up_proj", "down_proj"} or any(p is None or p.ndim != 3 for p in own.values()):
        return False
    if list(module.buffers()) or set(module._modules) != {"act_fn"} or list(module.act_fn.parameters()):  # type: ignore[union-attr]
        return False
    if module not in _known:
        _known[module] = _agrees(module)
    return _known[module]


def _agrees(module: Any) -> bool:
    """Whether a smaller copy of it, with random numbers, gives what the formula gives."""
    experts, hidden, inner = len(module.gate_up_proj), 5, 3
    small = copy.copy(module)
    generator = torch.Generator().manual_seed(0)
    dtype = module.gate_up_proj.dtype
    shapes = {"gate_up_proj": (experts, 2 * inner, hidden), "down_proj": (experts, hidden, inner)}
    if any(module._parameters[n].shape[1:] != s for n, s in _shapes(module).items()):
        return False
    new = {n: nn.Parameter(torch.randn(s, generator=generator).to(dtype), False) for n, s in shapes.items()}
    small.__dict__ = {**module.__dict__, "_parameters": new}
    for name, value in (("hidden_dim", hidden), ("intermediate_dim", inner)):
        if name in vars(module):
            setattr(small, name, value)
    x = torch.randn(7, hidden, generator=generator).to(dtype)
    indices = torch.randint(0, experts, (7, 2), generator=generator)
    weights = torch.rand(7, 2, generator=generator).to(dtype)
    try:
        with torch.no_grad():
            got = small.forward(x, indices, weights)
            gate, up = torch.einsum("th,tkuh->tku", x, small.gate_up_proj[indices]).chunk(2, -1)
            each = torch.einsum("tki,tkoi->tko", small.act_fn(gate) * up, small.down_proj[indices])
    except Exception:
        return False
    close = 1e-2 if dtype.itemsize == 2 else 1e-4
    return torch.allclose(got, (each * weights[..., None]).sum(1), close, close)


def _shapes(module: Any) -> dict[str, tuple[int, int]]:
    """The shapes of one expert's parameters, as the sizes of the down projection want them."""
    hidden, inner = module.down_proj.shape[1:]
    return {"gate_up_proj": (2 * inner, hidden), "down_proj": (hidden, inner)}


class Experts(Rule):
    """All experts of a layer."""

    name = "experts"
    operands = ("hidden_states", "top_k_index", "top_k_weights", "gate_up_proj", "down_proj")
    axes = "t h, t ~, t ~, e (u=2 i) h, e h i -> t h"
    sizes = {"hidden_dim": "h", "intermediate_dim": "i"}  # noqa: RUF012

    def may_claim(self, kind: type[nn.Module], held: frozenset[str]) -> bool:
        return held >= {"gate_up_proj", "down_proj"}

    def claims(self, module: nn.Module) -> bool:
        return are_experts(module)

    def folds(self, node: Node) -> bool:
        return False

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """An entry that no inner unit of any expert reaches is 0."""
        layout = node.layout
        reached = self._down(node, facts) & self._inner(node, facts)
        mask = ~np.any(reached, axis=layout.axes({"e", "i"}), keepdims=True)
        mask = layout.from_named(_OUT, layout.project_all(_OUT, mask))
        return {"output": Constant(mask, np.zeros(mask.shape))} if mask.any() else {}

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """What is read is what a unit reads that some entry of the output reads."""
        layout = node.layout
        read, works = layout.to_named(_OUT, ~facts.unused(_OUT)), self._inner(node, facts)
        read = np.any(read, axis=layout.axes({"t"}), keepdims=True)
        reached = np.any(self._down(node, facts) & read, axis=layout.axes({"h"}), keepdims=True)
        reads = ~layout.to_named(_GATE_UP, facts.zero(_GATE_UP)) & reached & works
        stream = np.any(reads, axis=layout.axes({"e", "u", "i"}), keepdims=True)
        used = {_STREAM: stream, _GATE_UP: reached, _DOWN: works & read}
        return unused_operands(node, {k: ~np.asarray(mask) for k, mask in used.items()})

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        """All units that work stay, one of each expert, since tokens choose it by its number; and of the stream
        everything that is no zero."""
        super().constrain(node, keep)
        layout, facts = node.layout, keep.facts
        units = self._units(node, facts, layout.to_named(_OUT, keep.sets[_OUT] & ~facts.unused(_OUT)))
        first = (np.arange(layout.sizes["i"]) == 0).reshape([-1 if n == "i" else 1 for n in layout.names])
        for k in (_GATE_UP, _DOWN):
            one = layout.to_named(k, keep.sets[k]).any(axis=layout.axes({"h", "u"}), keepdims=True)
            stream = layout.to_named(_STREAM, keep.sets[_STREAM]).any(axis=layout.axes({"t"}), keepdims=True)
            empty = first & ~(one | units).any(axis=layout.axes({"i"}), keepdims=True)
            wanted = (units & ~one, "an inner unit that works"), (empty, "an expert that tokens may choose")
            for missing, why in wanted:
                if missing.any():
                    keep.grow(k, layout.from_named(k, missing & stream), why, k)
        reads = ~layout.to_named(_GATE_UP, facts.zero(_GATE_UP)) & units
        reads = np.any(reads, axis=layout.axes({"e", "u", "i"}), keepdims=True)
        counts = layout.to_named(_STREAM, ~(facts.zero(_STREAM) | keep.sets[_STREAM])) & reads
        if counts.any():
            why = "a constant that experts cannot take up"
            keep.grow(_STREAM, layout.from_named(_STREAM, layout.project_any(_STREAM, counts)), why, _STREAM)

    def _down(self, node: Node, facts: NodeFacts) -> Bools:
        return ~node.layout.to_named(_DOWN, facts.zero(_DOWN))

    def _inner(self, node: Node, facts: NodeFacts) -> Bools:
        """The inner units that are not 0 whatever comes in: 0 is the product with a factor 0 (named, over e and i)."""
        layout = node.layout
        zero = layout.to_named(_GATE_UP, facts.zero(_GATE_UP))
        zero = np.asarray(zero.all(axis=layout.axes({"h"}), keepdims=True))
        axis = layout.names.index("u")
        gate, up = (np.take(np.broadcast_to(zero, _wide(zero, axis)), [n], axis) for n in (0, 1))
        assert node.module is not None
        silent: Any = node.module.get_submodule("act_fn")
        if float(silent(torch.zeros(1))[0]) != 0:
            gate = np.zeros_like(gate)
        return np.asarray(~(gate | up))

    def _units(self, node: Node, facts: NodeFacts, read: Bools) -> Bools:
        """The inner units that are not 0 and that some entry of the output reads."""
        layout = node.layout
        read = np.any(read, axis=layout.axes({"t"}), keepdims=True)
        read = np.any(self._down(node, facts) & read, axis=layout.axes({"h"}), keepdims=True)
        return np.asarray(read & self._inner(node, facts))

    def multiply_accumulates(self, node: Node, shapes: Sequence[tuple[int, ...] | None]) -> int:
        chosen, down = shapes[1] or (), shapes[_DOWN] or ()
        return 3 * int(np.prod(chosen)) * int(np.prod(down[1:]))


def _wide(array: Bools, axis: int) -> list[int]:
    return [2 if a == axis else s for a, s in enumerate(array.shape)]
