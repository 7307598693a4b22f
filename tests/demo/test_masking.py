"""Masks multiplied into the weights."""

import pytest
import torch
from torch import nn

from demo.masking import apply_masks, masked_copy, sparsity


def test_masked_copy_sets_entries_to_zero_and_leaves_the_model() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    masked = masked_copy(model, {"0": {"weight": mask, "bias": torch.tensor([0.0, 1.0])}, "1": {"bias": None}})
    assert torch.equal(masked[0].weight, before["0.weight"] * mask)
    assert masked[0].bias.tolist() == [0.0, before["0.bias"][1].item()]
    assert torch.equal(masked[1].weight, before["1.weight"])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"2": {"weight": torch.ones(1)}}, "a module '2'"),
        ({"0": {"scale": torch.ones(1)}}, "a parameter 0.scale"),
        ({"0": {"weight": torch.ones(2)}}, r"shape \(2,\), the parameter \(2, 2\)"),
    ],
)
def test_masks_that_do_not_fit(masks: dict[str, dict[str, torch.Tensor | None]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_masks(nn.Sequential(nn.Linear(2, 2)), masks)


def test_sparsity_counts_weight_entries() -> None:
    masks = {
        "0": {"weight": torch.tensor([1.0, 0.0, 0.0, 1.0]), "bias": torch.zeros(4)},
        "1": {"weight": torch.ones(4)},
    }
    assert sparsity(masks) == 0.25
    assert sparsity({}) == 0.0
