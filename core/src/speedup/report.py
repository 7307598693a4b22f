"""What a plan does, for people: layers before and after, totals, and the reasons for what stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from speedup.ask import ask
from speedup.build import Parts
from speedup.drop import Dropped
from speedup.errors import SignatureError
from speedup.facts import Bools, all_of, along, any_of
from speedup.graph import Graph, Node, Value
from speedup.keep import KeepSets


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


@dataclass(frozen=True)
class Repaired:
    """A size in the code of a module that follows the plan: an attribute, or an argument of one call."""

    module: str
    what: str
    where: str


@dataclass
class Report:
    layers: list[Layer] = field(default_factory=list)
    find_stays: Callable[[], list[Kept]] = list
    barriers: list[str] = field(default_factory=list)
    gained: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    repaired: list[Repaired] = field(default_factory=list)
    parameters: tuple[int, int] = (0, 0)
    macs: tuple[int, int] = (0, 0)

    @cached_property
    def stays(self) -> list[Kept]:
        """Masked indices that stay, the most parameters first (found when first asked for)."""
        return sorted(self.find_stays(), key=lambda k: -k.parameters)

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
                {
                    "name": x.name,
                    "before": list(x.before),
                    "after": list(x.after),
                    "kept": {str(a): i for a, i in x.kept.items()},
                }
                for x in self.layers
            ],
            "gained": self.gained,
            "repaired": [vars(r) for r in self.repaired],
            "stays": [vars(k) for k in self.stays],
            "barriers": self.barriers,
            "dropped": [vars(d) for d in self.dropped],
            "changes": self.changes,
        }

    def __str__(self) -> str:
        rows = [("tensor", "before", "after", "kept")]
        for x in self.layers:
            if x.before != x.after:
                rows.append((x.name, _shape(x.before), _shape(x.after), _percent(prod(x.after), prod(x.before))))
        if len(rows) == 1:
            rows.append(("nothing becomes smaller", "", "", ""))
        widths = [max(len(r[i]) for r in rows) for i in range(4)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        lines.insert(1, "  ".join("-" * w for w in widths))
        lines += ["", self.headline]
        if self.gained:
            lines.append(f"gained: {', '.join(self.gained)}")
        if self.dropped:
            lines += ["", *self._dropped_lines()]
        lines += _repairs(self.repaired)
        if self.stays:
            lines += ["", explain(self)]
        return "\n".join(lines)

    def _dropped_lines(self) -> list[str]:
        lines = ["Constants that were dropped, not folded:"]
        for d in self.dropped:
            what = f"{d.indices} {'input' if d.indices == 1 else 'inputs'}"
            lines.append(f"  {what} of {d.name}, {d.where}: changes output {', '.join(map(str, d.outputs)) or 'none'}")
        moved = [f"output {i} by {e:.2g}" for i, e in enumerate(self.changes) if e > 0]
        return [*lines, f"On the dummy input, relative to the largest entry: {', '.join(moved) or 'nothing changes'}"]


def _repairs(repaired: Sequence[Repaired]) -> list[str]:
    """One line per place, with the modules that share it."""
    modules: dict[tuple[str, str], list[str]] = {}
    for r in repaired:
        modules.setdefault((r.what, r.where), []).append(r.module)
    lines = []
    for (what, where), paths in modules.items():
        inside = ", ".join(p or "the model" for p in paths[:3]) + (f" and {len(paths) - 3} more" if paths[3:] else "")
        lines.append(f"repaired: {what} ({_place(f'in {inside}', where)})")
    return lines


def _percent(after: int, before: int) -> str:
    return f"{100 * after / before:.1f}%" if before else "100.0%"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def summarize(graph: Graph, keeps: KeepSets, parts: Parts) -> Report:
    """Count and explain one plan."""
    report = Report(gained=sorted(parts.gained))
    before = after = 0
    for value in graph.sources:
        shape = keeps.shape(value) if value.uses else value.shape
        if value.kind == "parameter":
            before += prod(value.shape)
            after += prod(shape)
        report.layers.append(Layer(value.names[0], value.shape, shape, _kept(keeps, value) if value.uses else {}))
    report.parameters = (before, after + sum(t.numel() for t in parts.gained.values()))
    report.macs = _macs(graph, keeps)
    report.repaired = [Repaired(path, *line) for path, r in parts.repairs.items() for line in r.describe()]
    report.barriers = [f"{n.op_name} at {n.where}" + (f" ({n.note})" if n.note else "") for n in graph.barriers]
    report.find_stays = lambda: _stays(graph, keeps)
    return report


def _kept(keeps: KeepSets, value: Value) -> dict[int, list[int]]:
    """Per axis the indices with anything kept, where not all are."""
    return {axis: np.flatnonzero(line).tolist() for axis, line in keeps.lines(value).items()}


def _macs(graph: Graph, keeps: KeepSets) -> tuple[int, int]:
    before = after = 0
    for node in graph.nodes:
        if node.rule is not None:
            full = [v.shape if v is not None else None for v in node.values]
            small = [keeps.shape(v) if v is not None else None for v in node.values]
            macs = ask(node, "multiply_accumulates", full)
            before += macs
            after += ask(node, "multiply_accumulates", small) if small != full and macs else macs
    return before, after


def _stays(graph: Graph, keeps: KeepSets) -> list[Kept]:
    """Masked leading indices of parameters that are kept all the same, with the root of the reason."""
    found = []
    for value, masked in keeps.facts.masked.items():
        if value.ndim < 1 or not value.uses:
            continue
        inner = tuple(range(1, value.ndim))
        stay = np.broadcast_to(
            (all_of(masked, inner) & any_of(keeps.sets[value], inner)).reshape(-1), (value.shape[0],)
        )
        if not stay.any():
            continue
        each = prod(keeps.shape(value)[1:])
        node = value.uses[0][0]
        for why, where, part in _roots(node, value, stay, keeps):
            indices = [int(i) for i in np.flatnonzero(part)]
            found.append(Kept(value.names[0], indices, why, where, each * len(indices)))
    return found


def _roots(node: Node, weight: Value, stay: Bools, keeps: KeepSets) -> list[tuple[str, str, Bools]]:
    """Split leading indices of a weight by the reason that they stay for, followed to where it starts."""
    found: dict[tuple[str, str], Bools] = {}
    start = stay.reshape([-1] + [1] * (weight.ndim - 1))
    out, named = _made_by(node, weight)
    # What is still to be explained: a value, a mask on it (None: not known any more), the weight's indices behind it,
    # and the event that asked for it.
    queue: list[tuple[Value, Bools | None, Bools, int | None]]
    queue = [(out, named(start), stay, None) if out is not None else (weight, start, stay, None)]
    seen: set[Value] = set()
    while queue:
        value, at, part, asked = queue.pop()
        seen.add(value)
        events = keeps.events_of(value)
        if at is None and asked is not None:
            # Entries cannot be followed across a change of shape: the newest event before was the trigger.
            events = [e for e in events if e.order < asked][-1:] or events[:1]
        for event in events:
            if not part.any():
                break
            mine = part
            if at is not None:
                hit = at & event.added
                if not hit.any():
                    continue
                mine = part & _back(hit, at, part)
            part = part & ~mine
            where = event.node.where if event.node is not None else ""
            why = event.why + (f" ({event.node.label})" if event.node is not None else "")
            if event.cause is not None and event.cause not in seen:
                same = at is not None and event.cause.shape == value.shape
                queue.append((event.cause, at if same else None, mine, event.order))
                continue
            found[(why, where)] = found.get((why, where), np.zeros_like(stay)) | mine
    return [(why, where, part) for (why, where), part in found.items() if part.any()]


def _back(hit: Bools, at: Bools, part: Bools) -> Bools:
    """The leading indices of the weight behind the entries of ``at`` that were hit."""
    lines = [a for a, s in enumerate(at.shape) if s == len(part) and s > 1]
    if not lines:
        return part
    return along(np.broadcast_to(hit, np.broadcast_shapes(hit.shape, at.shape)), lines[0])


def _made_by(node: Node, weight: Value) -> tuple[Value | None, Callable[[Bools], Bools]]:
    """The output that a weight's leading indices make, and how to bring a mask there."""
    if node.rule is None or len(node.outputs) != 1 or weight not in node.operands:
        return None, lambda mask: mask
    try:
        layout = node.layout
    except SignatureError:
        return None, lambda mask: mask
    k, out = node.operands.index(weight), layout.n_inputs
    away = layout.axes(set(layout.names) - (layout.names_of(k) & layout.names_of(out)))
    return node.outputs[0], lambda mask: layout.from_named(out, any_of(layout.to_named(k, mask), away))


