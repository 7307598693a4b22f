"""Entries that go to an index that is data: sums over the neighbours in a graph, tokens that come back from experts.

The axis that is indexed stays whole; the others pass entry for entry, so that channels can go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import wrap_torch_function

from speedup import Node, Ref, Rule, SignatureError
from speedup_plugin_reshape.lookup import indexed


class Scatter(Rule):
    """Into the entries of ``input`` along ``dim`` go those of ``source``: they are added, take their place, ..."""

    call: str | None = "input, dim, index, source, *args, **kwargs"
    operands: tuple[str, ...] = ("input", "index", "source")
    keeps_zeros = True

    def signature(self, node: Node) -> str:
        value, index, source = node.operands
        dim = node.arg("dim")
        if value is None or index is None or source is None or not value.ndim or not isinstance(dim, int):
            raise SignatureError("a tensor, an index and a source are wanted")
        axes = [f"a{n}" for n in range(value.ndim)]
        axes[dim % value.ndim] = "~"
        along = " ".join(axes)
        return f"{along}, {self.indexed(along)}, {along} -> {along}"

    def indexed(self, along: str) -> str:
        """The axes of the index."""
        return along


class ScatterRows(Scatter):
    """The same with one index for everything that stands at a place of the axis."""

    def indexed(self, along: str) -> str:
        return "~"


class FillRows(Scatter):
    """index_fill: 0 goes to everything that stands at some places of the axis."""

    call = "input, dim, index, value"
    operands = ("input", "index")

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        if value is None or not value.ndim or node.arg("value") != 0:
            raise SignatureError("a number other than 0 is filled in")
        axes = [f"a{n}" for n in range(value.ndim)]
        axes[node.arg("dim") % value.ndim] = "~"
        return f"{' '.join(axes)}, ~ -> {' '.join(axes)}"


class MaskedRows(Scatter):
    """Where a mask says so, whole rows are replaced with those of a source, one after the other."""

    call = "input, mask, source"
    operands = ("input", "mask", "source")

    def signature(self, node: Node) -> str:
        value, mask, source = node.operands
        assert value is not None and mask is not None and source is not None
        rows = [" ".join([*["~1"] * (v.ndim - 1), "c"]) for v in (value, mask, source)]
        return f"{', '.join(rows)} -> {rows[0]}"


class MaskedScatter(MaskedRows):
    """masked_scatter: of rows, where the mask is one number for each, spread over the channels (the pictures and sounds
    that take the places of words in a multimodal model)."""

    def in_parts(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Callable[..., Any] | None:
        given = dict(zip(("input", "mask", "source"), args, strict=False)) | dict(kwargs)
        value, mask, source = (given.get(name, given.get("self")) for name in ("input", "mask", "source"))
        shapes = value.shape == mask.shape and source.ndim and source.shape[-1] == value.shape[-1]  # type: ignore[union-attr]
        return masked_rows if shapes and mask.stride(-1) == 0 else None  # type: ignore[union-attr]

    def signature(self, node: Node) -> str:
        raise SignatureError("a mask with numbers of its own for each channel")


@wrap_torch_function(lambda input, mask, source: (input, mask, source))
def masked_rows(input: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """``input.masked_scatter(mask, source)``, where the mask is the same all along the last axis."""
    return input.masked_scatter(mask, source)


class Assign(Scatter):
    """x[ids] = y, x[:, rows, columns] = y, x[mask] = y: an index as in a lookup."""

    call = None
    operands = ()

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        if value is None or len(node.args) != 3:
            raise SignatureError("a tensor, an index and a value are wanted")
        axes, chosen, first = indexed(node, value)
        indices = ", ".join("~" for _ in chosen)
        last = len(chosen) + 1
        if not isinstance(node.args[2], Ref):
            if node.args[2] != 0:
                raise SignatureError("a number other than 0 is assigned")
            return f"{' '.join(axes)}, {indices} -> {' '.join(axes)}"
        source = node.operands[last]
        if source is None or len(node.operands) != last + 1:
            raise SignatureError("tensors elsewhere than in the index")
        places = 1 if chosen[0].dtype == torch.bool else max(v.ndim for v in chosen)
        before, after = axes[:first], [a for a in axes[first:] if not a.startswith("~")]
        whole = [*before, *["~1"] * places, *after]
        written = whole[max(len(whole) - source.ndim, 0) :]
        return f"{' '.join(axes)}, {indices}, {' '.join(written)} -> {' '.join(axes)}"
