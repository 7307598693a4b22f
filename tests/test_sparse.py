"""Sparse tensors beside the weights, such as the neighbours in a graph: nothing is known of them, all else goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import speedup
from speedup.testing import check_equal, mask_indices, random_masks, randomize

NEAR = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NEAR[NEAR < 0.4] = 0
X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Nodes(nn.Module):
    def __init__(self, near: torch.Tensor, how: str) -> None:
        super().__init__()
        self.a, self.b, self.out, self.how = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3), how
        if how != "attribute":
            self.register_buffer("near", near)
        else:
            self.near = near

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sparse.mm(self.near, x) if self.how == "sparse.mm" else self.near @ x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.product(self.b(self.product(self.a(x)).relu())))


FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "coo": lambda t: t.to_sparse(),
    "uncoalesced": lambda t: torch.sparse_coo_tensor(t.nonzero().T.repeat(1, 2), t[t != 0].repeat(2) / 2, t.shape),
}


@pytest.mark.parametrize("how", ["sparse.mm", "@", "attribute"])
@pytest.mark.parametrize("form", FORMS)
def test_channels_of_nodes_go(form: str, how: str) -> None:
    model = randomize(Nodes(FORMS[form](NEAR), how)).double()
    masks = mask_indices(model, {"a.weight": [0, 1], "a.bias": [0, 1], "b.weight": [2, 5, 6], "b.bias": [2, 5, 6]})
    small = check_equal(model, X, masks)
    assert small.shape("b.weight") == (5, 6)
    for seed in range(2):
        check_equal(model, X, random_masks(model, seed, "mixed"))


def test_rows_in_one_list() -> None:
    """Torch makes no copies of a model with such a tensor."""
    small, masked = (randomize(Nodes(NEAR.to_sparse_csr(), "@")).double().eval() for _ in range(2))
    masks = mask_indices(small, {"a.weight": [0, 1], "a.bias": [0, 1]})
    with torch.no_grad():
        for name in ("weight", "bias"):
            masked.a.get_parameter(name).mul_(masks["a"][name])
        speedup.plan(small, X, masks).apply(verify=True)
        torch.testing.assert_close(small(X), masked(X), rtol=1e-12, atol=1e-12)
    assert small.b.in_features == 6


def test_copied_trained_and_refused_to_be_saved(tmp_path: Path) -> None:
    model = randomize(Nodes(NEAR.to_sparse(), "@")).double().eval()
    optimizer = torch.optim.Adam(model.parameters())
    model(X).sum().backward()
    optimizer.step()
    small = speedup.plan(model, X, mask_indices(model, {"a.weight": [0, 1], "a.bias": [0, 1]})).apply(
        verify=True, optimizer=optimizer
    )
    assert torch.equal(copy.deepcopy(small)(X), small(X))
    with pytest.raises(speedup.StorageError, match="near is sparse"):
        speedup.save(small, tmp_path / "small")
