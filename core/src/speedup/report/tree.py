"""The modules of a report as the rows of a table: a tree, with what is inside summed up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

from speedup.report.data import Layer, Module, Pair, Report

_ROWS = 60


@dataclass(eq=False)
class Row:
    """A module, or a parameter that a module with others inside holds itself.

    Attributes:
        shapes: of the tensor that stands for it, before and after; None where none does.
        parameters, macs: with all that is inside.
    """

    path: str
    name: str
    type: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    parameters: Pair = (0, 0)
    macs: Pair = (0, 0)
    rows: list[Row] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether anything of it became smaller."""
        whole = self.shapes is None or self.shapes[0] == self.shapes[1]
        return self.parameters[0] != self.parameters[1] or self.macs[0] != self.macs[1] or not whole

    @property
    def empty(self) -> bool:
        """Whether it neither holds nor computes anything."""
        return not (self.parameters[0] or self.parameters[1] or self.macs[0] or self.shapes)


def tree(report: Report) -> Row:
    """The model as a row, with the rows of its modules inside."""
    own: dict[str, list[Layer]] = {}
    for layer in report.layers:
        own.setdefault(layer.name.rpartition(".")[0], []).append(layer)
    rows: dict[str, Row] = {}
    modules = report.modules or [Module("", "")]
    for module in modules:
        row = rows[module.path] = Row(module.path, module.path.rpartition(".")[2], module.type)
        if module.path:
            rows[_holder(module.path, rows)].rows.append(row)
    for module in reversed(modules):
        row = rows[module.path]
        _hold(row, own.get(module.path, []))
        inside = [r for r in row.rows if r.type]
        row.parameters = _sum([module.parameters, *(r.parameters for r in inside)])
        row.macs = _sum([module.macs, *(r.macs for r in inside)])
    return rows[""]


def _holder(path: str, rows: dict[str, Row]) -> str:
    """The module around: a shared one may stand below a name that has no row of its own."""
    while path:
        path = path.rpartition(".")[0]
        if path in rows:
            return path
    return ""


def _hold(row: Row, own: Sequence[Layer]) -> None:
    """Put a module's own tensors where they belong: one stands for a leaf, those of others get rows."""
    parameters = [x for x in own if x.kind == "parameter"]
    if row.rows:
        for x in reversed(parameters):
            pair = prod(x.before), prod(x.after)
            row.rows.insert(0, Row(x.name, x.name.rpartition(".")[2], "", (x.before, x.after), pair))
    elif own:
        named = [x for x in own if x.name.rpartition(".")[2] == "weight"]
        x = max(named or parameters or own, key=lambda x: (len(x.before), prod(x.before)))
        row.shapes = x.before, x.after


def _sum(pairs: Sequence[Pair]) -> Pair:
    return sum(b for b, _ in pairs), sum(a for _, a in pairs)


def visible(top: Row, depth: int | None) -> tuple[list[tuple[int, Row]], bool]:
    """Rows with their depth, and whether all are there.

    Args:
        depth: how deep; None for as deep as fits.
    """
    if depth is None:
        deepest = max(d for d, _ in _walk(top, None))
        depth = next((d for d in range(deepest, 0, -1) if len(list(_walk(top, d))) <= _ROWS), 1)
    shown = list(_walk(top, depth))
    return shown, all(d < depth or not any(not r.empty for r in row.rows) or not row.changed for d, row in shown)


def _walk(row: Row, most: int | None, depth: int = 0) -> Iterator[tuple[int, Row]]:
    """Rows from the top. What is inside of a module that stayed as it was is summed up in its row."""
    yield depth, row
    if (most is None or depth < most) and row.changed:
        for inner in row.rows:
            if not inner.empty:
                yield from _walk(inner, most, depth + 1)
