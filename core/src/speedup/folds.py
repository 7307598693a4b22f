"""New contents of parameters and buffers, call by call: what they take up of what goes (see ``speedup.fold``), and what
rules fit anew or multiply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch

from speedup import fold
from speedup.arrays import Bools
from speedup.ask import ask, culprit
from speedup.bias import flat_output
from speedup.deferred import is_large, may_defer_fold, placeholder
from speedup.errors import RuleError
from speedup.graph import Graph
from speedup.keep import KeepSets
from speedup.kept import kept_of
from speedup.made import Made
from speedup.node import Node, Value
from speedup.node_keep import NodeKeep
from speedup.pieces import contents, is_own, is_piece, put_back, sources_of
from speedup.removed import removed
from speedup.rule import Rule, leaves_to_layout


def _may_fold(node: Node) -> bool:
    """Whether ``folds`` of its rule says so; most rules leave that to the layout."""
    if leaves_to_layout(node, "folds"):
        return bool(node.layout.contracted)
    return bool(ask(node, "folds"))


def fold_targets(node: Node, keeps: KeepSets) -> list[Value | str]:
    """What a call folds into: parameters or pieces of them, and attributes that its module gains."""
    if keeps.drop or node.rule is None or not _may_fold(node):
        return []
    return fold.targets(node.rule, node, NodeKeep(keeps, node))


Targets: TypeAlias = Sequence[Value | str]
Fold: TypeAlias = dict[Value | str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class DeferredFold:
    """What a call is going to fold.

    Attributes:
        targets: parameters and buffers, and attributes that its module gains.
        make: their new contents by target, cut.
    """

    node: Node
    targets: Targets
    make: Callable[[], Fold]


@dataclass(eq=False)
class Folds:
    """What some calls fold.

    Attributes:
        values: new contents of parameters and buffers, cut.
        gained: biases that modules gain, by the attribute's name, cut.
        deferred: what waits; in ``values`` and ``gained`` a placeholder stands for it.
    """

    values: dict[Value, torch.Tensor] = field(default_factory=dict)
    gained: dict[Node, dict[str, torch.Tensor]] = field(default_factory=dict)
    deferred: list[DeferredFold] = field(default_factory=list)
    _in_pieces: dict[Value, torch.Tensor] = field(default_factory=dict)  # in full size, until all pieces are there

    @staticmethod
    def of(nodes: Sequence[Node], keeps: KeepSets, known: Made | None = None, graph: Graph | None = None) -> Folds:
        """What these calls fold.

        Args:
            known: what was made for other ways, to be shared; what is made now is added.
            graph: of which the folds of calls with large parameters may be deferred; by default none is.

        Raises:
            RuleError: a rule raised, or names what is no parameter of its call alone.
        """
        folds = Folds()
        for node in nodes if not keeps.drop else ():
            if node.rule is not None and _may_fold(node):
                folds._fold(node, keeps, known, graph)
        for node in nodes:
            if node.rule is not None and type(node.rule).refit is not Rule.refit:
                folds._refit(node, keeps)
            if node.rule is not None and type(node.rule).rescale is not Rule.rescale:
                for name, factor in ask(node, "rescale", NodeKeep(keeps, node)).items():
                    folds._rescale(node, name, factor, keeps)
        for value, tensor in folds._in_pieces.items():
            kept = kept_of(keeps, value, tensor)
            folds.values[value] = kept if known is None else known.alike(value, kept)
        return folds

    def _fold(self, node: Node, keeps: KeepSets, known: Made | None, graph: Graph | None) -> None:
        assert node.rule is not None
        keep = NodeKeep(keeps, node)
        if not removed(node, keep):
            return
        if keeps.facts.blind and any(v.is_blank for v in weights_of(node)):
            self._fold_blank(node, keeps)
            return
        targets = _deferrable(node, keep, keeps, graph) if graph is not None else []
        if targets:
            self.deferred.append(DeferredFold(node, targets, partial(_folded, node, keep, keeps)))
            made = _placeholders(node, keep, keeps, targets)
        else:
            made = _folded(node, keep, keeps)
        for target, tensor in made.items():
            if isinstance(target, Value) and target.is_source:
                self.values[target] = tensor if known is None else known.alike(target, tensor)
            elif isinstance(target, Value):
                put_back(target, tensor, self._in_pieces)
            else:
                self.gained.setdefault(node, {})[target] = tensor

    def _fold_blank(self, node: Node, keeps: KeepSets) -> None:
        """What a call folds, where contents are not at hand: the shapes alone."""
        for target in fold_targets(node, keeps):
            if isinstance(target, Value):
                for source in sources_of(target):
                    assert source.tensor is not None
                    self.values[source] = kept_of(keeps, source, source.tensor.detach().to("meta"))
            else:
                count = _kept_count(node, NodeKeep(keeps, node))
                (like,) = [v.dtype for v in weights_of(node)][:1]
                self.gained.setdefault(node, {})[target] = torch.empty(count, dtype=like, device="meta")

    def _refit(self, node: Node, keeps: KeepSets) -> None:
        """Take the contents that a rule gives to parameters."""
        assert node.rule is not None
        for name, tensor in ask(node, "refit", NodeKeep(keeps, node)).items():
            value = node.operand(name)
            if value is None or not value.is_of_one_call:
                raise RuleError(f"{node.rule.label}: refit gives {name!r}, no parameter of {node.label} alone")
            self.values[value] = kept_of(keeps, value, tensor)

    def _rescale(self, node: Node, name: str, factor: float, keeps: KeepSets) -> None:
        """Multiply a parameter, or a piece of one, that may have taken up constants already."""
        value = node.operand(name)
        if value is None or not is_own(node, node.operand_names.index(name)):
            raise RuleError(f"{culprit(node)}: rescale gives {name!r}, no parameter of this call alone")
        if value.is_source:
            self.values[value] = (self.values[value] if value in self.values else kept_of(keeps, value)) * factor
            return
        wholes = {source: self._in_pieces.get(source, contents(source)) for source in sources_of(value)}
        put_back(value, contents(value, wholes) * factor, wholes)
        self._in_pieces |= wholes


def weights_of(node: Node) -> list[Value]:
    """The parameters and buffers that a call reads, or reads pieces of."""
    values = [v for v in node.operands if v is not None and (v.is_source or is_piece(v))]
    return list(dict.fromkeys(source for v in values for source in sources_of(v)))


def _deferrable(node: Node, keep: NodeKeep, keeps: KeepSets, graph: Graph) -> Targets:
    """What a call folds into, if that can be deferred."""
    if not any([v is not None and v.is_source and is_large(v, keeps.shape) for v in node.operands]):
        return []
    assert node.rule is not None
    targets = fold.targets(node.rule, node, keep)
    return targets if may_defer_fold(targets, keeps.shape, graph) else []


def _folded(node: Node, keep: NodeKeep, keeps: KeepSets) -> Fold:
    """What a call folds: new contents of parameters and buffers, cut, and of what it gains; of pieces in full size."""
    assert node.rule is not None
    made = fold.fold(node.rule, node, keep, keeps)
    return {t: _kept_bias(node, keep, keeps, new) if isinstance(t, str) else new for t, new in made.items()}


def _placeholders(node: Node, keep: NodeKeep, keeps: KeepSets, targets: Targets) -> Fold:
    """Tensors of the shapes of what a call is going to fold."""
    found: Fold = {}
    like = next(t.tensor for t in targets if isinstance(t, Value))
    assert like is not None
    for target in targets:
        if isinstance(target, Value):
            assert target.tensor is not None
            found[target] = placeholder(target.tensor, keeps.shape(target))
        else:
            found[target] = placeholder(like, (_kept_count(node, keep),))
    return found


def _kept_count(node: Node, keep: NodeKeep) -> int:
    """How many entries a bias has that a call gains."""
    return int(_kept_outputs(node, keep).sum())


def _kept_bias(node: Node, keep: NodeKeep, keeps: KeepSets, whole: torch.Tensor) -> torch.Tensor:
    """What is kept of a bias that a call gains."""
    chosen = torch.from_numpy(_kept_outputs(node, keep).copy())
    new = whole[chosen.to(whole.device)]
    for ranks in keeps.orders.get(node.outputs[0], {}).values():
        new = new[torch.from_numpy(ranks.flatten()).to(new.device)]
    return new


def _kept_outputs(node: Node, keep: NodeKeep) -> Bools:
    """Which entries of the bias of a call stay (flat)."""
    out = node.layout.n_inputs
    return flat_output(node, node.layout.to_named(out, keep.sets[out]))
