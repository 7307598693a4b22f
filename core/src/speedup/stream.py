"""The tensors of a small model, made module by module of contents that are lent for a moment.

A plan that was made on the meta device knows what goes, and no numbers. Whoever has them (a checkpoint, another model,
a sharded one) lends those of one module at a time, and gets the new module with its new parameters and buffers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from speedup.build import Parts, Piece, build
from speedup.folds import fold_targets, weights_of
from speedup.graph import Graph
from speedup.keep import KeepSets
from speedup.node import Node, Value
from speedup.pieces import sources_of
from speedup.rule import Rule
from speedup.shell import relinked
from speedup.trace.meta import StandIns

Contents = Callable[[Value], torch.Tensor]


class Stream:
    """Makes the modules of a small model one by one.

    Args:
        model: the model that the plan was made for, or one of the same modules with numbers of its own.
        contents: the numbers of a parameter or buffer; masks are applied here.
    """

    def __init__(self, graph: Graph, keeps: KeepSets, model: nn.Module, contents: Contents) -> None:
        self._graph, self._keeps, self._model, self._contents = graph, keeps, model, contents
        self._owned: dict[str, list[Value]] = {}
        for value in graph.sources:
            for name in value.names:
                self._owned.setdefault(name.rpartition(".")[0], []).append(value)
        self._calls: dict[str, list[Node]] = {}
        self._writers: dict[Value, list[Node]] = {}
        self._reads: dict[Node, list[Value]] = {}
        for node in graph.nodes:
            if node.rule is None:
                continue
            if node.module is not None:
                self._calls.setdefault(node.path, []).append(node)
            self._note_writer(node)

    def _note_writer(self, node: Node) -> None:
        """Which parameters a call folds something into, and which it has to know for it."""
        assert node.rule is not None
        goals = fold_targets(node, self._keeps)
        kind = type(node.rule)
        refits = kind.refit is not Rule.refit or kind.rescale is not Rule.rescale
        if not goals and not refits:
            return
        written = [source for g in goals if isinstance(g, Value) for source in sources_of(g)]
        written += weights_of(node) if refits else []
        self._reads[node] = list(dict.fromkeys([*weights_of(node), *written]))
        for value in dict.fromkeys(written):
            self._writers.setdefault(value, []).append(node)

    def module(self, path: str) -> nn.Module | None:
        """The new module, with its new tensors and those that stay; None where nothing of it changes.

        It is made anew each time, and holds nothing that was lent but what is new.
        """
        made = self._made(path).modules.get(path)
        return made

    def reads(self, path: str) -> list[Value]:
        """The parameters and buffers whose contents the new tensors of a module are made of."""
        piece = self._piece(path)
        return list(dict.fromkeys([*piece.values, *(v for n in piece.nodes for v in self._reads.get(n, ()))]))

    def writes(self, path: str) -> list[Value]:
        """Those of them that take up something."""
        return [v for v in self._piece(path).values if v in self._writers]

    def _piece(self, path: str) -> Piece:
        calls = self._calls.get(path, [])
        held = [v for n in calls for k in n.attributes.values() if (v := n.tensors[k]).is_source]
        values = list(dict.fromkeys([*self._owned.get(path, []), *held]))
        nodes = {n.index: n for n in (*calls, *(n for v in values for n in self._writers.get(v, ())))}
        return Piece(frozenset([path]), values, [nodes[i] for i in sorted(nodes)])

    def _made(self, path: str) -> Parts:
        with self._lent(self.reads(path)):
            return build(self._graph, self._keeps, self._model, self._piece(path))

    @contextlib.contextmanager
    def _lent(self, values: Iterable[Value]) -> Iterator[None]:
        before = {v: (v.tensor, v.mask) for v in values}
        try:
            for value, (tensor, _) in before.items():
                assert tensor is not None
                value.tensor, value.mask = _like(tensor, self._masked(value)), None
            yield
        finally:
            for value, (tensor, mask) in before.items():
                value.tensor, value.mask = tensor, mask

    def _masked(self, value: Value) -> torch.Tensor:
        tensor = self._contents(value)
        gone = self._keeps.facts.masked.get(value)
        if gone is None:
            return tensor
        return torch.where(
            torch.from_numpy(gone.copy()).to(tensor.device),
            torch.zeros((), dtype=tensor.dtype, device=tensor.device),
            tensor,
        )


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    if not isinstance(old, nn.Parameter):
        return new
    made = nn.Parameter(new, requires_grad=old.requires_grad and new.is_floating_point())
    made.__dict__.update(old.__dict__)
    return made


def with_contents(graph: Graph, keeps: KeepSets, model: nn.Module, parts: Parts, stands: StandIns) -> None:
    """Give a plan of a model that is partly on the meta device the tensors of it that have contents."""
    for value in graph.values:
        if value.tensor is not None:
            value.tensor = stands.originals.get(id(value.tensor), value.tensor)
    for made in parts.modules.values():
        for held in (made._parameters, made._buffers):
            stands.give_back(held)
        for name, item in list(made.__dict__.items()):
            made.__dict__[name] = relinked(item, stands.originals)

    def at_hand(value: Value) -> torch.Tensor:
        assert value.tensor is not None
        return value.tensor.detach()

    stream = Stream(graph, keeps, model, at_hand)
    known = [n for v in graph.sources if not v.is_blank for n in v.names if n in parts.tensors]
    for path in dict.fromkeys(n.rpartition(".")[0] for n in known):
        new = stream.module(path)
        for kind in ("_parameters", "_buffers") if new is not None else ():
            into, fresh = getattr(parts.modules[path], kind), getattr(new, kind)
            into.update({n: t for n, t in fresh.items() if t is not None and not t.is_meta and n in into})
