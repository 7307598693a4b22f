"""Layers that only training calls: the auxiliary heads of GoogLeNet and Inception, say.

``if self.training: aux = self.aux(x)`` asks the module that holds the head whether it trains, and not the layers. So
where a run in eval mode leaves layers out, the modules around these are told that they train, while all others stay in
eval mode. What such a run does is as exact as what eval mode does, and the plan is made for it: of the head, too, goes
what is masked, and what reads the channels that went. It has to make all the calls that the run in eval mode makes;
else that one is planned alone, and what it leaves out keeps its size.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import types
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from speedup import walk
from speedup.detours import find_detours
from speedup.graph import Graph
from speedup.node import Node, Value, paths_around
from speedup.registry import Registry
from speedup.trace.first import first_trace
from speedup.trace.run import trace
from speedup.trace.sandbox import in_training
from speedup.trace.source import names_in
from speedup.verification import Inputs
from speedup.wider import Wider, given_values

log = logging.getLogger("speedup")


class Auxiliary(Wider):
    """A run in which layers are called that eval mode leaves out.

    Attributes:
        modules: those that were told that they train.
    """

    label = "what only training calls"

    def __init__(self, first: Graph, graph: Graph, modules: Sequence[nn.Module], same: Mapping[Value, Value]) -> None:
        super().__init__(first, graph)
        self.modules = modules
        self._outputs = [same[v] for v in first.outputs]
        known = {v.producer for v in same.values()}
        graph.beside = frozenset(n for n in graph.nodes if n not in known)
        for value in self._outputs:
            if not value.is_output:
                value.is_output = True
                graph.outputs.append(value)

    def entered(self) -> contextlib.AbstractContextManager[Any]:
        return in_training(self.modules)

    def effects(self) -> Sequence[float]:
        graph = self.graph
        if not graph.effects:
            return ()
        returned = graph.outputs[: len(graph.reference)]
        return [graph.effects[returned.index(v)] for v in self._outputs[: len(self.first.reference)]]

    def narrow(self, effects: Sequence[float]) -> None:
        own = set(self._outputs)
        self.graph.outputs = [*self._outputs, *(v for v in self.graph.outputs if v not in own)]
        super().narrow(effects)


def find_auxiliary(model: nn.Module, inputs: Inputs, rules: Registry, first: Graph) -> Auxiliary | None:
    """The run in which what eval mode leaves out is called; None where nothing more is, or other calls are missing.

    Call it inside ``sandbox``.

    Args:
        first: the run in eval mode.
    """
    if not first.uncalled or first.answers or first.branch is not None:
        return None
    at = dict(walk.all_paths(model))
    around = dict.fromkeys(path for name in first.uncalled for path in paths_around(name))
    modules = [at[path] for path in around if _asks_whether_it_trains(type(at[path]))]
    if not modules:
        return None
    try:
        with in_training(modules):
            graph = trace(model, *inputs, rules, answers=(), masking=first.masking)
    except Exception as error:  # whatever a model wants for training: labels, say
        log.debug("it does not run as in training: %r", error)
        return None
    if graph.answers or graph.branch is not None or set(graph.uncalled) == set(first.uncalled):
        return None
    same = _values_of(first, graph)
    if same is None:
        log.debug("as in training, it does not make all calls that it makes in eval mode")
        return None
    first.standing = None  # nobody looks for other ways of it
    return Auxiliary(first, graph, modules, same)


def widest_trace(model: nn.Module, inputs: Inputs, rules: Registry) -> Graph:
    """The run on the dummy input with what only training or other data call, if that can be had. Call it inside
    ``sandbox``.

    Raises:
        TraceError: the model rejects the input.
    """
    first = first_trace(model, inputs, rules)
    found = find_auxiliary(model, inputs, rules, first) or find_detours(model, inputs, rules, first)
    return first if found is None else found.graph


def _asks_whether_it_trains(kind: type) -> bool:
    """Whether code of a class reads ``self.training``, so that a module of it may do something else in training."""
    own = kind.__mro__[: kind.__mro__.index(nn.Module)]
    functions = [inspect.unwrap(f) for base in own for f in vars(base).values() if callable(f)]
    return any(isinstance(f, types.FunctionType) and "training" in names_in(f.__code__) for f in functions)


def _values_of(first: Graph, graph: Graph) -> dict[Value, Value] | None:
    """Which value of a run each value of another one is; None where it does not make all its calls, in their order."""
    same = given_values(first, graph)
    others = iter(graph.nodes)
    for node in first.nodes:
        other = next((n for n in others if _is_same(node, n, same)), None)
        if other is None:
            return None
        same.update(zip((*node.tensors, *node.outputs), (*other.tensors, *other.outputs), strict=True))
    return same if all(v in same for v in first.outputs) else None


def _is_same(node: Node, other: Node, same: Mapping[Value, Value]) -> bool:
    """Whether two calls are one, on the same values."""
    if (node.place, node.where) != (other.place, other.where):
        return False
    if [(v.shape, v.dtype) for v in node.outputs] != [(v.shape, v.dtype) for v in other.outputs]:
        return False
    if len(node.tensors) != len(other.tensors) or not node.is_given(other):
        return False
    pairs = zip(node.tensors, other.tensors, strict=True)
    return all(same.get(a) is b or (a not in same and a.kind == b.kind == "unknown") for a, b in pairs)
