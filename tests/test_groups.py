"""Channel groups: what can only go together, and that what they say can go does go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup import ChannelGroups, Group
from speedup.testing import check_equal, randomize


def net(model: nn.Module) -> nn.Module:
    return randomize(model.double().eval(), 0)


def image(channels: int = 3, size: int = 8) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def tokens(width: int = 12) -> torch.Tensor:
    return torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def conv(a: int, b: int, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1, **more)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.norm = conv(3, 6), conv(6, 6), conv(6, 2), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.c(torch.relu(x + self.norm(self.b(x))))


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.c = conv(3, 6), conv(3, 4), nn.BatchNorm2d(10), conv(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1))))


class Depthwise(nn.Module):
    def __init__(self, multiplier: int = 1) -> None:
        super().__init__()
        self.a, self.d = conv(3, 6), conv(6, 6 * multiplier, groups=6)
        self.c = conv(6 * multiplier, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.d(torch.relu(self.a(x)))))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.c = conv(3, 8), conv(8, 12, groups=2), conv(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.g(torch.relu(self.a(x)))))


def weighted_by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.qkv, self.proj, self.fused = nn.Linear(12, 48), nn.Linear(16, 12), fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weighted = F.scaled_dot_product_attention if self.fused else weighted_by_hand
        return self.proj(weighted(q, k, v).transpose(1, 2).reshape(b, n, 16))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.one, self.two, self.c = conv(3, 8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), conv(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.c(x * torch.sigmoid(self.two(torch.relu(self.one(x.mean((2, 3), keepdim=True))))))


class Twice(nn.Module):
    """One layer, called twice: its inputs and outputs are all one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(torch.relu(self.b(torch.relu(self.a(x))))))


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(4, 3), conv(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.a(x).chunk(2, 1)
        return self.b(one) + self.c(two)


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = conv(3, 4), nn.Linear(4 * 64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.a(x)).flatten(1))


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 6), nn.Linear(6, 3)
        self.first, self.table = nn.Parameter(torch.ones(1, 1, 6)), nn.Parameter(torch.ones(1, 6, 6))
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.first.expand(len(x), -1, -1), self.a(x)], 1) + self.table
        return self.b(self.norm(x))


class Registers(nn.Module):
    """Several learned tokens behind those of the input, to which a fixed table was added or not."""

    def __init__(self, table: bool) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)
        self.tokens = nn.Parameter(torch.randn(2, 6))
        self.table = torch.randn(5, 6) if table else None  # no parameter and no buffer: it stays as it is

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x) if self.table is None else self.a(x) + self.table
        x = torch.cat([x, self.tokens.expand(len(x), -1, -1)], 1)
        result: torch.Tensor = self.out(self.b(x).relu())
        return result


class Grid(nn.Module):
    """Channels of rows and columns, as the detector DETR has them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Conv2d(3, 8, 1), nn.Linear(8, 3)
        self.rows, self.columns = nn.Parameter(torch.randn(9, 4)), nn.Parameter(torch.randn(9, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, w = x.shape[-2:]
        columns, rows = self.columns[:w].unsqueeze(0).repeat(h, 1, 1), self.rows[:h].unsqueeze(1).repeat(1, w, 1)
        result: torch.Tensor = self.out(torch.cat([columns, rows], -1).flatten(0, 1) + self.a(x).flatten(2).mT)
        return result


class Latents(nn.Module):
    """Learned rows that look at those of the input, as the latents of a Perceiver and the queries of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(5, 8))
        self.q, self.k, self.v, self.proj = nn.Linear(8, 6), nn.Linear(4, 6), nn.Linear(4, 7), nn.Linear(7, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.rows.expand(len(x), -1, -1)
        seen = (self.q(rows) @ self.k(x).mT * 0.5).softmax(-1) @ self.v(x)
        result: torch.Tensor = self.out(rows + self.proj(seen))
        return result


class Barrier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(torch.fft.fft(self.a(x)).real))


def find(groups: ChannelGroups, parameter: str) -> Group:
    (group,) = [g for g in groups if parameter in g.producers]
    return group


def places(group: Group, channel: int) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(name, axis): indices for name, axis, indices in group.channel(channel)}


