"""``speedup.verify`` and ``ModelSpeedup(verify=True)``: equal models pass, and wrong ones are caught and refused."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


# -- what it must not be fooled by ------------------------------------------------------------------------------------


class Returning(nn.Module):
    """Gives what ``make`` makes of the input and of a factor; two of them differ in the factor."""

    def __init__(self, make: Callable[[torch.Tensor, float], Any], factor: float) -> None:
        super().__init__()
        self.make, self.factor = make, factor

    def forward(self, x: torch.Tensor) -> Any:
        return self.make(x, self.factor)


@dataclass
class Output:
    logits: torch.Tensor
    more: Any = None


@pytest.mark.parametrize(
    "make",
    [
        lambda x, k: {"x": x, "loss": (x.sum() * k).item()},
        lambda x, k: (x, [int(k * 10)]),
        lambda x, k: (x, f"{k}"),
        lambda x, k: (x, (x * k).numpy()),
        lambda x, k: Output(x, {"inner": Output(x * k)}),
        lambda x, k: Output(x, Output(x, k)),
        lambda x, k: (x > k - 1, (x * (2 - k)).argmax(-1)),
        lambda x, k: torch.complex(x, x * k),
    ],
)
def test_whatever_is_returned_is_compared(make: Callable[[torch.Tensor, float], Any]) -> None:
    given = torch.randn(4, 6)
    assert speedup.verify(Returning(make, 1.0), Returning(make, 1.0), given)
    assert not speedup.verify(Returning(make, 1.0), Returning(make, 3.0), given)


def test_other_names_in_what_is_returned_are_an_error() -> None:
    one, other = (Returning(lambda x, k: {f"out{k}": x}, k) for k in (1, 2))
    with pytest.raises(speedup.CheckError, match="out2"):
        speedup.verify(one, other, torch.randn(4, 6))


@pytest.mark.parametrize("given", [torch.zeros(4, 6), torch.ones(4, 6)])
def test_a_dummy_input_that_is_the_same_everywhere_shows_a_wrong_column(model: nn.Module, given: torch.Tensor) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.a.weight[:, 0] += 1
        other.a.weight[:, 1] -= 1
    assert not speedup.verify(model, other, given.double())


def test_infinities_in_an_input_do_not_make_all_of_it_nan() -> None:
    class Biased(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            return (x * self.factor + bias).softmax(-1)

    bias = torch.zeros(4, 6)
    bias[:, 3] = -torch.inf
    given = (torch.randn(4, 6), bias)
    assert speedup.verify(Biased(1.0), Biased(1.0), given)
    assert not speedup.verify(Biased(1.0), Biased(2.0), given)


def test_a_mask_of_ones_beside_other_inputs_stays_one() -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            assert bool((mask == 1).all())
            return x * mask

    assert speedup.verify(Masked(), Masked(), (torch.randn(4, 6), torch.ones(4, 6))).passed


def test_outputs_without_a_finite_number_are_no_agreement() -> None:
    broken = Returning(lambda x, k: x * torch.nan, 1.0)
    with pytest.raises(speedup.CheckError, match="no finite number"):
        speedup.verify(broken, Returning(lambda x, k: x * torch.nan, 2.0), torch.randn(4, 6))
    half = Returning(lambda x, k: (x, x * torch.nan), 1.0)
    report = speedup.verify(half, copy.deepcopy(half), torch.randn(4, 6))
    assert report and "output 1: no finite number" in str(report)


def test_a_model_is_not_compared_with_itself(model: nn.Module) -> None:
    with pytest.raises(speedup.InputError, match="deepcopy"):
        speedup.verify(model, model, torch.randn(4, 6))
    with pytest.raises(speedup.InputError, match="small is a str"):
        speedup.verify(model, "small.pt", torch.randn(4, 6))  # type: ignore[arg-type]
