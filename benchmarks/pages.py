"""The parts of Markdown pages that benchmarks write: what stands between ``<!-- MARK -->`` and ``<!-- /MARK -->``."""

from __future__ import annotations


def part(page: str, mark: str) -> str:
    """What stands between the marks of a page."""
    return page.partition(f"<!-- {mark} -->\n")[2].partition(f"<!-- /{mark} -->")[0]


def with_part(page: str, mark: str, text: str) -> str:
    """The page with this text between the marks.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    if begin not in page or end not in page:
        raise ValueError(f"the page has no {begin.strip()} and {end}")
    return page.partition(begin)[0] + begin + text + "\n" + end + page.partition(end)[2]
