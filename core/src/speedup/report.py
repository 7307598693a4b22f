"""What a plan does, for people: layers before and after, totals, and the reasons for what stays."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from speedup.build import Parts
from speedup.facts import Bools
from speedup.graph import Graph, Node, Value
from speedup.keep import KeepSets
from speedup.regular import kept_shape


@dataclass(frozen=True)
class Layer:
    """One parameter or buffer before and after."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    kept: dict[int, list[int]]


@dataclass(frozen=True)
class Kept:
    """Masked output indices of a layer that stay, and why."""

    name: str
    indices: list[int]
    why: str
    where: str
    parameters: int


@dataclass
class Report:
    layers: list[Layer] = field(default_factory=list)
    stays: list[Kept] = field(default_factory=list)
    barriers: list[str] = field(default_factory=list)
    gained: list[str] = field(default_factory=list)
    parameters: tuple[int, int] = (0, 0)
    macs: tuple[int, int] = (0, 0)

    @property
    def headline(self) -> str:
        (p0, p1), (m0, m1) = self.parameters, self.macs
        return f"parameters {p0:,} -> {p1:,} ({_percent(p1, p0)}), MACs {m0:,} -> {m1:,} ({_percent(m1, m0)})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": 1,
            "parameters": list(self.parameters),
            "macs": list(self.macs),
            "tensors": [
                {"name": x.name, "before": list(x.before), "after": list(x.after), "kept": {str(a): i for a, i in x.kept.items()}}
                for x in self.layers
            ],
            "gained": self.gained,
            "stays": [vars(k) for k in self.stays],
            "barriers": self.barriers,
        }

    def __str__(self) -> str:
        rows = [("tensor", "before", "after", "kept")]
        for x in self.layers:
            if x.before != x.after:
                rows.append((x.name, _shape(x.before), _shape(x.after), _percent(prod(x.after), prod(x.before))))
        widths = [max(len(r[i]) for r in rows) for i in range(4)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        lines.insert(1, "  ".join("-" * w for w in widths))
        lines += ["", self.headline]
        if self.gained:
            lines.append(f"gained: {', '.join(self.gained)}")
        if self.stays:
            lines += ["", explain(self)]
        return "\n".join(lines)


def _percent(after: int, before: int) -> str:
    return f"{100 * after / before:.1f}%" if before else "100.0%"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def summarize(graph: Graph, keeps: KeepSets, parts: Parts) -> Report:
    """Count and explain one plan."""
    report = Report(gained=sorted(parts.gained))
    before = after = 0
    for value in graph.sources:
        keep = keeps.sets[value] if value.uses else np.ones((1,) * value.ndim, dtype=bool)
        shape = kept_shape(keep, value.shape)
        if value.kind == "parameter":
            before += prod(value.shape)
            after += prod(shape)
        report.layers.append(Layer(value.names[0], value.shape, shape, _kept(keep) if value.uses else {}))
    report.parameters = (before, after + sum(t.numel() for t in parts.gained.values()))
    report.macs = _macs(graph, keeps)
    report.barriers = [f"{n.op_name} at {n.where}" + (f" ({n.note})" if n.note else "") for n in graph.barriers]
    report.stays = sorted(_stays(graph, keeps), key=lambda k: -k.parameters)
    return report


def _kept(keep: Bools) -> dict[int, list[int]]:
    """Per axis the indices with anything kept, where not all are."""
    found = {}
    for axis, size in enumerate(keep.shape):
        if size > 1:
            line = keep.any(axis=tuple(a for a in range(keep.ndim) if a != axis))
            if not line.all():
                found[axis] = [int(i) for i in np.flatnonzero(line)]
    return found


def _macs(graph: Graph, keeps: KeepSets) -> tuple[int, int]:
    before = after = 0
    for node in graph.nodes:
        if node.rule is not None:
            full = [v.shape if v is not None else None for v in node.values]
            small = [kept_shape(keeps.sets[v], v.shape) if v is not None else None for v in node.values]
            macs = node.rule.multiply_accumulates(node, full)
            before += macs
            after += node.rule.multiply_accumulates(node, small) if small != full and macs else macs
    return before, after


def _stays(graph: Graph, keeps: KeepSets) -> list[Kept]:
    """Masked leading indices of parameters that are kept all the same, with the root of the reason."""
    found = []
    for value, masked in keeps.facts.masked.items():
        if value.ndim < 1 or not value.uses:
            continue
        whole = masked.all(axis=tuple(range(1, value.ndim)))
        kept = keeps.sets[value].any(axis=tuple(range(1, value.ndim)))
        stay = np.broadcast_to(whole & kept, (value.shape[0],))
        if not stay.any():
            continue
        node = value.uses[0][0]
        by_reason: dict[tuple[str, str], list[int]] = {}
        for index in np.flatnonzero(stay):
            by_reason.setdefault(_root(node, value, int(index), keeps), []).append(int(index))
        each = prod(kept_shape(keeps.sets[value], value.shape)[1:])
        found += [Kept(value.names[0], i, why, where, each * len(i)) for (why, where), i in by_reason.items()]
    return found


def _root(node: Node, weight: Value, index: int, keeps: KeepSets) -> tuple[str, str]:
    """Follow the reasons from a weight's index to where they start."""
    value, at = _output_entry(node, weight, index)
    if value is None:
        value, at = weight, _slot(weight, 0, index)
    seen: set[Value] = set()
    why, where = "its layer keeps it", node.where
    while value not in seen:
        seen.add(value)
        event = next((e for e in keeps.events[value] if at is None or (e.added & _fit(at, e.added)).any()), None)
        if event is None:
            break
        why, where = event.why, event.node.where if event.node is not None else ""
        if event.node is not None:
            why = f"{why} ({event.node.label})"
        if event.cause is None:
            break
        value, at = event.cause, None if event.cause.shape != value.shape else at
    return why, where


def _output_entry(node: Node, weight: Value, index: int) -> tuple[Value | None, Bools | None]:
    """The entries of the node's output that a leading index of a weight makes."""
    if node.rule is None or len(node.outputs) != 1 or weight not in node.operands:
        return None, None
    try:
        layout = node.layout
    except Exception:
        return None, None
    k = node.operands.index(weight)
    out = layout.n_inputs
    slot = layout.to_named(k, _slot(weight, 0, index))
    shared = layout.axes(set(layout.names) - (layout.names_of(k) & layout.names_of(out)))
    return node.outputs[0], layout.from_named(out, slot.any(axis=shared, keepdims=True))


def _slot(value: Value, axis: int, index: int) -> Bools:
    mask = np.zeros([value.shape[axis] if a == axis else 1 for a in range(value.ndim)], dtype=bool)
    mask[tuple(index if a == axis else 0 for a in range(value.ndim))] = True
    return mask


def _fit(at: Bools, like: Bools) -> Bools:
    """A mask reduced to the axes that another one writes out."""
    return at.any(axis=tuple(a for a in range(at.ndim) if like.shape[a] == 1), keepdims=True)


def explain(report: Report, name: str | None = None) -> str:
    """The reasons, ranked by parameters, for what stays though it is masked."""
    chosen = [k for k in report.stays if name is None or k.name == name or k.name.startswith(name + ".")]
    if not chosen:
        if name is None:
            return "Everything that is masked in whole output indices goes."
        known = [x for x in report.layers if x.name == name or x.name.startswith(name + ".")]
        if not known:
            return f"The model has no parameter or module {name!r}."
        shapes = "; ".join(f"{x.name} {_shape(x.before)} -> {_shape(x.after)}" for x in known)
        return f"No masked index of {name} stays. {shapes}"
    if name is not None:
        return "\n".join(f"{k.name}: {len(k.indices)} masked indices stay {k.indices}: {k.why}, {k.where}" for k in chosen)
    lines = ["Masked output indices that stay, by reason:"]
    totals: Counter[tuple[str, str]] = Counter()
    numbers: Counter[tuple[str, str]] = Counter()
    for k in chosen:
        totals[(k.why, k.where)] += k.parameters
        numbers[(k.why, k.where)] += len(k.indices)
    for (why, where), parameters in totals.most_common():
        lines.append(f"  {numbers[(why, where)]} indices, {parameters:,} parameters: {why}, {where}")
    return "\n".join(lines)
