"""Random recurrent networks under random masks: equal, and lawful."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from speedup.testing import KINDS, Masks, check_equal, check_laws, random_masks, randomize

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


class Net(nn.Module):
    """linear, activation, recurrent layer with an initial state of one kind or another, readers of its outputs."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.kind = draw.choice(list(GATES))
        self.batch_first = draw.random() < 0.5
        hidden, directions = draw.randrange(2, 7), draw.choice([1, 1, 2])
        options: dict[str, Any] = {"nonlinearity": draw.choice(["tanh", "relu"])} if self.kind == "RNN" else {}
        if self.kind == "LSTM" and draw.random() < 0.4:
            options["proj_size"] = draw.randrange(1, hidden)
        size = draw.randrange(1, 7)
        self.first = nn.Linear(4, size)
        self.activation = draw.choice([nn.ReLU(), nn.Sigmoid(), nn.LayerNorm(size)])
        self.rnn = getattr(nn, self.kind)(
            size,
            hidden,
            num_layers=draw.choice([1, 1, 2, 3]),
            bias=draw.random() < 0.7,
            batch_first=self.batch_first,
            bidirectional=directions == 2,
            dropout=draw.choice([0.0, 0.5]),
            **options,
        )
        self.width, self.hidden = options.get("proj_size", hidden), hidden
        self.cells = self.rnn.num_layers * directions
        self.state = draw.choice(["none", "none", "zeros", "ones", "learned", "made"])
        self.h0, self.c0 = (nn.Parameter(torch.zeros(self.cells, 1, n)) for n in (self.width, hidden))
        self.make_h, self.make_c = (nn.Linear(4, self.cells * n) for n in (self.width, hidden))
        self.reads = draw.choice(["out", "last time", "h", "top h", "c", "out and h", "all", "itself"])
        self.read_out = nn.Linear(directions * self.width, 3)
        self.read_h, self.read_c = nn.Linear(self.width, 3), nn.Linear(hidden, 3)

    def initial(self, x: torch.Tensor) -> Any:
        batch = x.shape[0] if self.batch_first else x.shape[1]
        if self.state == "none":
            return None
        if self.state in ("zeros", "ones"):
            fill = getattr(torch, self.state)
            h = fill(self.cells, batch, self.width, dtype=x.dtype)
            c = fill(self.cells, batch, self.hidden, dtype=x.dtype)
        elif self.state == "learned":
            h, c = self.h0.expand(-1, batch, -1), self.c0.expand(-1, batch, -1)
        else:
            y = x.mean(1 if self.batch_first else 0)
            h, c = (
                make(y).unflatten(1, (self.cells, -1)).transpose(0, 1).contiguous()
                for make in (self.make_h, self.make_c)
            )
        return (h, c) if self.kind == "LSTM" else h

    def forward(self, x: torch.Tensor) -> Any:
        y, state = self.rnn(self.activation(self.first(x)), self.initial(x))
        h, c = state if self.kind == "LSTM" else (state, state)
        read_c = self.read_c if self.kind == "LSTM" else self.read_h
        return {
            "out": lambda: self.read_out(y),
            "last time": lambda: self.read_out(y[:, -1] if self.batch_first else y[-1]),
            "h": lambda: self.read_h(h),
            "top h": lambda: self.read_h(h[-1]),
            "c": lambda: read_c(c),
            "out and h": lambda: (self.read_out(y), self.read_h(h)),
            "all": lambda: (self.read_out(y), self.read_h(h), read_c(c)),
            "itself": lambda: y,
        }[self.reads]()


def unit_masks(net: Net, seed: int) -> Masks:
    """Masks of whole units: their rows in all gates, or in some, perhaps with biases, perhaps what reads them."""
    draw = random.Random(seed)
    masks: Masks = {"rnn": {}}
    for name, parameter in net.rnn.named_parameters():
        mask = torch.ones(parameter.shape)
        if name.startswith("weight_hr"):
            mask[draw.sample(range(net.width), draw.randrange(net.width)), :] = 0
            mask[:, draw.sample(range(net.hidden), draw.randrange(net.hidden))] = 0
            masks["rnn"][name] = mask
    count = draw.randrange(1, net.hidden)
    clean = draw.random() < 0.6
    for suffix in sorted({name.partition("_l")[2] for name, _ in net.rnn.named_parameters()}):
        gone = draw.sample(range(net.hidden), count if clean else draw.randrange(net.hidden + 1))
        gates = [g for g in range(GATES[net.kind]) if clean or draw.random() < 0.85]
        rows = [g * net.hidden + j for g in gates for j in gone]
        for name, chance in (("weight_ih", 0.9), ("weight_hh", 0.9), ("bias_ih", 0.7), ("bias_hh", 0.7)):
            if hasattr(net.rnn, f"{name}_l{suffix}") and (clean or draw.random() < chance):
                mask = torch.ones(getattr(net.rnn, f"{name}_l{suffix}").shape)
                mask[rows] = 0
                if mask.ndim == 2 and draw.random() < 0.5:
                    mask[:, draw.sample(range(mask.shape[1]), draw.randrange(mask.shape[1] + 1))] = 0
                masks["rnn"][f"{name}_l{suffix}"] = mask
    for name in ("first", "read_out", "read_h", "read_c", "make_h", "make_c"):
        if draw.random() < 0.4:
            weight = getattr(net, name).weight
            mask = torch.ones(weight.shape)
            columns = name.startswith("read")
            size = mask.shape[int(columns)]
            mask.index_fill_(int(columns), torch.tensor(draw.sample(range(size), size // 2), dtype=torch.long), 0)
            masks[name] = {"weight": mask}
            if not columns and draw.random() < 0.5:
                masks[name]["bias"] = mask.amax(1)
    return masks


def case(seed: int) -> tuple[Net, torch.Tensor, Masks]:
    net = randomize(Net(seed), seed)
    if seed % 3 == 0:
        with torch.no_grad():
            net.h0.zero_(), net.c0.zero_()
    masks = unit_masks(net, seed) if seed % 2 else random_masks(net, seed, KINDS[seed // 2 % len(KINDS)])
    return net, torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(seed)), masks


@pytest.mark.parametrize("first", range(0, 120, 20))
@pytest.mark.filterwarnings("ignore")
def test_random_networks_stay_equal(first: int) -> None:
    left = []
    for seed in range(first, first + 20):
        net, x, masks = case(seed)
        result = check_equal(net, x, masks, [torch.randn(2, 5, 4), torch.randn(1, 1, 4)])
        if seed % 2:
            before = sum(p.numel() for p in net.rnn.parameters())
            left.append(sum(p.numel() for p in result.model.rnn.parameters()) / before)  # type: ignore[union-attr]
    assert sum(left) / len(left) < 0.9 and min(left) < 0.6


@pytest.mark.parametrize("first", range(0, 40, 20))
@pytest.mark.filterwarnings("ignore")
def test_random_networks_obey_the_laws(first: int) -> None:
    for seed in range(first, first + 20):
        net, x, masks = case(seed)
        assert "recurrent" in check_laws(net, x, masks, seed=seed, rounds=4)