def test_an_addition_ties_what_it_adds() -> None:
    groups = speedup.channel_groups(net(Residual()), image())
    assert len(groups) == 1
    assert places(groups[0], 4) == {
        ("a.weight", 0): (4,),
        ("a.bias", 0): (4,),
        ("b.weight", 1): (4,),
        ("b.weight", 0): (4,),
        ("b.bias", 0): (4,),
        ("norm.weight", 0): (4,),
        ("norm.bias", 0): (4,),
        ("c.weight", 1): (4,),
    }
    assert "6 channels" in str(groups) and "makes norm.weight axis 0 [0-5]" in str(groups)
    assert "c.weight" not in groups[0].producers


def test_parts_of_a_cat_have_places_of_their_own() -> None:
    groups = speedup.channel_groups(net(Joined()), image())
    assert [g.size for g in groups] == [6, 4]
    assert places(find(groups, "b.weight"), 1)["norm.weight", 0] == (7,)
    assert places(find(groups, "b.weight"), 1)["c.weight", 1] == (7,)


def test_depthwise_layers_follow_their_input() -> None:
    (group,) = speedup.channel_groups(net(Depthwise()), image())
    assert places(group, 3)["d.weight", 0] == (3,)
    (group,) = speedup.channel_groups(net(Depthwise(2)), image())
    assert places(group, 3)["d.weight", 0] == (6, 7)
    assert places(group, 3)["c.weight", 1] == (6, 7)


def test_grouped_layers_lose_as_many_of_each_group() -> None:
    groups = speedup.channel_groups(net(Grouped()), image())
    assert [[b.tolist() for b in g.blocks] for g in groups] == [
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]],
    ]
    assert groups[0].heads == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert groups[0].bundle == groups[1].bundle is not None


@pytest.mark.parametrize("fused", [True, False])
def test_heads_of_an_attention(fused: bool) -> None:
    """Channels of queries and keys are products of each other; values are read by the projection."""
    (group,) = speedup.channel_groups(net(Attention(fused)), tokens())
    assert group.size == 32 and len(group.blocks) == 8
    assert len(group.heads) == 4 and {len(h) for h in group.heads} == {8}
    found = [places(group, c) for c in range(32)]
    pairs = sorted(p["qkv.weight", 0] for p in found if len(p["qkv.weight", 0]) == 2)
    assert pairs == [(i, i + 16) for i in range(16)]
    values = {p["qkv.weight", 0][0]: p["proj.weight", 1] for p in found if len(p["qkv.weight", 0]) == 1}
    assert values == {i + 32: (i,) for i in range(16)}


