"""Where the constants of a call can go: into its bias, into one that it gains, or into what is subtracted next."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from speedup.arrays import Floats
from speedup.node import Node, Value
from speedup.pieces import contents, is_own
from speedup.reused import reused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speedup.layout import Layout
    from speedup.rule import Rule


def takes_bias(rule: Rule, node: Node) -> bool:
    """Whether constants can go into the bias of this call, or of a norm that follows."""
    known: bool = node.once("takes bias", partial(_takes_bias, rule, node))
    return known


def _takes_bias(rule: Rule, node: Node) -> bool:
    if rule.bias is None or rule.bias not in node.operand_names or not rule.uniform(node):
        return False
    k = node.operand_names.index(rule.bias)
    if node.values[k] is not None:
        # The share of what goes varies along the names that the weight brings to the output: so must the bias.
        layout = node.layout
        own = {n for j in range(layout.n_inputs) if j != k and _takes(node, j) for n in layout.names_of(j)}
        return _takes(node, k) and own & layout.names_of(layout.n_inputs) == layout.names_of(k)
    return absorber(node) is not None or (node.module is not None and _called_once(node))


def _takes(node: Node, k: int) -> bool:
    """Whether operand ``k`` may get other contents: it is the call's own, or that of a layer that is called again."""
    if is_own(node, k):
        return True
    layer = reused(node)
    return layer is not None and k in (layer.weight, layer.bias)


def _called_once(node: Node) -> bool:
    return all([v is None or not v.is_source or len(v.uses) == 1 for v in node.operands])


def is_shifted(node: Node) -> bool:
    """Whether the output of a call may be lower by constants, which the call behind it takes up."""
    rule = node.rule
    if rule is None or rule.bias is None or not rule.folds(node) or node.operand(rule.bias) is not None:
        return False
    return absorber(node) is not None


def absorber(node: Node) -> Value | None:
    """What is subtracted from the output right after the call, entry for entry of its bias: a running mean."""
    found: Value | None = node.once("absorber", partial(_find_absorber, node))
    return found


def _find_absorber(node: Node) -> Value | None:
    (output,) = node.outputs
    if output.is_output or len(output.uses) != 1 or not _called_once(node):
        return None
    reader, number = output.uses[0]
    if reader.rule is None or reader.rule.shift is None or number != 0 or reader.rule.folds(reader):
        return None
    mean = reader.operand(reader.rule.shift)
    if mean is None or not mean.is_of_one_call or not _called_once(reader):
        return None
    k = reader.operands.index(mean)
    here, there = node.layout, reader.layout
    own = {n for j in range(here.n_inputs) if is_own(node, j) for n in here.names_of(j)} - here.mixed
    axis = [a for a, dim in enumerate(here.operands[here.n_inputs] or ()) if own & set(dim)]
    its = [a for a, dim in enumerate(there.operands[0] or ()) if there.names_of(k) & set(dim)]
    return mean if len(axis) == 1 and axis == its and mean.shape == (output.shape[axis[0]],) else None


def into_bias(rule: Rule, node: Node, shift: Floats, like: torch.Tensor) -> tuple[Value | str, torch.Tensor]:
    """The bias, what is subtracted next, or a bias that is new, with a shift of the output added; in full size."""
    assert rule.bias is not None
    flat = flat_output(node, shift)
    bias, sign = node.operand(rule.bias), 1
    if bias is None:
        bias, sign = absorber(node), -1
    if bias is None:
        return rule.bias, torch.from_numpy(flat.copy()).to(like)
    old = contents(bias)
    new = old.to("cpu", torch.float64).numpy() + (flat if sign > 0 else -flat).reshape(old.shape)
    return bias, torch.from_numpy(np.asarray(new)).to(old)  # of a single number the sum is no array


def flat_output(node: Node, shift: Floats) -> Floats:
    """A shift over the output's weight-born names, as the flat vector that a bias is."""
    axes, order = node.once("flat output", partial(_bias_axes, node))
    layout = node.layout
    wide = [*shift.shape]
    for p in axes:
        wide[p] = layout.sizes[layout.names[p]]
    if shift.shape != tuple(wide):
        narrow, shift = shift, np.empty(wide, shift.dtype)
        shift[...] = narrow
    return shift.transpose(order).reshape(-1)


def _bias_axes(node: Node) -> tuple[list[int], list[int]]:
    """The axes of the output's weight-born names, in the order of the output; and with the others behind them."""
    layout = node.layout
    own = tuple([k for k in range(layout.n_inputs) if _takes(node, k)])
    found: tuple[list[int], list[int]] = layout.form.once("bias axes", own, lambda: _axes_of(layout, own))
    return found


def _axes_of(layout: Layout, own: Sequence[int]) -> tuple[list[int], list[int]]:
    weight_names = {n for k in own for n in layout.names_of(k)}
    out = layout.operands[layout.n_inputs] or ()
    axes = [layout.names.index(n) for dim in out for n in dim if n in weight_names]
    return axes, [*axes, *(a for a in range(len(layout.names)) if a not in axes)]
