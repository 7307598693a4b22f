"""A case as a script of its own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from tests.graphs import standalone

_SCRIPT = '''\
"""Case {seed} of tests/graphs."""

from __future__ import annotations

import copy
from typing import Any

import speedup
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

{standalone}

{source}

{masks}

torch.manual_seed({seed})
model = randomize(Net().double().eval(), {seed})
inputs = draw_inputs({shapes}, {seed})
masked = copy.deepcopy(model)
for name, entry in masks.items():
    for parameter, mask in entry.items():
        getattr(masked.get_submodule(name), parameter).data.mul_(mask)
plan = speedup.plan(model, inputs[0], masks)
print(plan)
small = plan.apply()
for given in inputs:
    with torch.no_grad():
        try:
            wanted = [t for t in tree_leaves(masked(*[t.clone() for t in given])) if isinstance(t, torch.Tensor)]
        except (RuntimeError, IndexError, ValueError) as error:
            print([tuple(t.shape) for t in given], "the network does not take it:", error)
            continue
        got = [t for t in tree_leaves(small(*[t.clone() for t in given])) if isinstance(t, torch.Tensor)]
    print([tuple(t.shape) for t in given])
    for a, b in zip(wanted, got):
        gap = float((a - b).abs().max()) if a.shape == b.shape else "shapes differ"
        print("   ", tuple(a.shape), tuple(b.shape), "difference", gap, "largest entry", float(a.abs().max()))
'''


def script(seed: int, source: str, masks: Mapping[str, Any], shapes: list[tuple[Any, ...]]) -> str:
    helpers = inspect.getsource(standalone).partition("\nfrom torch import nn\n")[2].strip() + "\n"
    return _SCRIPT.format(
        seed=seed, standalone=helpers, source=source, masks=_masks_source(masks), shapes=_shapes_source(shapes)
    )


def _shapes_source(shapes: list[tuple[Any, ...]]) -> str:
    return "[" + ", ".join(repr(tuple(s)).replace("'", '"') for s in shapes) + "]"


def _masks_source(masks: Mapping[str, Any]) -> str:
    lines = ["masks = {"]
    for name, entry in masks.items():
        inner = ", ".join(f"{k!r}: {_mask_source(m)}" for k, m in entry.items() if m is not None)
        lines.append(f"    {name!r}: {{{inner}}},")
    return "\n".join([*lines, "}"])


def _mask_source(mask: torch.Tensor) -> str:
    """The mask as code: short where only one axis counts."""
    shape = tuple(mask.shape)
    for axis in range(mask.ndim):
        line = mask.amax([a for a in range(mask.ndim) if a != axis]) if mask.ndim > 1 else mask
        view = [-1 if a == axis else 1 for a in range(mask.ndim)]
        if torch.equal(line.reshape(view).expand(shape), mask):
            return f"torch.tensor({[int(i) for i in line]}).reshape({view}).expand({shape})"
    return f"torch.tensor({mask.int().tolist()})"
