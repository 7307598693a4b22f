"""From the records of the engine to a report: counts, modules, repairs. What takes long is found when asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import prod

from torch import nn

from speedup import walk
from speedup.build import Parts
from speedup.graph import Graph
from speedup.keep import KeepSets
from speedup.layout import Shape
from speedup.node import Value
from speedup.report.counts import count_macs
from speedup.report.data import Layer, Module, Pair, Repaired, Report
from speedup.report.picture import picture
from speedup.report.stays import find_stays


def summarize(model: nn.Module, graph: Graph, keeps: KeepSets, parts: Parts) -> Report:
    """Count and explain one plan."""
    report = Report(gained=sorted(parts.gained), effects=list(graph.effects), uncalled=graph.uncalled)
    # What a call computes is asked now, for it depends on the attributes of its module.
    macs = [count_macs(node, keeps) for node in graph.nodes]
    types = {path: type(module).__name__ for path, module in walk.named_modules(model)}
    gained = [(name, (0, tensor.numel())) for name, tensor in parts.gained.items()]
    report.parameters = _total([pair for _, pair in _parameters(graph, keeps)] + [pair for _, pair in gained])
    report.macs = _total(macs)
    report.repaired = [Repaired(path, *line) for path, r in parts.repairs.items() for line in r.describe()]
    report.barriers = [f"{n.op_name} at {n.where}" + (f" ({n.note})" if n.note else "") for n in graph.barriers]
    report.find_layers = partial(_layers, graph, keeps)
    report.find_modules = partial(_modules, types, graph, keeps, macs, gained)
    report.find_stays = partial(find_stays, graph, keeps)
    report.find_page = partial(picture, report, graph, keeps)
    return report


def _layers(graph: Graph, keeps: KeepSets) -> list[Layer]:
    return [
        Layer(v.names[0], v.shape, _shape(keeps, v), _kept(keeps, v) if v.is_read else {}, v.kind)
        for v in graph.sources
    ]


def _modules(
    types: Mapping[str, str], graph: Graph, keeps: KeepSets, macs: Iterable[Pair], gained: Iterable[tuple[str, Pair]]
) -> list[Module]:
    parameters: dict[str, list[Pair]] = defaultdict(list)
    for name, pair in (*_parameters(graph, keeps), *gained):
        parameters[name.rpartition(".")[0]].append(pair)
    own: dict[str, list[Pair]] = defaultdict(list)
    for node, pair in zip(graph.nodes, macs, strict=True):
        own[node.path if node.module is not None else node.scope].append(pair)
    return [Module(p, t, _total(parameters[p]), _total(own[p])) for p, t in types.items()]


def _parameters(graph: Graph, keeps: KeepSets) -> list[tuple[str, Pair]]:
    """The parameters with their numbers before and after."""
    found = [v for v in graph.sources if v.kind == "parameter"]
    return [(v.names[0], (prod(v.shape), prod(_shape(keeps, v)))) for v in found]


def _shape(keeps: KeepSets, value: Value) -> Shape:
    return keeps.shape(value) if value.is_read else value.shape


def _total(pairs: Sequence[Pair]) -> Pair:
    return sum(b for b, _ in pairs), sum(a for _, a in pairs)


def _kept(keeps: KeepSets, value: Value) -> dict[int, list[int]]:
    """Per axis the indices with anything kept, where not all are."""
    return keeps.lines(value).listed
