"""The page of a report: one file, whatever the names in a model are. In a browser it is tried in tests/test_page.py."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import speedup
from speedup.report import page as pages
from speedup.testing import mask_indices, randomize

HOSTILE = "</script><script>alert(1)</script><!--"


def plan() -> speedup.Plan:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
    )
    dropped = {"0.weight": (0, 1, 2), "3.weight": (4,), "3.bias": (4,), "4.weight": (0,)}
    return speedup.plan(randomize(model).eval(), torch.randn(1, 3, 8, 8), mask_indices(model, dropped))


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def elements(text: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed(text)
    return parser.found


def test_it_is_one_file_that_refers_to_no_other(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    plan().report(path)
    text = path.read_text()
    for tag, attributes in elements(text):
        assert tag not in ("link", "img", "iframe", "object")
        assert not {"src", "srcset"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "@import" not in text and "url(" not in text and "sourceMappingURL" not in text
    assert "default-src 'none'" in text
    assert list(tmp_path.iterdir()) == [path]


def test_the_policy_allows_the_scripts_of_the_page_and_no_others() -> None:
    text = pages.page(plan().report.find_page())
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    policy = re.search(r'content="(default-src[^"]*)"', text)
    assert policy and len(scripts) == 2
    for script in scripts:
        assert pages._digest(script) in policy[1]
    assert "unsafe-eval" not in policy[1] and "script-src 'unsafe-inline'" not in policy[1]


def test_names_cannot_leave_the_data() -> None:
    kind = type(HOSTILE, (nn.Module,), {"forward": lambda self, x: self.inner(x)})
    model = kind()
    model.inner = nn.Linear(3, 2)
    hostile = nn.Sequential()
    hostile.add_module(HOSTILE, model)
    masks = {f"{HOSTILE}.inner": {"weight": torch.ones(2, 3)}}
    text = pages.page(speedup.plan(hostile.eval(), torch.randn(1, 3), masks).report.find_page(), title=HOSTILE)
    assert HOSTILE not in text and "alert(1)</script>" not in text
    assert [tag for tag, _ in elements(text)].count("script") == 3
    data = data_of(text)
    assert data["title"] == HOSTILE
    assert [HOSTILE, f"{HOSTILE}.inner"] == [path for path, *_ in data["modules"]][1:]


def test_the_page_says_what_it_contains() -> None:
    text = pages.page({})
    assert "Permission is hereby granted" in text and "dagre" in text


def test_the_picture_holds_calls_tensors_and_what_becomes_of_every_index() -> None:
    made = plan()
    data = made.report.find_page()
    assert json.loads(json.dumps(data)) == data
    assert [call["path"] for call in data["calls"]] == ["0", "1", "2", "3", "4"]
    held = {name: v for v in data["values"] for name in v.get("names", [])}

    def strip(value: dict[str, Any], axis: int) -> str:
        return next(data["strips"][number] for a, number, _ in value["strips"] if a == axis)

    assert strip(held["0.weight"], 0) in ("cmmkkk", "mcmkkk", "mmckkk"), "one of the three carries"
    assert strip(held["3.weight"], 0) == "kkkkmkkk"
    assert sorted(strip(held["3.weight"], 1)) == sorted("krrkkk")
    assert strip(held["4.weight"], 0) == "hk"
    relu = data["values"][data["calls"][2]["out"][0]]
    assert sorted(strip(relu, 1)) in (sorted("cffkkk"), sorted("czfkkk"), sorted("czzkkk"))
    (_, _, ((why, indices),)) = next(s for s in held["4.weight"]["strips"] if s[0] == 0)
    assert indices == [0] and "output of the model" in data["whys"][why]
    assert held["0.weight"]["left"] == pytest.approx(4 / 6, abs=1e-4)
    assert data["reasons"] == [r.to_dict() for r in made.report.reasons]


def test_barriers_and_repairs_stand_at_their_calls() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Linear(128, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.special.bessel_j0(x)
            result: torch.Tensor = self.b(self.a(x).view(-1, 128))
            return result

    model = randomize(Net()).eval()
    made = speedup.plan(model, torch.randn(2, 3, 4, 4), mask_indices(model, {"a.weight": (0,)}))
    calls = {call["op"]: call for call in made.report.find_page()["calls"]}
    assert "no rule" in calls["torch.special.bessel_j0"]["barrier"]
    assert calls["torch.Tensor.view"]["repaired"] == [made.report.repaired[0].what]
    assert "barrier" not in calls["torch.nn.Conv2d"] and "repaired" not in calls["torch.nn.Conv2d"]


def test_a_page_can_be_written_after_the_plan_was_applied(tmp_path: Path) -> None:
    made = plan()
    before = made.report.find_page()
    made.apply()
    made.report(tmp_path / "report.html")
    assert data_of((tmp_path / "report.html").read_text()) == before


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        plan().report(tmp_path / "missing" / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_what_is_bundled_is_what_was_published() -> None:
    import base64
    import hashlib

    folder = Path(pages.__file__).parent / "vendor"
    pins = json.loads((folder / "vendor.json").read_text())
    named = {name for pin in pins for name in pin["files"]}
    assert named == {p.name for p in folder.iterdir()} - {"vendor.json"}
    for pin in pins:
        for name, file in pin["files"].items():
            digest = base64.b64encode(hashlib.sha512((folder / name).read_bytes()).digest()).decode()
            assert file["integrity"] == f"sha512-{digest}", name
