"""What a plan tells people and programs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.testing import mask_indices, randomize


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1, bias=False)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.c(self.a(x) + self.b(x)))
        result: torch.Tensor = self.fc(y.mean((2, 3)))
        return result


GIVEN = (2, 3, 8, 8)


def net() -> Net:
    return randomize(Net()).eval()


def plan_of(model: nn.Module, dropped: dict[str, tuple[int, ...]]) -> speedup.Plan:
    return speedup.plan(model, torch.randn(*GIVEN), mask_indices(model, dropped))


ALIGNED = {"a.weight": (0, 1), "b.weight": (0, 1), "b.bias": (0, 1)}


def test_totals_are_what_is_counted_afterwards() -> None:
    model = net()
    before = sum(p.numel() for p in model.parameters())
    plan = plan_of(model, ALIGNED)
    small = plan.apply()
    after = sum(p.numel() for p in small.parameters())
    assert plan.report.parameters == (before, after) and after < before


def test_macs_are_the_products_of_the_contractions() -> None:
    plan = plan_of(net(), ALIGNED)
    positions, batch = 6 * 6, 2

    def macs(channels: int) -> int:
        return batch * (positions * (2 * channels * 3 * 9 + 4 * channels) + 4 * 5)

    assert plan.report.macs == (macs(8), macs(6))


def test_the_text_shows_what_shrank_and_only_that() -> None:
    plan = plan_of(net(), ALIGNED)
    rows = {line.split()[0]: line for line in plan.report.text(width=120).splitlines() if line.startswith("  ")}
    assert "(Conv2d)" in rows["a"] and "8x3x3x3 -> 6x3x3x3" in rows["a"] and "216 -> 162" in rows["a"]
    assert "75.0%" in rows["a"] and "█" in rows["a"] and "░" in rows["a"]
    assert "5x4" in rows["fc"] and "->" not in rows["fc"] and "░" not in rows["fc"]
    assert plan.report.headline in str(plan)


def test_the_text_says_so_when_nothing_shrinks() -> None:
    text = str(plan_of(net(), {"fc.weight": (0,)}))
    assert "nothing becomes smaller" in text and "100.0%" in text


def test_explain_of_the_whole_model_ranks_reasons_by_parameters() -> None:
    plan = plan_of(net(), {"a.weight": (0, 1, 2), "b.weight": (2,), "b.bias": (2,), "fc.weight": (0,)})
    lines = [line for line in plan.explain().splitlines() if " parameters: " in line]
    numbers = [int(line.split(" parameters")[0].split()[-1].replace(",", "")) for line in lines]
    assert numbers == sorted(numbers, reverse=True) == [r.parameters for r in plan.report.reasons]
    assert len(numbers) == 2 and any("output of the model" in line for line in lines)


def test_explain_of_a_layer_lists_its_indices() -> None:
    plan = plan_of(net(), {"a.weight": (0, 1, 2), "b.weight": (2,), "b.bias": (2,)})
    text = plan.explain("a")
    assert "a.weight" in text and "[0, 1]" in text and "test_report.py" in text
    assert plan.explain("a.weight") == text


def test_explain_of_a_layer_that_lost_all_its_masked_indices_says_so() -> None:
    text = plan_of(net(), ALIGNED).explain("a")
    assert "No masked index" in text and "8x3x3x3 -> 6x3x3x3" in text
    assert "Everything" in plan_of(net(), ALIGNED).explain()


def test_explain_of_an_unknown_name_says_so() -> None:
    assert "'nonsense'" in plan_of(net(), ALIGNED).explain("nonsense")


def test_the_json_holds_what_is_kept_of_every_tensor(tmp_path: Path) -> None:
    plan = plan_of(net(), ALIGNED)
    path = tmp_path / "plan.json"
    plan.save(path)
    data = json.loads(path.read_text())
    assert data == plan.to_dict()
    tensors = {t["name"]: t for t in data["tensors"]}
    assert tensors["a.weight"]["before"] == [8, 3, 3, 3] and tensors["a.weight"]["after"] == [6, 3, 3, 3]
    assert tensors["a.weight"]["kept"] == {"0": [2, 3, 4, 5, 6, 7]}
    assert tensors["c.weight"]["kept"] == {"1": [2, 3, 4, 5, 6, 7]}
    assert tensors["fc.weight"]["kept"] == {} and tensors["fc.weight"]["after"] == [5, 4]
    assert data["parameters"] == list(plan.report.parameters)
    assert list(tmp_path.iterdir()) == [path], "no half-written file is left"


def test_saving_to_an_impossible_place_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        plan_of(net(), ALIGNED).save(tmp_path / "missing" / "plan.json")
    assert list(tmp_path.iterdir()) == []


def test_kept_indices_reproduce_the_small_weights() -> None:
    """Where nothing is folded into a weight, the small one is the masked one at the kept indices."""
    model = net()
    weight = model.a.weight.detach().clone()
    plan = plan_of(model, ALIGNED)
    kept = next(t for t in plan.to_dict()["tensors"] if t["name"] == "a.weight")["kept"]
    small = plan.apply()
    assert torch.equal(small.a.weight, weight[kept["0"]])  # type: ignore[union-attr, arg-type]


def test_a_bias_that_had_to_be_added_is_reported() -> None:
    model = randomize(nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3, bias=False))).eval()
    plan = speedup.plan(model, torch.randn(2, 4), mask_indices(model, {"0.weight": (1, 2)}))
    assert plan.report.gained == ["2.bias"] and "2.bias" in str(plan)
    small = plan.apply()
    assert small[2].bias is not None  # type: ignore[index]
    assert plan.report.parameters[1] == sum(p.numel() for p in small.parameters())


def test_barriers_are_listed_with_their_place() -> None:
    class Strange(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.special.bessel_j0(x))

    plan = plan_of(randomize(Strange()), ALIGNED)
    (barrier,) = plan.report.barriers
    assert "bessel_j0" in barrier and "test_report.py:" in barrier
    assert plan.to_dict()["barriers"] == [barrier]


@pytest.mark.parametrize("width", [40, 57, 70, 100, 140])
def test_the_text_fits_the_terminal(width: int) -> None:
    plan = plan_of(net(), {"a.weight": (0, 1, 2), "b.weight": (2,), "b.bias": (2,), "fc.weight": (0,)})
    lines = plan.report.text(width=width).splitlines()
    words = [line for line in lines if len(line) > width]
    assert all(" " not in line.strip() for line in words), words
    assert any(line.startswith("  a") and "%" in line for line in lines)


def test_the_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(net(), ALIGNED)
    monkeypatch.setenv("COLUMNS", "50")
    assert str(plan) == plan.report.text(width=50) != plan.report.text(width=120)


def test_colour_only_where_it_is_asked_for() -> None:
    plan = plan_of(net(), {"a.weight": (0, 1, 2), "b.weight": (2,)})
    assert "\x1b" not in str(plan) and "\x1b" not in plan.explain()
    colored = plan.report.text(width=100, color=True)
    assert "\x1b[" in colored
    assert [line.count("\x1b[") % 2 for line in colored.splitlines()].count(1) == 0, "every line is reset"


def test_bars_are_ascii_where_the_output_cannot_write_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(net(), ALIGNED)
    with io.TextIOWrapper(io.BytesIO(), encoding="cp1252") as narrow:
        monkeypatch.setattr("sys.stdout", narrow)
        text = plan.report.text(width=120)
        print(text)
    assert "#####" in text and text.isascii()


def test_modules_inside_are_summed_up_where_there_are_too_many() -> None:
    blocks = [nn.Sequential(*(nn.Linear(4, 4) for _ in range(5))) for _ in range(20)]
    model = randomize(nn.Sequential(*blocks)).eval()
    plan = speedup.plan(model, torch.randn(2, 4), mask_indices(model, {"3.1.weight": (1,), "4.2.weight": (0,)}))
    short, full = plan.report.text(width=100), plan.report.text(width=100, depth=2)
    assert "summed up" not in full
    assert len(full.splitlines()) > 30 and "  3 (Sequential)" in full and "    1 (Linear)" in full
    assert "  5 (Sequential)" in full and full.count("(Linear)") == 10, "what stayed as it was is one row"
    assert "summed up" in plan.report.text(width=100, depth=1) and short == full
    many = randomize(nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(40)))).eval()
    masked = {f"{i}.0.weight": (1,) for i in range(40)}
    text = str(speedup.plan(many, torch.randn(2, 4), mask_indices(many, masked)))
    assert "summed up" in text and "(Linear)" not in text and "  39 (Sequential)" in text


def test_a_parameter_of_a_module_with_others_inside_has_a_row() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6))
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.last(self.first(x) * self.scale)
            return result

    model = randomize(Scaled()).eval()
    plan = speedup.plan(model, torch.randn(2, 4), mask_indices(model, {"first.weight": (0,), "first.bias": (0,)}))
    (row,) = [line for line in plan.report.text(width=100).splitlines() if line.startswith("  scale")]
    assert "6 -> 5" in row


def test_modules_add_up_to_the_totals() -> None:
    report = plan_of(net(), ALIGNED).report
    for total, of in ((report.parameters, "parameters"), (report.macs, "macs")):
        assert total == tuple(sum(getattr(m, of)[i] for m in report.modules) for i in (0, 1))
    assert [m["path"] for m in report.to_dict()["modules"]] == ["", "a", "b", "c", "fc"]


def test_the_notebook_shows_the_same_and_escapes_names() -> None:
    class Named(Net):
        pass

    Named.__name__ = "<img src=x onerror=alert(1)>"
    plan = plan_of(randomize(Named()), {"a.weight": (0, 1, 2), "b.weight": (2,)})
    html = plan._repr_html_()
    assert plan.report.headline.replace(">", "&gt;") in html and "216" in html
    assert "&lt;img" in html and "<img" not in html
    assert "joined with a branch" in html and "Mask the same indices" in html


def test_what_is_found_when_asked_for_is_as_it_was_planned() -> None:
    model = net()
    asked, later = plan_of(model, ALIGNED), plan_of(model, ALIGNED)
    before = asked.to_dict()
    later.apply()
    assert later.to_dict() == before
    assert before["tensors"][0]["before"] != before["tensors"][0]["after"]
