"""The page of a report in a real browser: drawn, opened, searched, walked with keys, quick with a thousand layers.

Without a Chromium on the PATH (or named by CHROMIUM) these tests are skipped; core/tests/test_page.py has those that
need none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import speedup
from speedup.testing import mask_indices, randomize
from tests import browser

pytestmark = pytest.mark.skipif(browser.find() is None, reason="no Chromium is installed (Debian: chromium)")

HOSTILE = "<img src=x onerror=alert(1)>"


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(size, size, 1), nn.BatchNorm2d(size), nn.Conv2d(size, size, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv1(x)))
        result: torch.Tensor = x + self.conv2(y)
        return result


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.stages = nn.Sequential(*(nn.Sequential(Block(8), Block(8)) for _ in range(2)))
        self.add_module(HOSTILE, nn.Conv2d(8, 8, 1))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.special.bessel_j0(self.get_submodule(HOSTILE)(self.stages(self.stem(x))))
        result: torch.Tensor = self.head(x.mean((2, 3)))
        return result


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = randomize(Net()).eval()
    dropped = {f"stages.{i}.{j}.{name}.weight": (1, 2) for i in (0, 1) for j in (0, 1) for name in ("conv1", "conv2")}
    path = tmp_path_factory.mktemp("page") / "report.html"
    speedup.plan(model, torch.randn(1, 3, 4, 4), mask_indices(model, dropped)).report(path)
    return path


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    with browser.Browser() as running:
        yield running


@pytest.fixture
def page(chromium: browser.Browser, report: Path) -> browser.Browser:
    chromium.messages.clear()
    chromium.requests.clear()
    chromium.open(report)
    return chromium


def texts(page: browser.Browser, selector: str) -> list[str]:
    found: list[str] = page.run(f"[...document.querySelectorAll({selector!r})].map((e) => e.textContent)")
    return found


def layer(page: browser.Browser, name: str) -> None:
    page.run("document.getElementById('tab-layers').click()")
    page.run(f"[...document.querySelectorAll('#layers tbody button')].find((b) => b.textContent === {name!r}).click()")


def test_it_opens_without_errors_and_without_the_network(page: browser.Browser, report: Path) -> None:
    assert page.requests == [report.as_uri()]
    assert page.messages == []
    assert page.run("document.title") == "speedup: Net"
    assert len(texts(page, ".total")) == 2 and "%" in texts(page, ".total")[0]


def test_modules_open_and_close(page: browser.Browser) -> None:
    page.run("document.getElementById('close-all').click()")
    closed = len(texts(page, "svg .item"))
    page.run("document.getElementById('open-all').click()")
    opened = len(texts(page, "svg .item"))
    assert closed < 10 and opened > closed + 20
    assert page.run("document.querySelectorAll('svg .edge').length") > opened / 2
    boxes = page.run(
        "[...document.querySelectorAll('svg .call > rect.box')].map((e) => e.getBoundingClientRect())"
        ".map((r) => [r.left, r.top, r.right, r.bottom])"
    )
    for number, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[number + 1 :]:
            assert not (left < other[2] and other[0] < right and top < other[3] and other[1] < bottom), "boxes overlap"


def test_a_reason_marks_its_layers_and_the_details_say_why(page: browser.Browser) -> None:
    assert any("not masked alike" in text or "no rule knows" in text for text in texts(page, ".reason .why"))
    page.run("document.querySelector('.reason button').click()")
    assert page.run("document.querySelectorAll('svg .item.mark').length") > 0
    layer(page, "stages.0.1.conv2")
    assert texts(page, "#details h2") == ["stages.0.1.conv2"]
    assert page.run("document.querySelectorAll('#details .strip rect').length") >= 8
    assert page.run("document.querySelectorAll('#details .cell-h').length") >= 2
    assert any("1-2" in text for text in texts(page, "#details .why-line"))
    page.run(
        "document.querySelector('#details .strip .cell-h').dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    assert "held" in texts(page, "#details .said")[0]


def test_barriers_have_a_colour_of_their_own(page: browser.Browser) -> None:
    assert page.run("document.querySelectorAll('svg .barrier').length") == 1
    color = "getComputedStyle(document.querySelector('svg .{} > rect.box')).stroke"
    assert page.run(color.format("barrier")) != page.run(color.format("call:not(.barrier)"))


def test_layers_are_sorted_and_searched(page: browser.Browser) -> None:
    page.run("document.getElementById('tab-layers').click()")
    page.run("document.querySelector('th[data-key=left] button').click()")
    shares = page.run(
        "[...document.querySelectorAll('#layers tbody td:nth-child(2)')].map((e) => parseFloat(e.textContent))"
    )
    assert shares == sorted(shares) and shares[0] < shares[-1]
    assert page.run("document.querySelector('th[data-key=left]').getAttribute('aria-sort')") == "ascending"
    page.key("/")
    assert page.run("document.activeElement.id") == "search"
    for letter in ".1.conv2":
        page.key(letter)
    assert texts(page, "#layers tbody button") == ["stages.0.1.conv2", "stages.1.1.conv2"]
    page.key("Enter")
    assert texts(page, "#details h2")[0] in ("stages.0.1.conv2", "stages.1.1.conv2")


def test_the_graph_can_be_walked_with_keys_and_is_spoken(page: browser.Browser) -> None:
    page.run("document.getElementById('close-all').click()")
    page.run("document.querySelector('svg .item[tabindex=\"0\"]').focus()")
    labels = []
    for _ in range(3):
        labels.append(page.run("document.activeElement.getAttribute('aria-label')"))
        page.key("ArrowDown")
    assert labels[0].startswith("input") and labels[1].startswith("stem, Conv2d") and "% left" in labels[1]
    assert labels[2].startswith("stages") and "calls" in labels[2]
    page.key("ArrowUp")
    assert page.run("document.activeElement.getAttribute('aria-expanded')") == "false"
    page.key("Enter")
    assert page.run("document.activeElement.getAttribute('aria-expanded')") == "true"
    page.key("ArrowRight")
    assert page.run("document.activeElement.getAttribute('aria-label')").startswith("0, Sequential")
    assert page.run(
        "[...document.querySelectorAll('button, input')].every((e) => e.textContent || e.ariaLabel || e.labels)"
    )


def test_a_strip_can_be_read_with_keys(page: browser.Browser) -> None:
    layer(page, "stages.0.0.conv1")
    page.run("document.querySelector('#details .strip').focus()")
    page.key("ArrowRight")
    told = page.run("document.activeElement.getAttribute('aria-valuetext')")
    assert told.startswith("index 1: ") and len(told) > 12


def test_light_and_dark(page: browser.Browser) -> None:
    back = "getComputedStyle(document.body).backgroundColor"
    first = page.run(back)
    page.run("document.getElementById('theme').click()")
    assert page.run(back) != first


def test_names_are_text_and_nothing_else(page: browser.Browser) -> None:
    layer(page, HOSTILE)
    assert texts(page, "#details h2") == [HOSTILE]
    assert page.run("document.images.length") == 0 and page.run("document.title") == "speedup: Net"


def test_it_prints_both_lists(page: browser.Browser) -> None:
    page.send("Emulation.setEmulatedMedia", media="print")
    try:
        for name in ("reasons", "layers"):
            assert page.run(f"document.getElementById({name!r}).getBoundingClientRect().height") > 50
        assert page.run("getComputedStyle(document.querySelector('.tools')).display") == "none"
        assert len(page.send("Page.printToPDF")["data"]) > 10_000
    finally:
        page.send("Emulation.setEmulatedMedia", media="")


def test_a_thousand_layers_stay_quick(chromium: browser.Browser, tmp_path: Path) -> None:
    layers = (nn.Linear(8, 8) if i % 2 == 0 else nn.ReLU() for i in range(1001))
    model = randomize(nn.Sequential(*layers)).eval()
    made = speedup.plan(model, torch.randn(1, 8), mask_indices(model, {f"{i}.weight": (1,) for i in range(0, 1000, 2)}))
    made.report(tmp_path / "long.html")
    start = time.monotonic()
    chromium.open(tmp_path / "long.html")
    shown = len(texts(chromium, "svg .item"))
    assert shown < 60, "closed to what a person can overlook"
    chromium.run("document.getElementById('open-all').click()")
    assert len(texts(chromium, "svg .item")) > 1000
    layer(chromium, "776")
    assert texts(chromium, "#details h2") == ["776"]
    # Layout of everything at once would take minutes: the limit is far from what this takes.
    assert time.monotonic() - start < 60
