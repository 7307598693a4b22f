"""``speedup.verify`` and ``ModelSpeedup(verify=True)``: equal models pass, and wrong ones are caught and refused."""

import copy

import pytest
import torch
from torch import nn

import speedup
from speedup.testing import masked_copy, random_masks, randomize


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.b = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.a(x).relu()
        return {"out": self.b(hidden), "sum": hidden.sum(-1)}


@pytest.fixture
def model() -> nn.Module:
    return randomize(Net()).double()


def test_a_small_model_is_equal_to_the_masked_one_and_to_the_original_with_masks(model: nn.Module) -> None:
    masks = random_masks(model, 0, "filters+biases")
    x = torch.randn(4, 6, dtype=torch.float64)
    small = speedup.ModelSpeedup(copy.deepcopy(model), x, masks, verify=True).speedup_model()
    for report in (speedup.verify(model, small, x, masks), speedup.verify(masked_copy(model, masks), small, x)):
        assert report, report
        assert {c.case for c in report.comparisons} == {"random 0", "random 1", "batch 1", "batch 3"}
        assert {c.output for c in report.comparisons} == {0, 1}
        assert max(c.relative for c in report.comparisons) < 1e-12
    assert not speedup.verify(model, small, x), "without the masks the models differ"


def test_a_difference_in_one_entry_fails_and_is_shown(model: nn.Module) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.b.bias[2] += 1e-4
    report = speedup.verify(model, other, torch.randn(4, 6, dtype=torch.float64))
    assert not report
    assert [c.passed for c in report.comparisons if c.case == "batch 1"] == [False, True]
    assert "NOT equal" in str(report)


def test_a_small_model_that_raises_on_another_batch_size_is_an_error() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(4, 6)

    x = torch.randn(4, 6)
    with pytest.raises(speedup.CheckError, match="batch 1"):
        speedup.verify(nn.Identity(), Fixed(), x)
    report = speedup.verify(Fixed(), nn.Identity(), x)
    assert report, report
    assert len(report.skipped) == 2, "the reference itself rejects other batch sizes"


def test_verify_refuses_what_only_other_inputs_show_and_leaves_the_model_alone() -> None:
    class Loud(nn.Module):
        """Lets a row pass if any of its entries is large, else gives 0."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x.abs().amax(-1, keepdim=True) > 1.5, x, x * 0)

    class Wrong(speedup.Rule):
        """Says that all but the first entry are 0 and unused, which holds where nothing is large."""

        def infer_from_input(self, node: speedup.Node, facts: speedup.NodeFacts) -> dict[str, speedup.Fact]:
            mask = torch.arange(6).ne(0).reshape(1, 6).numpy()
            return {"output": speedup.Constant(mask, mask * 0.0)}

        def infer_from_output(self, node: speedup.Node, facts: speedup.NodeFacts) -> dict[str, speedup.Fact]:
            return {"0": speedup.Unused(torch.arange(6).ne(0).reshape(1, 6).numpy())}

    model = nn.Sequential(nn.Linear(6, 6), Loud(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(6))
        model[0].bias.zero_()
    before = copy.deepcopy(model.state_dict())
    rules = [r for r in speedup.default_registry().rules if r.name == "linear"]
    registry = speedup.Registry.from_rules(*rules, Wrong(name="wrong", modules=(Loud,), axes="* a -> * a"))
    masks = {"0": {"weight": torch.ones(6, 6)}}
    dummy = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(2, 3)  # nothing in it is large
    small = speedup.ModelSpeedup(copy.deepcopy(model), dummy, masks, registry=registry).speedup_model()
    assert small[2].in_features == 1, "the dummy input alone does not show the mistake"
    with pytest.raises(speedup.CheckError, match="nothing was changed"):
        speedup.ModelSpeedup(model, dummy, masks, registry=registry, verify=True).speedup_model()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not speedup.verify(model, small, dummy)
