"""The laws of inference hold for every rule of every family: see ``speedup.testing.check_laws``."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from speedup import Expansion, default_registry
from speedup.testing import check_laws, random_masks, randomize
from tests.graphs import random_case

MAP, VECTOR, TOKENS = (2, 8, 6, 6), (2, 8), (2, 6, 8)


class Net(nn.Module):
    """Layers in a list, and a function of them and of what a linear layer makes of the input's channels."""

    def __init__(self, function: Callable[..., Any], layers: list[nn.Module], shape: tuple[int, ...]) -> None:
        super().__init__()
        channels_last = len(shape) < 4
        self.first = nn.Linear(8, 8) if channels_last else nn.Conv2d(8, 8, 1)
        self.layers = nn.ModuleList(layers)
        self.function = function
        self.weight, self.scale = nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(8))
        self.order = torch.tensor([3, 0])

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, self.first(x))


def _unpooled(m: Net, x: torch.Tensor) -> torch.Tensor:
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(pooled, indices, 2)


def _unpooled1(m: Net, x: torch.Tensor) -> torch.Tensor:
    pooled, indices = F.max_pool1d(x.flatten(2), 2, return_indices=True)
    return F.max_unpool1d(pooled, indices, 2)


def _unpooled3(m: Net, x: torch.Tensor) -> torch.Tensor:
    pooled, indices = F.max_pool3d(x.unsqueeze(2).repeat(1, 1, 2, 1, 1), 2, return_indices=True)
    return F.max_unpool3d(pooled, indices, 2)


def _assigned(m: Net, x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 2:4] = x[:, 4:6] * 2
    y[:, 0] += 1
    return y


