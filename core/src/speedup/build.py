"""From keep sets to new tensors and modules, made beside the old ones: nothing of the model is touched here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from speedup import walk
from speedup.arrays import Bools
from speedup.ask import ask, culprit
from speedup.cached import cached_property
from speedup.cutting import laid_out_like
from speedup.deferred import Deferred, is_large, may_defer, placeholder
from speedup.errors import RuleError
from speedup.expand import Call, settle
from speedup.folds import DeferredFold, Folds
from speedup.graph import Graph
from speedup.keep import KeepSets
from speedup.kept import changes, kept_of
from speedup.known import Facts, NodeFacts
from speedup.made import Made
from speedup.new_sizes import new_size
from speedup.node import Node, Value
from speedup.regular import kept_shape
from speedup.repair.parts import Repairs
from speedup.rule import Rule
from speedup.shell import like, relinked, shell_of


@dataclass(eq=False)  # not frozen, since that takes longer to make, and each module has one
class Kept:
    """What a rule's ``replace`` is given.

    Attributes:
        module: the module to be replaced; it must not be changed.
        tensors: the new parameters and buffers by attribute name, a gained bias included.
    """

    module: nn.Module
    tensors: dict[str, torch.Tensor]
    node: Node
    sets: Sequence[Bools]
    _facts: Facts = field(repr=False)
    _sizes: dict[str, int] = field(default_factory=dict, repr=False)

    @cached_property
    def facts(self) -> NodeFacts:
        """What is known at the node, of entries that go as well."""
        return NodeFacts(self._facts, self.node)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of operands and outputs in the small model."""
        return [kept_shape(k, v.shape) for k, v in zip(self.sets, self.node.values, strict=True) if v is not None]

    def size(self, names: str) -> int:
        """The new size of an axis of the signature, or of a product: ``names`` as in ``keep.size("g o")``."""
        return new_size(self.node, self.sets, names, self._sizes)


