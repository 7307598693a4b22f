"""Tables as text and as Markdown."""

import pytest

from demo import tables
from demo.tables import Table

TABLE = Table("Latency", ["Times", "Mask"], [["1", "0.5"], ["32", "10.25"]])


def test_text_is_aligned() -> None:
    assert TABLE.text().splitlines() == [
        "Latency",
        "Times   Mask",
        "-----  -----",
        "1        0.5",
        "32     10.25",
    ]


def test_markdown_is_aligned_and_escaped() -> None:
    assert TABLE.markdown().splitlines() == [
        "**Latency**",
        "",
        "| Times |  Mask |",
        "| ----- | ----: |",
        "| 1     |   0.5 |",
        "| 32    | 10.25 |",
    ]
    assert "| a\\|b |" in Table("", ["a|b"], []).markdown()


def test_rows_must_fit() -> None:
    with pytest.raises(ValueError, match="2 columns, but a row of 1"):
        Table("t", ["a", "b"], [["1"]])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.05008, "0.05008"), (0.01197, "0.01197"), (3.14159, "3.142"), (25.0, "25.00"), (0.00001234, "1.234e-05")],
)
def test_seconds_have_four_digits(value: float, text: str) -> None:
    assert tables.seconds(value) == text


def test_units() -> None:
    assert [tables.quantity(n) for n in (12, 431_220, 20_298_698, 2 * 10**9)] == ["12", "431 k", "20.30 M", "2.00 G"]
    assert tables.megabytes(81_300_000) == "81.30 MB"
    assert tables.percent(0.9722) == "97.2 %"
    assert tables.factor(5.4) == "5.40x"
