"""Minimality: of small networks with a known optimum exactly the smallest part is left, and it is equal.

The cases are in `tests/minimal`, each with the reason why no less will do. They are shown in `docs/proof.md`;
`python -m tests.test_minimal` writes that table anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import nn

from speedup import Registry
from speedup.testing import Result, check_equal
from tests.minimal import CASES, Minimal

pytestmark = pytest.mark.filterwarnings("ignore:.*masked whole:UserWarning")
PROOF = Path(__file__).parents[1] / "docs" / "proof.md"


def sped_up(case: Minimal, registry: Registry | None = None) -> Result:
    model = case.model()
    dummy, other = case.inputs()
    return check_equal(model, dummy, case.masks(model), [other], registry)


def parametrized() -> list[object]:
    marks = {c.name: pytest.mark.xfail(reason=c.gap, strict=True) for c in CASES if c.gap}
    return [pytest.param(c, id=c.name, marks=[marks[c.name]] if c.name in marks else []) for c in CASES]


@pytest.mark.parametrize("case", parametrized())
def test_exactly_the_smallest_part_is_left(case: Minimal) -> None:
    assert case.sizes(sped_up(case).model.state_dict()) == dict(case.widths)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_case_is_equal_and_something_must_go(case: Minimal) -> None:
    """Whatever is left is equal, also where more than the optimum is left; and keeping all of it would not do."""
    model = case.model()
    assert sped_up(case).error < 1e-9
    assert case.sizes(model.state_dict()) != dict(case.widths)


@pytest.mark.parametrize("case", CASES[::6], ids=lambda c: c.name)
def test_keeping_everything_fails(case: Minimal) -> None:
    kept = sped_up(case, Registry.from_rules())
    assert kept.kept == 1.0
    assert case.sizes(kept.model.state_dict()) != dict(case.widths)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_weight_is_in_the_table(case: Minimal) -> None:
    """A width that nobody states could be anything."""
    model = case.model()
    owners = {n for n, m in model.named_modules() if isinstance(getattr(m, "weight", None), nn.Parameter)}
    assert owners | {n for n, _ in model.named_parameters(recurse=False)} == set(case.widths)


def test_names_are_unique() -> None:
    assert len({c.name for c in CASES}) == len(CASES) >= 25


def table() -> str:
    rows = ["| network | masked | left of the weights | why no less |", "|---|---|---|---|"]
    for case in CASES:
        masked = [f"{n} {list(i)}" for n, i in case.drop.items()]
        masked += [f"{n} columns {list(i)}" for n, i in case.columns.items()]
        full = case.sizes(case.model().state_dict())
        left = [f"{n} {_size(full[n])} → {_size(w)}" for n, w in case.widths.items()]
        gap = f" (known gap: {case.gap})" if case.gap else ""
        rows.append(f"| {case.name} | {'; '.join(masked)} | {', '.join(left)} | {case.why}{gap} |")
    return "\n".join(rows)


def _size(width: int | tuple[int, ...]) -> str:
    return str(width) if isinstance(width, int) else "x".join(map(str, width))


def test_the_table_in_the_docs_is_this_one() -> None:
    assert table() in PROOF.read_text(), "run: python -m tests.test_minimal"


if __name__ == "__main__":
    text = PROOF.read_text()
    start = text.index("| network | masked |")
    end = text.index("\n\n", start)
    PROOF.write_text(text[:start] + table() + text[end:])
    sys.exit(0)