@dataclass(eq=False)
class Parts:
    """New modules by path, to be put in the place of the old ones; each stands for all paths of its old module.

    Attributes:
        repairs: new attributes and rewritten calls of modules, by path, see ``speedup.repair``.
        deferred: those of the tensors that have no numbers yet.
    """

    modules: dict[str, nn.Module] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    gained: dict[str, torch.Tensor] = field(default_factory=dict)
    repairs: Repairs = field(default_factory=dict)
    deferred: Deferred = field(default_factory=Deferred)


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a model that is built by itself.

    Attributes:
        paths: the modules that are made.
        values: their parameters and buffers, and what else their calls hold.
        nodes: the calls that fold something into these, and those of the modules.
    """

    paths: frozenset[str]
    values: Sequence[Value]
    nodes: Sequence[Node]


def build(
    graph: Graph,
    keeps: KeepSets,
    model: nn.Module,
    piece: Piece | None = None,
    known: Made | None = None,
    defer: bool = False,
) -> Parts:
    """Make the new tensors and modules.

    Args:
        piece: what is made, the whole model by default.
        known: what was made for other ways, to be shared; what is made now is added.
        defer: whether large tensors may get their numbers later, see ``Parts.deferred``; whoever closes that tells
            ``keeps`` to forget what was found on the way.

    Raises:
        RuleError: a rule raised in ``replace`` or returned no module.
    """
    parts = Parts()
    folds = Folds.of(graph.nodes if piece is None else piece.nodes, keeps, known, graph if defer else None)
    waiting = {target for each in folds.deferred for target in each.targets}
    fresh: dict[Value, torch.Tensor] = {}
    for value in graph.sources if piece is None else piece.values:
        if value in folds.values:
            assert value.tensor is not None
            new = folds.values.pop(value)
            made = like(value.tensor, new if value in waiting else laid_out_like(value.tensor, new))
        elif not changes(keeps, value):
            continue
        elif known is not None and (shared := known.find(keeps, value)) is not None:
            made = shared
        elif defer and is_large(value, keeps.shape) and may_defer(value, graph):
            assert value.tensor is not None
            made = like(value.tensor, placeholder(value.tensor, keeps.shape(value)))
            parts.deferred.add([made], partial(_kept_alone, value, keeps))
        else:
            assert value.tensor is not None
            made = like(value.tensor, _kept(value, keeps))
            if known is not None:
                known.add(keeps, value, made)
        fresh[value] = made
        for name in value.names:
            if piece is None or name.rpartition(".")[0] in piece.paths:
                parts.tensors[name] = made
    nodes = graph.nodes if piece is None else [n for n in piece.nodes if n.path in piece.paths]
    modules = dict(walk.all_paths(model))
    _replace_modules(nodes, keeps, modules, fresh, folds.gained, parts)
    _replace_owners(modules, parts)
    _defer_folds(folds, fresh, parts)
    if piece is None:
        _replace_held(model, parts, fresh)
        settle_expanded(graph, keeps, model, parts)
    if not defer:
        keeps.forget()  # nobody asks again, and a plan lives on
    return parts


def _kept(value: Value, keeps: KeepSets) -> torch.Tensor:
    assert value.tensor is not None
    new = kept_of(keeps, value)
    return new if value.ndim < 2 else laid_out_like(value.tensor, new)


def _kept_alone(value: Value, keeps: KeepSets) -> list[torch.Tensor]:
    return [_kept(value, keeps)]


def _defer_folds(folds: Folds, fresh: Mapping[Value, torch.Tensor], parts: Parts) -> None:
    """See to it that deferred folds get into the placeholders."""
    for each in folds.deferred:
        prefix = each.node.path + "." if each.node.path else ""
        own = [fresh[t] if isinstance(t, Value) else parts.gained[prefix + t] for t in each.targets]
        parts.deferred.add(own, partial(_folded, each))


def _folded(deferred: DeferredFold) -> list[torch.Tensor]:
    made = deferred.make()
    return [
        laid_out_like(t.tensor, made[t]) if isinstance(t, Value) and t.tensor is not None else made[t]
        for t in deferred.targets
    ]


def _replace_modules(
    nodes: Sequence[Node],
    keeps: KeepSets,
    modules: Mapping[str, nn.Module],
    fresh: dict[Value, torch.Tensor],
    gained: dict[Node, dict[str, torch.Tensor]],
    parts: Parts,
) -> None:
    for node in nodes:
        if node.module is None or node.rule is None or node.path in parts.modules:
            continue
        tensors = node.tensors
        held = {name: fresh[v] for name, number in node.attributes.items() if (v := tensors[number]) in fresh}
        for name, tensor in gained[node].items() if node in gained else ():
            weight = next(v for v in node.operands if v is not None and v.is_source)
            assert weight.tensor is not None
            held[name] = nn.Parameter(tensor, requires_grad=weight.tensor.requires_grad)
            parts.gained[f"{node.path}.{name}" if node.path else name] = held[name]
        old = modules[node.path]
        if not held and (_is_size_free(node.rule, old) or all([keeps.whole(v) for v in node.values if v is not None])):
            continue
        made = ask(node, "replace", Kept(old, held, node, keeps.at(node), keeps.facts))
        if not isinstance(made, nn.Module):
            raise RuleError(f"{culprit(node)}: replace returned {made!r}, not a module")
        if made is old:
            raise RuleError(
                f"{culprit(node)}: replace returned the module itself; make a new one, as `super().replace` does"
            )
        parts.modules[node.path] = made


def _is_size_free(rule: Rule, module: nn.Module) -> bool:
    """Whether a module of which no tensor changes serves any size, as far as its rule says: an activation, a pool."""
    if type(rule).replace is not Rule.replace:
        return False
    # What a class has is not asked for here: a property may raise, and whose fault that is, is told by who asks.
    return not any([hasattr(type(module), name) or hasattr(module, name) for name in rule.sizes])


def _replace_owners(modules: Mapping[str, nn.Module], parts: Parts) -> None:
    """Put new tensors into the modules that own them and that no rule has replaced with them inside."""
    shells: dict[int, nn.Module] = {id(modules[path]): made for path, made in parts.modules.items()}
    for name, tensor in parts.tensors.items():
        path, _, attribute = name.rpartition(".")
        owner = modules[path]
        shell = shells.get(id(owner))
        if shell is None:
            shell = shells[id(owner)] = parts.modules[path] = shell_of(owner)
        if attribute in owner._parameters:
            # What a rule's `replace` has put there is its own decision.
            if shell._parameters.get(attribute) is owner._parameters.get(attribute):
                setattr(shell, attribute, tensor)
        elif shell._buffers.get(attribute) is owner._buffers.get(attribute):
            shell._buffers[attribute] = tensor


def _replace_held(model: nn.Module, parts: Parts, fresh: dict[Value, torch.Tensor]) -> None:
    """Attributes that hold parameters beside their owners hold the new ones."""
    renewed = {id(value.tensor): tensor for value, tensor in fresh.items() if value.aliases}
    for path, _, name in {n.rpartition(".") for value in fresh for n in value.aliases}:
        module = parts.modules.get(path) or model.get_submodule(path)
        if name in module.__dict__ and (new := relinked(module.__dict__[name], renewed)) is not module.__dict__[name]:
            shell = parts.modules.setdefault(path, shell_of(module))
            shell.__dict__[name] = new


def settle_expanded(graph: Graph, keeps: KeepSets, model: nn.Module, parts: Parts) -> None:
    """Modules that ran in parts get their sizes, where anything inside became smaller."""
    for path, rule in graph.expanded.items():
        inside = [n for n in graph.nodes if n.scope == path or n.scope.startswith(path + "." if path else "")]
        calls = [Call(n, tuple(None if v is None else keeps.shape(v) for v in n.values)) for n in inside]
        if not all(c.whole for c in calls):
            if path not in parts.modules:
                parts.modules[path] = shell_of(model.get_submodule(path))
            settle(rule, path, parts.modules[path], calls)
