"""What a plan tells people and programs."""

from __future__ import annotations

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
    text = str(plan_of(net(), ALIGNED))
    assert "a.weight" in text and "8x3x3x3" in text and "6x3x3x3" in text and "75.0%" in text
    assert "fc.weight" not in text
    assert "parameters " in text and "MACs " in text


def test_the_text_says_so_when_nothing_shrinks() -> None:
    text = str(plan_of(net(), {"fc.weight": (0,)}))
    assert "nothing becomes smaller" in text and "100.0%" in text


def test_explain_of_the_whole_model_ranks_reasons_by_parameters() -> None:
    plan = plan_of(net(), {"a.weight": (0, 1, 2), "b.weight": (2,), "b.bias": (2,), "fc.weight": (0,)})
    lines = plan.explain().splitlines()
    numbers = [int(line.split(" parameters")[0].split()[-1].replace(",", "")) for line in lines[1:]]
    assert numbers and numbers == sorted(numbers, reverse=True)
    assert any("output of the model" in line for line in lines)


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


def test_explain_says_how_to_add_a_rule_where_one_is_missing() -> None:
    class Strange(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.special.bessel_j0(self.c(self.a(x) + self.b(x))).mean((2, 3)))

    text = plan_of(randomize(Strange()), {"c.weight": (1,)}).explain()
    assert "bessel_j0" in text and "docs/write-a-plugin.md" in text.splitlines()[-1]
    assert "write-a-plugin" not in plan_of(net(), {"a.weight": (0,)}).explain()