def _written(m: Net, x: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    y.copy_(x)
    z = torch.empty(x.shape, dtype=x.dtype)
    torch.add(x, y, out=z)
    return z + y.zero_() + x.new_empty(x.shape).copy_(x)


class FrozenBatchNorm2d(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.ones(features))
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.zeros(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class OtherNorm(nn.Module):
    """As libraries write them."""

    def __init__(self, features: int, centered: bool) -> None:
        super().__init__()
        self.weight, self.eps, self.centered = nn.Parameter(torch.ones(features)), 1e-6, centered
        if centered:
            self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.centered:
            x = x - x.mean(-1, keepdim=True)
            return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight + self.bias
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def _one_after_the_other(m: Net, x: torch.Tensor) -> torch.Tensor:
    for layer in m.layers:
        x = layer(x)
    return x


def _packed(m: Net, x: torch.Tensor) -> Any:
    y, state = m.layers[0](pack_padded_sequence(x, [6, 4], batch_first=True))
    return *pad_packed_sequence(y, batch_first=True), state


Model = tuple[Callable[..., Any], list[nn.Module], tuple[int, ...]]


def chain(shape: tuple[int, ...], *made: nn.Module) -> Model:
    return _one_after_the_other, list(made), shape


def of(function: Callable[..., Any], shape: tuple[int, ...] = MAP) -> Model:
    return function, [], shape


INSTALLED = {entry.name for entry in importlib.metadata.entry_points(group="speedup.plugins")}

FAMILIES: dict[str, list[Model]] = {
    "conv": [
        chain(MAP, nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular")),
        chain(MAP, nn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1, groups=2), nn.ConvTranspose2d(4, 3, 1)),
        chain(TOKENS, nn.Conv1d(6, 6, 3, groups=6), nn.ConvTranspose1d(6, 2, 2)),
        of(lambda m, x: F.conv2d(x, m.weight[:, :, None, None], m.scale)),
    ],
    "linear": [
        chain(TOKENS, nn.Linear(8, 6), nn.Linear(6, 3, bias=False)),
        of(lambda m, x: F.bilinear(x, x + 1, m.weight[None].expand(4, 8, 8), m.scale[:4]), VECTOR),
        of(lambda m, x: torch.addmm(m.scale, x, m.weight) + x @ m.weight, VECTOR),
        of(lambda m, x: torch.baddbmm(m.scale, x, x.transpose(1, 2) @ x), TOKENS),
        of(lambda m, x: torch.addmv(m.scale, m.weight, x[0]) + torch.inner(x, m.weight), VECTOR),
        of(lambda m, x: torch.einsum("ntc,oc->nto", x, m.weight) + torch.einsum("ntc,nsc->nts", x, x).sum(), TOKENS),
    ],
    "batchnorm": [
        chain(MAP, nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False), FrozenBatchNorm2d(8)),
        of(lambda m, x: torch.batch_norm(x, m.scale, m.scale, m.scale, m.scale.abs(), False, 0.1, 1e-5, False)),
        of(lambda m, x: F.batch_norm(x, m.scale, m.scale.abs(), training=False)),
        of(lambda m, x: F.batch_norm(x, None, None, m.scale, m.scale, training=True)),
    ],
    "pooling": [
        *(
            of(
                lambda m, x, d=d, k=k: k(
                    getattr(F, f"max_pool{d}d"),
                    getattr(F, f"avg_pool{d}d"),
                    getattr(F, f"lp_pool{d}d"),
                    getattr(F, f"adaptive_avg_pool{d}d"),
                )(x.flatten(2) if d == 1 else x if d == 2 else x.unsqueeze(2).repeat(1, 1, 4, 1, 1))
            )
            for d in (1, 2, 3)
            for k in (
                lambda a, b, c, e: lambda x: (a(x, 3, 1, 1), b(x, 3, 2, 1)),
                lambda a, b, c, e: lambda x: (c(x, 2, 2), b(x, 2, 1, 1, False, False)),
                lambda a, b, c, e: lambda x: (e(x, 1), e(x, 2)),
            )
        ),
        *(of(f) for f in (_unpooled, _unpooled1, _unpooled3)),
        of(lambda m, x: F.interpolate(x, scale_factor=2) + F.interpolate(x, size=12, mode="bilinear")),
        of(lambda m, x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False)),
        of(lambda m, x: (F.pad(x, (1, 1)), F.pad(x, (1, 0), value=0.5), F.pad(x, (1, 1, 1, 1), mode="reflect"))),
        of(lambda m, x: torch.constant_pad_nd(x, (1, 1), 2.0)),
    ],
    "elementwise": [
        of(lambda m, x: (x + m.scale) * x.exp() - torch.maximum(x, x.flip(-1)), TOKENS),
        of(lambda m, x: x / (x.abs() + 1) + torch.addcmul(x, x, m.scale) + torch.where(x > 0, x, m.scale), TOKENS),
        of(lambda m, x: x.to(torch.float32).double() + x.type_as(x), VECTOR),
        of(
            lambda m, x: x + torch.zeros(2, 8) + torch.ones(8) + torch.full((8,), 3.0) + torch.full((2, 8), 2.0), VECTOR
        ),
        of(lambda m, x: x * x.new_ones(8) + x.new_zeros(2, 8) + x.new_full((8,), 2.0) + torch.ones_like(x), VECTOR),
        of(lambda m, x: m.scale.expand_as(x) * x + x.clone().fill_(2.0), VECTOR),
        of(_written, VECTOR),
        of(lambda m, x: (torch.cat([x, x + 1, x], 1), torch.stack([x, -x], 1)), MAP),
    ],
    "activation": [
        chain(MAP, nn.ReLU(), nn.Sigmoid(), nn.PReLU(8), nn.Identity(), nn.Dropout2d(), nn.RReLU(), nn.Softmax2d()),
        of(lambda m, x: F.softmax(x, 1) + F.log_softmax(x, 2) + F.prelu(x, m.scale) + F.rrelu(x)),
        of(
            lambda m, x: F.glu(x, 1) + F.gelu(F.dropout(x, training=False)[:, :4]) + torch.dropout(x, 0.1, False)[:, :4]
        ),
    ],
    "reshape": [
        of(lambda m, x: x.permute(0, 2, 3, 1).transpose(1, 2).flip(0).roll(1, 1).repeat(1, 1, 1, 2)),
        of(lambda m, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2).movedim(1, -1).unsqueeze(0).squeeze(0)),
        of(lambda m, x: x.view(2, 2, 4, 6, 6).flatten(1, 2).reshape(2, -1).unflatten(1, (8, 36))),
        of(lambda m, x: (*x.chunk(2, 1), *x.split(3, 1), *torch.split(x, [2, 6], 1), *torch.tensor_split(x, 3, 1))),
        of(lambda m, x: (x[:, 2:6], x[:, 1], x.select(1, 3), x.narrow(1, 2, 3), x[:, [1, 1, 0]])),
        of(lambda m, x: (x.index_select(1, m.order), x.index_select(2, torch.tensor([3, 0])), x[m.weight[:2] > 0])),
        of(lambda m, x: (x[:, :, torch.tensor([1, 0])], x[torch.arange(2), torch.tensor([5, 7])], x[:, m.order])),
        of(lambda m, x: (*x.unbind(1), x.expand(3, -1, -1, -1, -1), x.tril())),
        chain(MAP, nn.ChannelShuffle(2), nn.Flatten(2), nn.Unflatten(1, (2, 4))),
        of(lambda m, x: F.channel_shuffle(x, 4) + x.view_as(x) + x.flatten(1).reshape(x.shape)),
        of(_assigned),
    ],
    "reduction": [
        of(lambda m, x: (x.sum(1), x.mean((2, 3)), x.amax(1), x.max(1).values, x.min(2).indices, x.std(1), x.prod(2))),
        of(lambda m, x: (x.topk(2, 1).values, x.quantile(0.5, 1), x.aminmax(dim=1), x.logsumexp(1), x.cumsum(1))),
        of(lambda m, x: (torch.linalg.vector_norm(x, dim=1), torch.linalg.norm(x, dim=1), x.norm(dim=1))),
        of(
            lambda m, x: (
                x.sort(1).values,
                x.var(1),
                x.kthvalue(2, 1).values,
                x.median(1).values,
                F.normalize(x, dim=1),
            )
        ),
    ],
    "norm": [
        chain(TOKENS, nn.LayerNorm(8), nn.RMSNorm(8), nn.LayerNorm((6, 8), elementwise_affine=False)),
        chain(MAP, nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(8, 8)),
        chain(MAP, nn.InstanceNorm2d(8, track_running_stats=True)),
        chain(TOKENS, OtherNorm(8, True), OtherNorm(8, False)),
        of(lambda m, x: F.layer_norm(x, (8,), m.scale, m.scale) + F.rms_norm(x, (8,), m.scale), TOKENS),
        of(lambda m, x: F.group_norm(x, 4, m.scale, m.scale) + F.instance_norm(x, weight=m.scale)),
    ],
    "attention": [
        of(lambda m, x: F.scaled_dot_product_attention(x, x + 1, x), TOKENS),
        (lambda m, x: m.layers[0](x, x, x)[0], [nn.MultiheadAttention(8, 2, batch_first=True)], TOKENS),
        chain(TOKENS, nn.TransformerEncoderLayer(8, 2, 4, batch_first=True)),
    ],
    "embedding": [
        of(
            lambda m, x: x + F.embedding(torch.arange(6), m.weight)[None] + m.weight[torch.tensor([1, 1, 0, 2, 3, 4])],
            TOKENS,
        ),
        (lambda m, x: x + m.layers[0](torch.arange(6) % 3), [nn.Embedding(3, 8)], TOKENS),
        of(
            lambda m, x: x + torch.embedding(m.weight, torch.arange(6)) * torch.embedding(x[0], torch.arange(6)), TOKENS
        ),
        (lambda m, x: x + m.layers[0](torch.arange(6).view(2, 3)), [nn.EmbeddingBag(7, 8)], VECTOR),
        (
            lambda m, x: [
                F.embedding_bag(i, table, mode=mode, padding_idx=padding)
                for table in (m.layers[0].weight, x)
                for i in [torch.tensor([[0, 1], [1, 1], [0, 0]])]
                for mode in ("sum", "mean", "max")
                for padding in (None, 0)
            ],
            [nn.Embedding(2, 8)],
            VECTOR,
        ),
        of(
            lambda m, x: [
                F.embedding_bag(
                    torch.tensor([0, 1, 1]), t, torch.tensor([0, 0, 2, 3]), mode=mode, include_last_offset=last
                )
                for t in (m.weight, x)
                for mode in ("sum", "mean", "max")
                for last in (False, True)
            ],
            VECTOR,
        ),
        of(
            lambda m, x: F.embedding_bag(
                torch.tensor([[0, 1], [1, 1]]), x, mode="sum", per_sample_weights=m.weight[:2, :2]
            ),
            VECTOR,
        ),
    ],
    "recurrent": [
        (lambda m, x: m.layers[0](x)[0], [nn.LSTM(8, 4, batch_first=True, bidirectional=True)], TOKENS),
        (lambda m, x: m.layers[0](x)[1], [nn.GRU(8, 4, num_layers=2)], TOKENS),
        (lambda m, x: m.layers[0](x), [nn.LSTMCell(8, 4)], VECTOR),
        (_packed, [nn.LSTM(8, 4, proj_size=2, bidirectional=True)], TOKENS),
    ],
}