class HeadsBesideSamples(nn.Module):
    """An attention whose heads stand beside those of the other samples along one axis."""

    def __init__(self, heads: int = 3, size: int = 12) -> None:
        super().__init__()
        self.heads, self.size = heads, size // heads
        self.stem, self.head = nn.Linear(12, size), nn.Linear(size, 2)
        self.q, self.k, self.v, self.o = (nn.Linear(size, size) for _ in range(4))

    def apart(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(x.shape[0], -1, self.heads, self.size).transpose(1, 2)
        return x.reshape(-1, x.shape[2], self.size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        b, n, _ = x.shape
        q, k, v = (self.apart(layer(x)) for layer in (self.q, self.k, self.v))
        y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        y = y.view(b, self.heads, n, self.size).transpose(1, 2).reshape(b, n, -1)
        return self.head(x + self.o(y))


def test_heads_beside_those_of_other_samples() -> None:
    model = net(HeadsBesideSamples())
    one, two = (str(speedup.channel_groups(model, tokens()[:n])) for n in (1, 2))
    assert one == two and two.count("3 heads whole") == 2 and "reads o.weight axis 1" in two


def test_a_gate_and_what_it_gates() -> None:
    groups = speedup.channel_groups(net(Gate()), image())
    assert places(find(groups, "a.weight"), 5)["two.weight", 0] == (5,)
    assert places(find(groups, "a.weight"), 5)["one.weight", 1] == (5,)
    assert find(groups, "one.weight").size == 4


def test_a_layer_that_runs_twice() -> None:
    (group,) = speedup.channel_groups(net(Twice()), tokens())
    assert places(group, 2)["b.weight", 0] == places(group, 2)["b.weight", 1] == (2,)


def test_equal_halves() -> None:
    (group,) = speedup.channel_groups(net(Halves()), image())
    assert [b.tolist() for b in group.blocks] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_all_columns_that_a_channel_becomes() -> None:
    (group,) = speedup.channel_groups(net(Flat()), image())
    assert places(group, 1)["fc.weight", 1] == tuple(range(64, 128))


def test_tokens_and_positions() -> None:
    (group,) = speedup.channel_groups(net(Positions()), tokens())
    assert {("first", 2), ("table", 2), ("norm.weight", 0), ("a.weight", 0)} <= places(group, 0).keys()
    assert all(indices == (0,) for indices in places(group, 0).values())


@pytest.mark.parametrize("table", [False, True])
def test_tokens_that_are_put_beside_those_of_the_input(table: bool) -> None:
    groups = speedup.channel_groups(randomize(Registers(table)), torch.randn(2, 5, 4))
    assert places(find(groups, "b.weight"), 5)["out.weight", 1] == (5,)
    if table:
        assert len(groups) == 1
    else:
        assert places(find(groups, "a.weight"), 4)["tokens", 1] == (4,)


def test_tables_of_rows_and_of_columns() -> None:
    model, x = randomize(Grid()), torch.randn(2, 3, 4, 4)
    groups = speedup.channel_groups(model, x)
    assert places(find(groups, "columns"), 1)["a.weight", 0] == (1,)
    assert places(find(groups, "rows"), 1)["a.weight", 0] == places(find(groups, "rows"), 1)["out.weight", 1] == (5,)
    result = check_equal(model, x, speedup.prune_masks(model, x), [torch.randn(1, 3, 5, 6)])
    assert result.shape("rows") == result.shape("columns") == (9, 2)


def test_learned_rows_that_look_at_those_of_the_input() -> None:
    model, x = randomize(Latents()), torch.randn(2, 5, 4)
    groups = speedup.channel_groups(model, x)
    assert len(groups) == 3
    assert places(find(groups, "q.weight"), 2)["k.weight", 0] == (2,)
    assert places(find(groups, "v.weight"), 3)["proj.weight", 1] == (3,)
    assert (
        places(find(groups, "proj.weight"), 5)["rows", 1]
        == places(find(groups, "proj.weight"), 5)["q.weight", 1]
        == (5,)
    )
    result = check_equal(model, x, speedup.prune_masks(model, x), [torch.randn(1, 9, 4)])
    assert result.shape("rows") == (5, 4) and result.shape("q.weight") == (3, 4)


class Empty(nn.Module):
    """With a memory in front of the tokens, of which there is nothing yet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        result: torch.Tensor = self.b(torch.cat([x[:, :0].clamp(-10, 10), x], 1))
        return result


def test_a_part_that_is_empty() -> None:
    (group,) = speedup.channel_groups(randomize(Empty()), torch.randn(2, 5, 4))
    assert places(group, 2)["b.weight", 1] == (2,)


class Scan(nn.Module):
    """Channels by states, as a state-space model keeps them: the state is made of both, and of zeros at first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(4, 8), nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(8, 3)
        self.decay = nn.Parameter(torch.ones(8, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c = self.a(x), self.b(x), self.c(x)
        state, outputs = torch.zeros(len(x), 8, 6).to(x.dtype), []
        for i in range(x.shape[1]):
            state = state * torch.exp(-self.decay * a[:, i, :, None]) + a[:, i, :, None] * b[:, i, None]
            outputs.append((state * c[:, i, None]).sum(-1))
        return self.d(torch.stack(outputs, 1))


def test_channels_by_states() -> None:
    model, x = net(Scan()), tokens(4)
    groups = speedup.channel_groups(model, x)
    assert [(g.size, {m.parameter for m in g.members} >= own) for g, own in zip(groups, (
        {"a.weight", "decay", "d.weight"}, {"b.weight", "c.weight", "decay"}
    ), strict=True)] == [(8, True), (6, True)]  # fmt: skip
    result = check_equal(model, x, speedup.prune_masks(model, x), [tokens(4)[:1, :3]])
    assert result.shape("decay") == (4, 3)


class HeadScan(nn.Module):
    """Linear attention step by step: for each head a state of keys by values, which are made of the same heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, -1)) for layer in (self.q, self.k, self.v))
        state, outputs = torch.zeros(len(x), 2, k.shape[-1], v.shape[-1], dtype=x.dtype), []
        for i in range(x.shape[1]):
            state = state * torch.sigmoid(k[:, i, :, :, None]) + k[:, i, :, :, None] * v[:, i, :, None]
            outputs.append((q[:, i, :, :, None] * state).sum(-2))
        return self.o(torch.stack(outputs, 1).flatten(2))


def test_keys_by_values_of_the_same_heads() -> None:
    model, x = net(HeadScan()), tokens(4)
    groups = speedup.channel_groups(model, x)
    assert [(g.size, len(g.blocks), {m.parameter for m in g.members if "bias" not in m.parameter}) for g in groups] == [
        (8, 2, {"q.weight", "k.weight"}), (12, 2, {"v.weight", "o.weight"})
    ]  # fmt: skip
    result = check_equal(model, x, speedup.prune_masks(model, x), [tokens(4)[:1, :3]])
    assert result.shape("k.weight")[0] < 8 and result.shape("o.weight") == (3, 6)


@pytest.mark.parametrize("layers", [("v",), ("q", "k")])
def test_keys_or_values_keep_places_of_their_own_in_each_head(layers: Sequence[str]) -> None:
    model, x = net(HeadScan()), tokens(4)
    size = len(model.get_submodule(layers[0]).weight) // 2
    drop = [0, 1, size + 1, size + 3]  # the first and second of one head, the second and fourth of the other
    masks = masks_of(model, {f"{layer}.{part}": drop for layer in layers for part in ("weight", "bias")})
    result = check_equal(model, x, masks, [tokens(4)[:1, :3]])
    assert all(result.shape(f"{layer}.weight") == (2 * size - 4, 4) for layer in layers)


class Typed(nn.Module):
    """A tensor that is made of the type of another one, and one that is made by it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        weights = torch.linspace(1, 2, x.shape[1]).type_as(x)
        result: torch.Tensor = self.b(torch.cat([x.new_zeros(len(x), 1, 8), x * weights[:, None]], 1))
        return result


def test_where_only_the_type_of_a_tensor_is_asked_for() -> None:
    (group,) = speedup.channel_groups(net(Typed()), tokens(4))
    assert places(group, 2)["b.weight", 1] == (2,)


class Shifted(nn.Module):
    """Steps in front: the batch is the second axis of what a step is put before."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(0, 1)
        result: torch.Tensor = self.b(self.a(torch.cat([x.new_zeros(1, *x.shape[1:]), x[:-1]])))
        return result


def test_a_step_that_is_put_in_front() -> None:
    (group,) = speedup.channel_groups(net(Shifted()), tokens(4))
    assert group.size == 8


class Chosen(nn.Module):
    """Points that are chosen one after the other, as many as the code says."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(4, 8, 1), nn.Conv1d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = torch.zeros(len(x), 6, dtype=torch.long)
        for i in range(6):
            chosen[:, i] = x[..., 0].argmax(1) if i == 0 else (chosen[:, i - 1] + 2) % x.shape[1]
        points = x[torch.arange(len(x))[:, None], chosen]
        result: torch.Tensor = self.b(self.a(points.transpose(1, 2))).amax(2)
        return result


def test_points_that_the_code_counts() -> None:
    (group,) = speedup.channel_groups(net(Chosen()), tokens(4))
    assert group.size == 8 and places(group, 2)["b.weight", 1] == (2,)


class LowRank(nn.Linear):
    """With a product of two small matrices added to the weight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight + self.up @ self.down * 0.5, self.bias)


def test_weights_that_are_computed() -> None:
    model, x = randomize(nn.Sequential(LowRank(4, 8), nn.ReLU(), LowRank(8, 3))), torch.randn(2, 4)
    (group,) = speedup.channel_groups(model, x)
    assert places(group, 2)["0.weight", 0] == places(group, 2)["0.up", 0] == (2,)
    result = check_equal(model, x, speedup.prune_masks(model, x), [torch.randn(5, 4)])
    assert result.shape("0.up") == (4, 2) and result.shape("2.down") == (2, 4)


def test_what_no_rule_knows_stays() -> None:
    groups = speedup.channel_groups(net(Barrier()), tokens())
    assert [g.name for g in groups] == ["b.weight"]


class Counted(nn.Module):
    """Mean and variance are counted by a function, in the place of which another one goes on counting what went."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.b(F.layer_norm(self.a(x), (6,)))))


def test_what_a_function_counts_goes() -> None:
    assert [g.name for g in speedup.channel_groups(net(Counted()), tokens())] == ["a.weight", "b.weight"]


def test_outputs_and_inputs_stay() -> None:
    assert len(speedup.channel_groups(net(nn.Sequential(nn.Linear(12, 4))), tokens())) == 0
    assert str(speedup.channel_groups(net(nn.Sequential(nn.Linear(12, 4))), tokens())) == "no channel can go"


NETS: list[tuple[Callable[[], nn.Module], torch.Tensor]] = [
    (Residual, image()),
    (Joined, image()),
    (Depthwise, image()),
    (lambda: Depthwise(2), image()),
    (Grouped, image()),
    (lambda: Attention(True), tokens()),
    (lambda: Attention(False), tokens()),
    (Gate, image()),
    (Twice, tokens()),
    (Halves, image()),
    (Flat, image()),
    (Positions, tokens()),
    (Barrier, tokens()),
]


def drop(groups: Sequence[Group], share: float, seed: int) -> list[Any]:
    generator = np.random.default_rng(seed)
    dropped = []
    for group in groups:
        count = int(min(map(len, group.blocks)) * share)
        dropped.append(group.even(generator.random(group.size), count))
    return dropped


@pytest.mark.parametrize("number", range(len(NETS)))
def test_what_groups_say_can_go_goes(number: int) -> None:
    """Random channels, as many of each block: the small model is equal, and of every parameter just the masked indices
    are gone (a norm over channels keeps one carrier)."""
    make, x = NETS[number]
    model = net(make())
    groups = speedup.channel_groups(model, x)
    dropped = drop(groups.groups, 0.5, number)
    masks = groups.masks(dropped)
    nested: dict[str, dict[str, torch.Tensor]] = {}
    for name, mask in masks.items():
        path, _, attribute = name.rpartition(".")
        nested.setdefault(path, {})[attribute] = mask.double()
    result = check_equal(model, x, nested)
    carriers = int(any(isinstance(m, nn.LayerNorm) for m in model.modules()))
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        for member in (m for g in groups for m in g.members if m.parameter == name and m.axis is not None):
            rest = [a for a in range(mask.ndim) if a != member.axis]
            kept = int((mask.any(rest[0]) if len(rest) == 1 else mask.amax(rest) > 0 if rest else mask).sum())
            assert kept <= result.shape(name)[member.axis] <= kept + carriers, name
        assert parameter.shape != result.shape(name)


@pytest.mark.parametrize("number", range(len(NETS)))
def test_nothing_less_would_go(number: int) -> None:
    """A channel is the smallest thing: with one of its makers left out, the others stay."""
    make, x = NETS[number]
    model = net(make())
    for group in speedup.channel_groups(model, x):
        makers = [m for m in group.members if m.makes and m.channels.ndim > 1]
        if len(makers) < 2 or len(group.blocks) > 1:
            continue
        only = {makers[0].parameter: torch.from_numpy(makers[0].channels != 0).expand(
            model.get_parameter(makers[0].parameter).shape)}  # fmt: skip
        path, _, attribute = makers[0].parameter.rpartition(".")
        result = check_equal(model, x, {path: {attribute: only[makers[0].parameter].double()}})
        if isinstance(model, Depthwise | Gate):
            continue  # products with 0, and constants, go by themselves
        assert result.shape(makers[1].parameter) == tuple(model.get_parameter(makers[1].parameter).shape)


def test_sums_over_channels() -> None:
    model = net(Joined())
    group = find(speedup.channel_groups(model, image()), "b.weight")
    wanted = model.get_parameter("b.weight").abs().sum((1, 2, 3)) + model.get_parameter("c.weight").abs()[:, 6:].sum(
        (0, 2, 3)
    )
    found = group.sums({n: model.get_parameter(n).abs() for n in ("b.weight", "c.weight")})
    torch.testing.assert_close(found, wanted.detach())
    made = group.sums({n: model.get_parameter(n).abs() for n in ("b.weight", "c.weight")}, makes=True)
    torch.testing.assert_close(made, model.get_parameter("b.weight").detach().abs().sum((1, 2, 3)))


def test_the_model_is_left_alone() -> None:
    model = net(Residual())
    before = {n: (id(t), t.clone()) for n, t in model.state_dict(keep_vars=True).items()}
    speedup.channel_groups(model.train(), image())
    assert model.training
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert before[name][0] == id(tensor) and torch.equal(before[name][1], tensor)


def test_wrong_arguments() -> None:
    with pytest.raises(speedup.InputError, match="not a torch"):
        speedup.channel_groups(3, image())  # type: ignore[arg-type]
    with pytest.raises(speedup.TraceError):
        speedup.channel_groups(net(Residual()), tokens())


# ---------------------------------------------------------------- align


def masks_of(model: nn.Module, dropped: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    masks = {}
    for name, indices in dropped.items():
        masks[name] = torch.ones(model.get_parameter(name).shape, dtype=torch.bool)
        masks[name][indices] = False
    return masks


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = (nn.Linear(12, 6) for _ in range(4))
        self.out = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.a(x) + self.b(x) + self.c(x))


@pytest.mark.parametrize(("policy", "gone"), [("union", [0, 1, 2, 3]), ("intersection", [0]), ("vote", [0, 1])])
def test_policies(policy: Any, gone: list[int]) -> None:
    model = net(Three())
    given = masks_of(model, {"a.weight": [0, 1, 2], "b.weight": [0, 1], "c.weight": [0, 3]})
    aligned = speedup.align(model, tokens(), given, policy)
    for name in ("a.weight", "b.weight", "c.weight", "a.bias", "b.bias"):
        assert (~aligned[name].reshape(6, -1).any(1)).nonzero().flatten().tolist() == gone
    small = speedup.plan(model, tokens(), aligned).apply()
    assert small.get_parameter("b.weight").shape[0] == 6 - len(gone)


class Windows(nn.Module):
    """Neighbours beside one another, weighed by each group of channels for itself (an involution)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.weigh, self.c = conv(3, 8), nn.Conv2d(8, 18, 1), conv(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        b, _, h, w = x.shape
        weights = self.weigh(x).view(b, 2, 1, 9, h, w)
        return self.c((F.unfold(x, 3, padding=1).view(b, 2, 4, 9, h, w) * weights).sum(3).flatten(1, 2))


def test_what_pads_windows_goes_with_the_channels_that_it_stands_beside() -> None:
    model = net(Windows())
    group = find(speedup.channel_groups(model, image()), "a.weight")
    assert places(group, 1)["a.weight", 0] == (4, 5, 6, 7)
    assert places(group, 1)["weigh.weight", 0] == tuple(range(9, 18))
    masks = speedup.prune_masks(model, image(), sparsity=0.5)
    result = check_equal(model, image(), masks, other_inputs=[image(size=6)])
    assert result.shape("c.weight") == (2, 4, 3, 3)


class Splines(nn.Module):
    """A layer with a curve for each pair of channels (Kolmogorov-Arnold networks)."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.out = out
        self.register_buffer("grid", torch.linspace(-1, 1, 4).repeat(into, 1))
        self.weight, self.scale = nn.Parameter(torch.ones(out, into, 4)), nn.Parameter(torch.ones(out, into))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        curves = (x[..., None] - self.grid).tanh().flatten(1)
        return F.linear(curves, (self.weight * self.scale[..., None]).view(self.out, -1))


class Columns(nn.Module):
    """A convolution as a product with all windows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 6), conv(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        y = self.b.weight.view(6, -1) @ F.unfold(x, 3, padding=1) + self.b.bias[:, None]
        return self.c(y.view(len(x), -1, *x.shape[2:]))


def test_axes_of_a_weight_that_become_one() -> None:
    model, x = net(nn.Sequential(Splines(5, 8), Splines(8, 6), Splines(6, 2))), tokens(5)[0]
    group = find(speedup.channel_groups(model, x), "0.scale")
    assert {("0.weight", 0), ("0.scale", 0), ("1.weight", 1), ("1.scale", 1)} == places(group, 3).keys()
    assert "reads 1.weight axis 1 [0-7]" in str(group)
    result = check_equal(model, x, speedup.prune_masks(model, x))
    assert result.shape("1.weight") == (3, 4, 4) and result.shape("1.grid") == (4, 4)
    model, x = net(Columns()), image()
    result = check_equal(model, x, speedup.prune_masks(model, x), [image(size=6)])
    assert result.shape("b.weight") == (3, 4, 3, 3)


class Stored(nn.Module):
    """Learned patterns: beside the input through its norm and a layer, and as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.patterns, self.a, self.norm = nn.Parameter(torch.ones(7, 8)), nn.Linear(4, 8), nn.LayerNorm(8)
        self.q, self.k, self.v, self.out = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.q(self.norm(self.a(x))) @ self.k(self.norm(self.patterns)).mT
        result: torch.Tensor = self.out(torch.relu(scores.softmax(-1) @ self.v(self.patterns)))
        return result


class Features(nn.Module):
    """Queries and keys of all heads by the same random features (performers)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 48), nn.Linear(16, 3)
        self.register_buffer("features", torch.randn(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        q, k = (torch.einsum("bhnd,fd->bhnf", t, self.features).exp() for t in (q, k))
        result: torch.Tensor = self.out((q @ (k.mT @ v)).transpose(1, 2).flatten(2))
        return result


def test_patterns_that_stand_beside_the_input_and_are_read_as_they_are() -> None:
    model, x = net(Stored()), tokens(4)
    group = find(speedup.channel_groups(model, x), "a.weight")
    assert {("patterns", 1), ("norm.weight", 0), ("k.weight", 1), ("v.weight", 1)} <= places(group, 3).keys()
    assert check_equal(model, x, speedup.prune_masks(model, x)).shape("patterns") == (7, 4)


def test_a_table_that_queries_and_keys_are_compared_with() -> None:
    model, x = net(Features()), tokens(4)
    group = find(speedup.channel_groups(model, x), "qkv.weight")
    assert (3, 11, 19, 27) in [indices for _, _, indices in group.channel(3)]
    result = check_equal(model, x, speedup.prune_masks(model, x))
    assert result.shape("features") == (5, 4) and result.shape("qkv.weight") == (24, 4)


class Mixing(nn.Module):
    """Tokens are mixed for each channel alike, with a layer between them (MLP-Mixer)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.up, self.down = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(5, 6), nn.Linear(6, 5)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x = x + self.down(torch.relu(self.up(self.norm(x).mT))).mT
        result: torch.Tensor = self.out(x).mean(1)
        return result


def test_channels_beside_tokens_that_are_mixed() -> None:
    model, x = net(Mixing()), tokens(4)
    assert places(find(speedup.channel_groups(model, x), "a.weight"), 3)["out.weight", 1] == (3,)
    assert check_equal(model, x, speedup.prune_masks(model, x)).shape("a.weight") == (4, 4)


def test_a_layer_without_masks_has_a_say() -> None:
    model = net(Three())
    given = masks_of(model, {"a.weight": [0, 1], "b.weight": [1]})
    assert speedup.align(model, tokens(), given, "intersection") == {}
    assert (~speedup.align(model, tokens(), given, "vote")["c.weight"].any(1)).nonzero().flatten().tolist() == [1]


def test_single_entries_stay_masked() -> None:
    model = net(Three())
    given = masks_of(model, {"a.weight": [0], "b.weight": []})
    given["b.weight"][3, 4] = False
    for policy in ("union", "intersection"):
        assert not speedup.align(model, tokens(), given, policy)["b.weight"][3, 4]  # type: ignore[arg-type]


def test_norms_say_what_filters_do_not() -> None:
    model = net(Residual())
    aligned = speedup.align(model, image(), masks_of(model, {"a.weight": [2], "b.weight": [2], "norm.weight": [4]}))
    assert (~aligned["norm.bias"]).nonzero().flatten().tolist() == [2, 4]


def test_blocks_go_evenly_and_counts_are_rounded() -> None:
    model = net(Grouped())
    given = masks_of(model, {"a.weight": [0, 1, 5], "g.weight": [0, 1, 2, 6]})
    counts = {}
    for policy in ("union", "intersection", "vote"):
        aligned = speedup.align(model, image(), given, policy)  # type: ignore[arg-type]
        counts[policy] = [int((~aligned[n].amax((1, 2, 3))).sum()) for n in ("a.weight", "g.weight")]
    assert counts == {"union": [4, 6], "intersection": [2, 2], "vote": [4, 4]}
    rounded = speedup.align(model, image(), given, "union", round_to=4)
    assert [int(rounded[n].amax((1, 2, 3)).sum()) for n in ("a.weight", "g.weight")] == [4, 8]


def test_wrong_arguments_of_align() -> None:
    with pytest.raises(speedup.InputError, match="union, intersection, vote"):
        speedup.align(net(Three()), tokens(), {"a.weight": torch.ones(6, 12)}, "most")  # type: ignore[arg-type]
    with pytest.raises(speedup.MaskError):
        speedup.align(net(Three()), tokens(), {"d.weight": torch.ones(6, 12)})
