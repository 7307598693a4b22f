"""From the records of the engine to a report: counts, modules, repairs. What takes long is found when asked for."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from math import prod

from torch import nn

from speedup import walk
from speedup.build import Parts
from speedup.graph import Graph, Value
from speedup.keep import KeepSets
from speedup.report.counts import count_macs
from speedup.report.data import Layer, Module, Pair, Repaired, Report
from speedup.report.picture import picture
from speedup.report.stays import find_stays


def summarize(model: nn.Module, graph: Graph, keeps: KeepSets, parts: Parts) -> Report:
    """Count and explain one plan."""
    report = Report(gained=sorted(parts.gained), effects=list(graph.effects), uncalled=graph.uncalled)
    types = {path: type(module).__name__ for path, module in walk.named_modules(model)}
    parameters: dict[str, list[Pair]] = defaultdict(list)
    for value in graph.sources:
        shape = keeps.shape(value) if value.is_read else value.shape
        name = value.names[0]
        if value.kind == "parameter":
            parameters[_owner(name)].append((prod(value.shape), prod(shape)))
        report.layers.append(Layer(name, value.shape, shape, _kept(keeps, value) if value.is_read else {}, value.kind))
    for name, tensor in parts.gained.items():
        parameters[_owner(name)].append((0, tensor.numel()))
    macs: dict[str, list[Pair]] = defaultdict(list)
    for node in graph.nodes:
        macs[node.path if node.module is not None else node.scope].append(count_macs(node, keeps))
    report.modules = [Module(p, t, _total(parameters[p]), _total(macs[p])) for p, t in types.items()]
    report.parameters = _total([pair for pairs in parameters.values() for pair in pairs])
    report.macs = _total([pair for pairs in macs.values() for pair in pairs])
    report.repaired = [Repaired(path, *line) for path, r in parts.repairs.items() for line in r.describe()]
    report.barriers = [f"{n.op_name} at {n.where}" + (f" ({n.note})" if n.note else "") for n in graph.barriers]
    report.find_stays = partial(find_stays, graph, keeps)
    report.find_page = partial(picture, report, graph, keeps)
    return report


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _total(pairs: list[Pair]) -> Pair:
    return sum(b for b, _ in pairs), sum(a for _, a in pairs)


def _kept(keeps: KeepSets, value: Value) -> dict[int, list[int]]:
    """Per axis the indices with anything kept, where not all are."""
    return keeps.lines(value).listed