def explain(report: Report, name: str | None = None) -> str:
    """The reasons, ranked by parameters, for what stays though it is masked; and the repairs of a module."""
    repaired = [
        r for r in report.repaired if name is not None and (r.module == name or r.module.startswith(f"{name}."))
    ]
    return "\n".join([_explain(report, name), *_repairs(repaired)])


def _explain(report: Report, name: str | None) -> str:
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
        return "\n".join(
            f"{k.name}: {_indices(len(k.indices), 'masked ')} {k.indices}: {_place(k.why, k.where)}" for k in chosen
        )
    lines = ["Masked output indices that stay, by reason:"]
    totals: Counter[tuple[str, str]] = Counter()
    numbers: Counter[tuple[str, str]] = Counter()
    for k in chosen:
        totals[(k.why, k.where)] += k.parameters
        numbers[(k.why, k.where)] += len(k.indices)
    for (why, where), parameters in totals.most_common():
        lines.append(f"  {_indices(numbers[(why, where)])}, {parameters:,} parameters: {_place(why, where)}")
    if any("no rule knows" in why for why, _ in totals):
        lines.append("A rule for an op that has none takes about ten lines: docs/write-a-plugin.md")
    return "\n".join(lines)


def _place(why: str, where: str) -> str:
    return f"{why}, {where}" if where else why


def _indices(count: int, kind: str = "") -> str:
    return f"1 {kind}index stays" if count == 1 else f"{count} {kind}indices stay"
