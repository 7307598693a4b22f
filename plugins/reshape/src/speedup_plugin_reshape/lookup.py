"""Entries at an index that is data: which ones come out, nobody knows before.

The axes that are indexed stay whole; the others pass entry for entry, so that channels can go.
"""

from __future__ import annotations

from typing import Any

import torch

from speedup import Affine, Constant, Fact, Movement, Node, NodeFacts, Ref, Rule, SignatureError, Value

_INTEGERS = (torch.int64, torch.int32)


class Lookup(Rule):
    """x[:, index], x[rows, columns], x[mask]: index tensors side by side, and whole axes before and after them."""

    indices = ("1",)

    def signature(self, node: Node) -> str:
        source = node.operands[0]
        if source is None:
            raise SignatureError("no axis of a tensor")
        axes, chosen, first = indexed(node, source)
        if [id(v) for v in chosen] != [id(v) for v in node.operands[1:]]:
            raise SignatureError("tensors elsewhere than in the index")
        masks = chosen[0].dtype == torch.bool
        out = [a for a in axes if not a.startswith("~")]
        out.insert(first, "n" if masks else "*")
        return f"{' '.join(axes)}, {', '.join(['~' if masks else '*'] * len(chosen))} -> {' '.join(out)}"


class LookupAlong(Rule):
    """index_select: an index along one axis."""

    call = "input, dim, index"
    operands = ("input", "index")
    indices = ("index",)

    def signature(self, node: Node) -> str:
        source, dim = node.operands[0], node.arg("dim")
        if source is None or not isinstance(dim, int):
            raise SignatureError("no axis of a tensor")
        axes = [f"a{n}" for n in range(source.ndim)]
        dim = dim % source.ndim
        return (
            f"{' '.join([*axes[:dim], '~v', *axes[dim + 1 :]])}, n -> {' '.join([*axes[:dim], 'n', *axes[dim + 1 :]])}"
        )


class ByIndex(Movement):
    """Entries along one axis, by an index that the model holds, or that is data: ``of_data`` is then the rule."""

    operands = ("input",)
    of_data: type[Rule]

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.lookup = self.of_data(name=f"{self.name} of data")

    def claim(self, node: Node) -> None:
        self.lookup.claim(node) if is_data(node) else super().claim(node)


class EntryByEntry(Rule):
    """gather, take_along_dim: an index of its own for every entry, along one axis. It comes with its entry."""

    call = "input, dim, index, **more"
    operands = ("input", "index")
    indices = ("index",)
    broadcasts = False

    def signature(self, node: Node) -> str:
        source, index = node.operands
        dim = node.arg("dim")
        if source is None or index is None or not isinstance(dim, int) or source.ndim != index.ndim or not source.ndim:
            raise SignatureError("no axis of a tensor")
        dim = dim % source.ndim
        others = [(a, b) for k, (a, b) in enumerate(zip(source.shape, index.shape, strict=True)) if k != dim]
        if any(a != b and not (self.broadcasts and 1 in (a, b)) for a, b in others):
            raise SignatureError("an index with fewer entries than the tensor along another axis")
        axes = [f"a{n}" for n in range(source.ndim)]
        before, after = axes[:dim], axes[dim + 1 :]
        out = " ".join([*before, "n", *after])
        return f"{' '.join([*before, '~v', *after])}, {out} -> {out}"

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """What is a multiple of one unknown at every position still is where all channels have one index."""
        found = super().infer_from_input(node, facts)
        fact, index = found.get("output"), node.operands[1]
        assert index is not None
        if isinstance(fact, Affine) and index.shape[fact.axis] > 1:
            return {"output": Constant(fact.constant, fact.offset)} if fact.constant.any() else {}
        return found


class Gather(ByIndex):
    """An index for each entry."""

    call = "input, dim, index, **more"
    of_data = EntryByEntry


class EntryAlong(EntryByEntry):
    """take_along_dim: the tensors broadcast to each other along the other axes."""

    call = "input, index, dim=None"
    broadcasts = True


class TakeAlong(ByIndex):
    """An index for each entry; both broadcast."""

    call = "input, indices, dim=None"
    of_data = EntryAlong


def is_data(node: Node) -> bool:
    """Whether an index is a tensor that the model does not hold."""
    return not all(v.is_known for v in node.tensors[1:])


def indexed(node: Node, source: Value) -> tuple[list[str], list[Value], int]:
    """What an index of data chooses among.

    Returns:
        the names of the axes of the tensor, mixed ones where it is indexed; the index tensors; how many axes come
        before them.

    Raises:
        SignatureError: it has other parts than index tensors side by side, and whole axes.
    """
    items = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if not all(map(_is_plain, items)):
        raise SignatureError("an index tensor beside other parts than ':' and '...'")
    chosen = [node.tensors[item.number] for item in items if isinstance(item, Ref)]
    masks = any(v.dtype == torch.bool for v in chosen)
    if any(v.dtype not in _INTEGERS for v in chosen) and not (masks and len(chosen) == 1 and chosen[0].ndim):
        raise SignatureError("an index that is neither integers nor one mask")
    taken = [chosen[0].ndim] if masks else [1] * len(chosen)
    rest = source.ndim - sum(taken) - sum(isinstance(item, slice) for item in items)
    axes: list[str] = []
    starts: list[int] = []
    for position, item in enumerate(items):
        if isinstance(item, Ref):
            if position == 0 or not isinstance(items[position - 1], Ref):
                starts.append(len(axes))
            axes += [f"~v{len(axes) + n}" for n in range(taken.pop(0))]
        else:
            axes += [f"a{len(axes) + n}" for n in range(rest if item is Ellipsis else 1)]
    if len(starts) != 1:
        raise SignatureError("index tensors that do not stand side by side")
    return [*axes, *(f"a{n}" for n in range(len(axes), source.ndim))], chosen, starts[0]


def _is_plain(item: object) -> bool:
    return item is Ellipsis or isinstance(item, Ref) or (isinstance(item, slice) and item == slice(None))
