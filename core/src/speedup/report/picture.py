"""A plan as a picture: the calls, what flows between them, and what becomes of every index; plain data for the page."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any

from speedup.graph import Graph
from speedup.keep import KeepSets
from speedup.node import Node, Value
from speedup.report.counts import count_macs
from speedup.report.strips import Strips

if TYPE_CHECKING:
    from speedup.report.data import Report


def picture(report: Report, graph: Graph, keeps: KeepSets) -> dict[str, Any]:
    """Everything that the page shows, for JSON.

    Modules, calls and reasons are referred to by path, number and rank. Strips (what becomes of the indices along an
    axis) are the same for many tensors, so they stand in a table of their own.
    """
    strips = Strips(report, keeps)
    values: dict[Value, int] = {v: number for number, v in enumerate(_values(graph))}
    calls = [_call(node, values, report, keeps) for node in graph.nodes]
    return {
        "title": report.modules[0].type if report.modules else "",
        "headline": report.headline,
        "conditioning": report.conditioning,
        "not_called": report.not_called,
        "parameters": list(report.parameters),
        "macs": list(report.macs),
        "modules": [[m.path, m.type, *m.parameters, *m.macs] for m in report.modules],
        "calls": calls,
        "values": [_value(v, keeps, strips) for v in values],
        "inputs": [values[v] for v in graph.inputs if v in values],
        "outputs": [values[v] for v in graph.outputs if v in values and not v.is_source],
        "reasons": [r.to_dict() for r in report.reasons],
        "repaired": [vars(r) for r in report.repaired],
        "gained": report.gained,
        "dropped": [vars(d) for d in report.dropped],
        "strips": strips.patterns,
        "whys": strips.whys,
    }


def _values(graph: Graph) -> Iterator[Value]:
    """The values that a call makes or reads, or that come from outside."""
    return (v for v in graph.values if v.uses or v.producer is not None or v.is_output or v.kind == "input")


def _call(node: Node, values: dict[Value, int], report: Report, keeps: KeepSets) -> dict[str, Any]:
    inputs = [v for v in dict.fromkeys(node.tensors) if v in values]
    here = [r for r in report.repaired if r.where and r.module == node.scope and r.where == node.where]
    repaired = [r.what for r in here if r.what.startswith(f"{node.op_name}: ")]
    made: dict[str, Any] = {
        "op": node.op_name,
        "path": node.path if node.module is not None else None,
        "scope": node.scope,
        "where": node.where,
        "macs": list(count_macs(node, keeps)),
        "in": [values[v] for v in inputs if v.tensor is None],
        "held": [values[v] for v in inputs if v.tensor is not None],
        "out": [values[v] for v in node.outputs if v in values],
    }
    if node.is_barrier:
        made["barrier"] = node.note or "no rule knows this op"
    if repaired:
        made["repaired"] = repaired
    return made


def _value(value: Value, keeps: KeepSets, strips: Strips) -> dict[str, Any]:
    shape = keeps.shape(value)
    made: dict[str, Any] = {"before": list(value.shape), "after": list(shape)}
    if value.names:
        made["names"] = list(value.names)
    elif value.kind != "activation":
        made["names"] = [value.kind]
    if value.kind == "parameter":
        made["parameter"] = True
    if prod(shape) != prod(value.shape):
        made["left"] = round(prod(shape) / max(prod(value.shape), 1), 4)
    found = strips.of(value)
    if found:
        made["strips"] = found
    return made
