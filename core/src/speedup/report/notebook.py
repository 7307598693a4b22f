"""A report in a notebook: the table and the reasons as HTML without scripts."""

from __future__ import annotations

from html import escape

from speedup.report.data import Report, percent, place
from speedup.report.reasons import some
from speedup.report.text import changes, repair_lines
from speedup.report.tree import tree, visible

_BAR = "display:inline-block;width:8em;height:.7em;background:#8883;border-radius:2px;vertical-align:middle"
_FULL = "display:block;height:100%;background:#3b82f6;border-radius:2px"
_HEAD = ("module", "shape", "parameters", "MACs", "kept", "")


def to_html(report: Report) -> str:
    """The report as a piece of HTML, every name escaped."""
    shown, _ = visible(tree(report), None)
    rows = []
    for depth, row in shown:
        before, after = row.parameters if row.parameters[0] else row.macs
        share = after / before if before else 1.0
        name = escape(row.name if depth else row.type or "model")
        kind = f" <small>{escape(row.type)}</small>" if depth and row.type else ""
        bar = f'<span style="{_BAR}"><span style="{_FULL};width:{100 * min(share, 1):.1f}%"></span></span>'
        cells = [*map(escape, changes(row)), percent(after, before) if before else "", bar]
        rows.append(
            f'<tr><th style="text-align:left;font-weight:normal;padding-left:{depth + 0.5:.1f}em">{name}{kind}</th>'
            + "".join(f'<td style="text-align:right">{cell}</td>' for cell in cells)
            + "</tr>"
        )
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    notes = [report.conditioning, report.not_called, *repair_lines(report.repaired)]
    parts = [
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>",
        f"<p><b>{escape(report.headline)}</b></p>",
        *(f"<p>{escape(line)}</p>" for line in notes if line),
    ]
    if report.reasons:
        items = "".join(
            f"<li>{escape(f'{r.indices} indices, {r.parameters:,} parameters: {r.why}')}"
            f"<br><small>{escape(place(r.call, r.where))}; of {escape(some(r.layers, 3))}</small>"
            f"<br>{escape(r.advice)}</li>"
            for r in report.reasons
        )
        parts.append(f"<p>Masked output indices that stay, by reason:</p><ol>{items}</ol>")
    return f"<div>{''.join(parts)}</div>"