# In eval mode these hand their input through, or a copy of it, which is no call to be asked about.
SILENT = {"identity", "torch.dropout", "contiguous"}
_ASKED: dict[str, set[str]] = {}


def made(model: Model) -> tuple[nn.Module, torch.Tensor]:
    function, own, shape = model
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return randomize(Net(function, own, shape), seed=3), x


def names(family: str) -> set[str]:
    plugin = importlib.metadata.entry_points(group="speedup.plugins")[family].load()
    return {rule.name for rule in plugin.speedup_rules() if not isinstance(rule, Expansion)}  # which are no calls


@pytest.mark.parametrize("family", sorted(INSTALLED))
@pytest.mark.parametrize("kind", ["filters+biases", "mixed"])
def test_rules_obey_the_laws(family: str, kind: str) -> None:
    for number, model in enumerate(FAMILIES[family]):
        net, x = made(model)
        asked = check_laws(net, x, random_masks(net, number, kind), seed=number, rounds=4)
        _ASKED.setdefault(family, set()).update(asked)


@pytest.mark.parametrize("family", sorted(INSTALLED))
def test_every_rule_is_asked(family: str) -> None:
    if family not in _ASKED:
        for model in FAMILIES[family]:
            net, x = made(model)
            _ASKED.setdefault(family, set()).update(check_laws(net, x, random_masks(net), rounds=1))
    assert names(family) - SILENT <= _ASKED[family]


def test_every_family_is_here() -> None:
    assert set(FAMILIES) == INSTALLED
    assert {name for family in INSTALLED for name in names(family)} == {
        rule.name for rule in default_registry().rules if not isinstance(rule, Expansion)
    }


@pytest.mark.parametrize("seed", range(2000, 2016))
def test_rules_obey_the_laws_in_random_networks(seed: int) -> None:
    case = random_case(seed, steps=5)
    check_laws(case.model(), case.inputs, case.masks, seed=seed, rounds=3)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(3000, 3400, 20))
def test_rules_obey_the_laws_in_many_random_networks(first: int) -> None:
    for seed in range(first, first + 20):
        case = random_case(seed)
        check_laws(case.model(), case.inputs, case.masks, seed=seed)
