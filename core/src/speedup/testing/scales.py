"""The law of ``Rule.scales``: what a call gives is scale * input + shift, with the numbers that were found for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from speedup.fast.scaling import scaling_of
from speedup.node import Node, Value
from speedup.testing.running import differs, run


def wrong_scaling(node: Node, samples: Mapping[Value, torch.Tensor], seed: int) -> tuple[int, ...] | None:
    """The first entry of the output that is no scaled and shifted entry of the input; None where all are.

    Args:
        samples: the contents of the values.
        seed: of the random input.
    """
    by, value = scaling_of(node), node.operands[0] if node.operands else None
    if by is None or value is None or value not in samples or not samples[value].is_floating_point():
        return None
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(samples[value])
    found = run(node, {**samples, value: x})
    if found is None:
        return None
    scale, shift = (torch.from_numpy(a.copy()).to(x) for a in (by.scale, by.shift))
    wanted = x * scale + shift
    everywhere = torch.ones((1,) * x.ndim, dtype=torch.bool).numpy()
    return (0,) * x.ndim if found[0].shape != wanted.shape else differs(found[0], wanted, everywhere)
