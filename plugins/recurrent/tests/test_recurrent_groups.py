"""Channel groups through recurrent layers: features with the columns that read them, and hidden units."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import speedup
from speedup.testing import masked_copy, randomize

FEATURES, UNITS = 8, 12
LAYERS = {"rnn": (nn.RNN, nn.RNNCell), "gru": (nn.GRU, nn.GRUCell), "lstm": (nn.LSTM, nn.LSTMCell)}


class Words(nn.Module):
    """Words into states into numbers: all of them, or the last ones alone."""

    def __init__(self, kind: str, last: bool = False, **options: bool | int) -> None:
        super().__init__()
        self.words = nn.Embedding(20, FEATURES)
        self.layer = LAYERS[kind][0](FEATURES, UNITS, batch_first=True, **options)
        self.out = nn.Linear(UNITS * (1 + self.layer.bidirectional * (not last)), 5)
        self.last = last

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        every, state = self.layer(self.words(ids))
        h = state[0] if isinstance(state, tuple) else state
        return self.out(h[-1] if self.last else every)


class Translation(nn.Module):
    """The states of one layer are where the other begins."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.words, self.others = nn.Embedding(20, FEATURES), nn.Embedding(20, FEATURES)
        self.reads, self.writes = (LAYERS[kind][0](FEATURES, UNITS, batch_first=True) for _ in range(2))
        self.out = nn.Linear(UNITS, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        _, state = self.reads(self.words(ids))
        return self.out(self.writes(self.others(ids.flip(1)), state)[0])


class Steps(nn.Module):
    """A cell in a loop."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.words, self.cell = nn.Embedding(20, FEATURES), LAYERS[kind][1](FEATURES, UNITS)
        self.out = nn.Linear(UNITS, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, state, found = self.words(ids), None, []
        for time in range(x.shape[1]):
            state = self.cell(x[:, time], state)
            found.append(self.out(state[0] if isinstance(state, tuple) else state))
        return torch.stack(found, 1)


def pruned(model: nn.Module) -> nn.Module:
    """Half of all channels that can go are masked, and go; the answers are those of the masked model."""
    model = randomize(model, seed=0).double().eval()
    ids = torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(0))
    masks = speedup.prune_masks(model, ids, sparsity=0.5)
    masked = masked_copy(model, masks)
    plan = speedup.plan(copy.deepcopy(model), ids, masks)
    assert not plan.report.stays
    small = plan.apply()
    other = torch.randint(0, 20, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(small(other), masked(other), rtol=1e-9, atol=1e-9)
    return small


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"num_layers": 2},
        {"num_layers": 2, "last": True},
        {"num_layers": 2, "bidirectional": True},
    ],
)
def test_features_and_units(kind, options):
    small = pruned(Words(kind, **options))
    assert small.words.embedding_dim == small.layer.input_size == FEATURES // 2
    assert small.layer.hidden_size == UNITS // 2


@pytest.mark.parametrize("kind", LAYERS)
def test_states_that_are_handed_on(kind):
    small = pruned(Translation(kind))
    assert small.reads.hidden_size == small.writes.hidden_size == UNITS // 2
    assert small.reads.input_size == small.writes.input_size == FEATURES // 2


@pytest.mark.parametrize("kind", LAYERS)
def test_cells_in_a_loop(kind):
    small = pruned(Steps(kind))
    assert small.cell.hidden_size == UNITS // 2 and small.cell.input_size == FEATURES // 2


def names(model: nn.Module, *inputs: torch.Tensor) -> set[str]:
    groups = speedup.channel_groups(randomize(model).eval(), inputs)
    return {member.parameter for group in groups for member in group.members}


class States(nn.Module):
    def __init__(self, **options: int) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(4, FEATURES), nn.LSTM(FEATURES, UNITS, **options)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.layer(self.first(x).relu(), (h, c))[0].sum(-1)


def test_units_whose_states_the_caller_gives_stay():
    state = torch.zeros(1, 2, UNITS)
    found = names(States(), torch.randn(3, 2, 4), state, state)
    assert "first.weight" in found and "layer.weight_hh_l0" not in found


def test_a_projection_stays():
    state = torch.zeros(1, 2, 3), torch.zeros(1, 2, UNITS)
    assert not names(States(proj_size=3), torch.randn(3, 2, 4), *state)
