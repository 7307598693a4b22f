"""A report as text: a table that fits the terminal, totals, the reasons with what to do about them."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from speedup.report.data import Kept, Pair, Repaired, Report, percent, place, shape_text
from speedup.report.reasons import Reason, some
from speedup.report.tree import Row, tree, visible

if TYPE_CHECKING:
    from speedup.fast.told import Fusing

_NARROWEST, _DEFAULT, _WIDEST = 40, 100, 140
_GAP = "  "
_REASONS = 6
_REPAIRS = 8


def render(report: Report, width: int | None = None, depth: int | None = None, color: bool = False) -> str:
    """The whole report, no line wider than ``width`` columns."""
    width = _width(width)
    lines = [*_table(report, width, depth, color), "", *_wrapped(report.headline, width)]
    if report.gained:
        lines += _wrapped(f"gained: {some(report.gained, 8)}", width)
    if report.dropped:
        lines += ["", *_dropped_lines(report, width)]
    lines += _wrapped(report.conditioning, width) + _wrapped(report.not_called, width)
    repaired = repair_lines(report.repaired)
    lines += [line for each in repaired[:_REPAIRS] for line in _wrapped(each, width)]
    if repaired[_REPAIRS:]:
        lines.append(f"and {len(repaired) - _REPAIRS} more repairs: plan.report.repaired")
    if report.channels_last:
        lines += _wrapped(f"channels last: {some(report.channels_last, 4)}", width)
    lines += [line for each in fusing_lines(report.fusing)[:_REPAIRS] for line in _wrapped(each, width)]
    if report.stays:
        lines += ["", *_reason_lines(report.reasons, _REASONS, width, color)]
    return "\n".join(lines)


def explain(report: Report, name: str | None = None) -> str:
    """The reasons, ranked by parameters, for what stays though it is masked; and the repairs of a module."""
    if name is None:
        lines = ["Everything that is masked in whole output indices goes."]
        if report.stays:
            lines = _reason_lines(report.reasons, None, _width(None), False)
        return "\n".join([*lines, *_wrapped(report.not_called, _width(None)), *fusing_lines(report.fusing)])

    def of_it(path: str) -> bool:
        return path == name or path.startswith(f"{name}.")

    repaired = [r for r in report.repaired if of_it(r.module)]
    return "\n".join([*_explain(report, name), *repair_lines(repaired), *fusing_lines(report.fusing, of_it)])


def _explain(report: Report, name: str) -> list[str]:
    chosen = [k for k in report.stays if k.name == name or k.name.startswith(name + ".")]
    if chosen:
        return [_kept_line(k) for k in chosen]
    known = [x for x in report.layers if x.name == name or x.name.startswith(name + ".")]
    if not known:
        return [f"The model has no parameter or module {name!r}."]
    if any(name == path or name.startswith(f"{path}.") for path in report.uncalled):
        return [f"{name} is not called on the dummy input: nothing is known of it, and it stays as it is."]
    shapes = "; ".join(f"{x.name} {shape_text(x.before)} -> {shape_text(x.after)}" for x in known)
    return [f"No masked index of {name} stays. {shapes}"]


def _kept_line(k: Kept) -> str:
    why = f"{k.why} ({k.call})" if k.call else k.why
    alike = f"; mask {some(k.partners, 4)} alike" if k.partners else ""
    along = f" along axis {k.axis}" if k.axis else ""
    return f"{k.name}: {_indices(len(k.indices), 'masked ')}{along} {k.indices}: {place(why, k.where)}{alike}"


def _indices(count: int, kind: str = "") -> str:
    return f"1 {kind}index stays" if count == 1 else f"{count:,} {kind}indices stay"


# -- the table --------------------------------------------------------------------------------------------------------


def _table(report: Report, width: int, depth: int | None, color: bool) -> list[str]:
    top = tree(report)
    shown, whole = visible(top, depth)
    if not top.changed:
        return ["nothing becomes smaller"]
    full, empty = _bars()
    for bar, columns, types in _layouts():
        rows = [_cells(d, row, columns, types) for d, row in shown]
        rows.insert(0, ["module", *columns])
        widths = [max(len(r[i]) for r in rows) for i in range(len(columns) + 1)]
        if sum(widths) + len(_GAP) * len(columns) + (bar + len(_GAP) if bar else 0) <= width:
            break
    else:
        widths[0] = max(8, width - sum(widths[1:]) - len(_GAP) * len(columns))
    lines = []
    for number, cells in enumerate(rows):
        cells[0] = cells[0] if len(cells[0]) <= widths[0] else cells[0][: widths[0] - 2] + ".."
        line = cells[0].ljust(widths[0])
        line += "".join(
            _GAP + (c.ljust(w) if name == "shape" else c.rjust(w))
            for c, w, name in zip(cells[1:], widths[1:], columns, strict=True)
        )
        if number == 0:
            lines += [line.rstrip(), *([_GAP.join("-" * w for w in widths) + (_GAP + "-" * bar if bar else "")])]
            continue
        before, after = _measure(shown[number - 1][1])
        if bar and before:
            kept = min(bar, max(round(bar * after / before), 1 if after else 0))
            line += _GAP + _painted(full * kept, after / before, color) + empty * (bar - kept)
        lines.append(line.rstrip())
    if not whole:
        lines.append("(modules further inside are summed up; plan.report.text(depth=...) shows them)")
    return lines


def _layouts() -> list[tuple[int, list[str], bool]]:
    """What is shown, from wide to narrow: the length of the bar, the columns, the classes of modules."""
    full = ["shape", "parameters", "MACs", "kept"]
    return [
        (12, full, True),
        (12, full, False),
        (8, full, False),
        (8, ["shape", "parameters", "kept"], False),
        (8, ["parameters", "kept"], False),
        (0, ["parameters", "kept"], False),
        (0, ["kept"], False),
    ]


def _cells(depth: int, row: Row, columns: Sequence[str], types: bool) -> list[str]:
    name = row.name if depth else row.type or "model"
    name = f"{'  ' * depth}{name}" + (f" ({row.type})" if types and depth and row.type else "")
    before, after = _measure(row)
    shape, parameters, macs = changes(row)
    kept = percent(after, before) if before else ""
    cells = {"shape": shape, "parameters": parameters, "MACs": macs, "kept": kept}
    return [name, *(cells[c] for c in columns)]


def changes(row: Row) -> tuple[str, str, str]:
    """What a row says of its shape, its parameters and its MACs."""
    shape = "" if row.shapes is None else _change(*map(shape_text, row.shapes))
    return shape, _numbers(row.parameters), _numbers(row.macs)


def _measure(row: Row) -> Pair:
    return row.parameters if row.parameters[0] else row.macs


def _numbers(pair: Pair) -> str:
    return _change(*map(short, pair)) if any(pair) else ""


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def short(number: int) -> str:
    """A count in at most six characters: 9,408, 25.6 M."""
    if number < 10_000:
        return f"{number:,}"
    for unit in ("k", "M", "G", "T"):
        number_in = number / 1000 ** ("kMGT".index(unit) + 1)
        if number_in < 999.5 or unit == "T":
            break
    digits = 2 if number_in < 9.995 else 1 if number_in < 99.95 else 0
    return f"{number_in:.{digits}f} {unit}"


def _bars() -> tuple[str, str]:
    """What bars are drawn with, where the output can write it."""
    try:
        "█░".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return "#", "."
    return "█", "░"


def _painted(text: str, share: float, color: bool) -> str:
    if not color:
        return text
    return f"\x1b[{32 if share < 0.5 else 33 if share < 1 else 90}m{text}\x1b[0m"


# -- sentences --------------------------------------------------------------------------------------------------------


def _reason_lines(reasons: Sequence[Reason], most: int | None, width: int, color: bool) -> list[str]:
    lines = _wrapped("Masked output indices that stay, by reason:", width)
    for number, r in enumerate(reasons[:most], 1):
        what = f"{number}. {_indices(r.indices)}, {r.parameters:,} parameters: {r.why}"
        lines += _wrapped(f"\x1b[1m{what}\x1b[0m" if color else what, width, "  ", "     ")
        at = place(r.call, r.where)
        lines += _wrapped(f"at {at}" if at else "", width, "     ", "     ")
        lines += _wrapped(f"of {some(r.layers, 3)}", width, "     ", "     ")
        lines += _wrapped(f"-> {r.advice}" if r.advice else "", width, "     ", "        ")
    if most is not None and reasons[most:]:
        rest = reasons[most:]
        lines.append(f"  and {len(rest)} more, {sum(r.parameters for r in rest):,} parameters: plan.explain()")
    return lines


def repair_lines(repaired: Sequence[Repaired]) -> list[str]:
    """One line per place, with the modules that share it."""
    modules: dict[tuple[str, str], list[str]] = {}
    for r in repaired:
        modules.setdefault((r.what, r.where), []).append(r.module or "the model")
    return [f"repaired: {what} ({place(f'in {some(m, 3)}', where)})" for (what, where), m in modules.items()]


def fusing_lines(fusing: Fusing | None, of_it: Callable[[str], bool] = bool) -> list[str]:
    """What was fused, and a line for each reason why something was not.

    Args:
        of_it: which modules to tell of.
    """
    if fusing is None:
        return []
    into = [f"{f.module} into {some(f.into, 3)}" for f in fusing.fused if f.into and of_it(f.module)]
    gone = [f.module for f in fusing.fused if not f.into and of_it(f.module)]
    lines = [f"fused: {some(into, 4)}"] if into else []
    lines += [f"dropped, for they change nothing: {some(gone, 8)}"] if gone else []
    plain = [f"{f.module} ({some(f.into, 3)})" for f in fusing.plain if of_it(f.module)]
    lines += [f"plain now, for the weights behind them do the rest: {some(plain, 4)}"] if plain else []
    fixed = [path for path in fusing.fixed if of_it(path)]
    lines += [f"fixed, for they give the same for every input: {some(fixed, 8)}"] if fixed else []
    reasons: dict[str, list[str]] = {}
    for stays in fusing.stays:
        if of_it(stays.module):
            reasons.setdefault(stays.why, []).append(stays.module)
    return lines + [f"not fused: {some(modules, 4)}: {why}" for why, modules in reasons.items()]


def _dropped_lines(report: Report, width: int) -> list[str]:
    lines = ["Constants that were dropped, not folded:"]
    for d in report.dropped:
        what = f"{d.indices} {'input' if d.indices == 1 else 'inputs'}"
        outputs = ", ".join(map(str, d.outputs)) or "none"
        lines += _wrapped(f"{what} of {d.name}, {d.where}: changes output {outputs}", width, "  ", "    ")
    moved = [f"output {i} by {e:.2g}" for i, e in enumerate(report.changes) if e > 0]
    change = ", ".join(moved) or "nothing changes"
    return [*lines, *_wrapped(f"On the dummy input, relative to the largest entry: {change}", width)]


def _wrapped(text: str, width: int, first: str = "", later: str = "  ") -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )


def _width(width: int | None) -> int:
    if width is None:
        width = min(shutil.get_terminal_size((_DEFAULT, 24)).columns, _WIDEST)
    return max(width, _NARROWEST)
