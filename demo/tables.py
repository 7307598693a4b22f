"""Tables as aligned plain text and as Markdown, from rows of cells."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A title, column names, and rows of finished text. The first column is set left, the others right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title!r} has {len(self.columns)} columns, but a row of {len(row)}: {row}")

    def text(self) -> str:
        """The table for a terminal: columns aligned, a line under their names."""
        widths = self._widths(self.rows)
        lines = [self._line(self.columns, widths), "  ".join("-" * width for width in widths)]
        lines += [self._line(row, widths) for row in self.rows]
        return "\n".join([self.title, *(line.rstrip() for line in lines)])

    def markdown(self) -> str:
        """The table in Markdown, aligned in its source too; `|` in a cell is escaped."""
        columns = [_escape(cell) for cell in self.columns]
        rows = [[_escape(cell) for cell in row] for row in self.rows]
        widths = [max(3, width) for width in self._widths([columns, *rows])]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        lines = [f"| {' | '.join(_pad(row, widths))} |" for row in (columns, rule, *rows)]
        return "\n".join([f"**{self.title}**", "", *lines])

    def _widths(self, rows: Sequence[Sequence[str]]) -> list[int]:
        return [max(len(cell) for cell in column) for column in zip(self.columns, *rows, strict=True)]

    @staticmethod
    def _line(row: Sequence[str], widths: Sequence[int]) -> str:
        return "  ".join(_pad(row, widths))


def seconds(value: float) -> str:
    """Seconds with four significant digits, as the published tables have them: `0.05008`, `3.142`."""
    return f"{value:.4g}" if value >= 1000 or value < 1e-4 else f"{value:.{max(0, 3 - _magnitude(value))}f}"


def quantity(value: int) -> str:
    """A count in thousands, millions or billions: `431 k`, `20.30 M`."""
    for unit, name, digits in ((10**9, "G", 2), (10**6, "M", 2), (10**3, "k", 0)):
        if value >= unit:
            return f"{value / unit:.{digits}f} {name}"
    return str(value)


def megabytes(value: int) -> str:
    """Bytes as megabytes (10^6): `81.30 MB`."""
    return f"{value / 1e6:.2f} MB"


def percent(value: float) -> str:
    """A share of 1 as a percentage: `97.2 %`."""
    return f"{100 * value:.1f} %"


def factor(value: float) -> str:
    """How many times: `5.40x`."""
    return f"{value:.2f}x"


def _magnitude(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|")


def _pad(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.rjust(width) if index else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
