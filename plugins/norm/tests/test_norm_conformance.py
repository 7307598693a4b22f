"""Every rule of this plugin shows what speedup asks of a rule: see ``speedup.testing.RuleTests``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import Case, RuleTests, around, chain
from speedup_plugin_norm import calls
from speedup_plugin_norm.compensated import GroupNormForward, LayerNormForward, RMSNormForward, compensate
from speedup_plugin_norm.custom import NAMES

MAP = (2, 8, 6, 6)
TOKENS = (2, 6, 8)
WHOLE = (8, 1, 1), (1, 2, 3)  # shape and axes of a norm over all channels and positions


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


def earlier() -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """What an earlier round left of a layer, of a group norm, of an RMS norm without a weight, and of a layer of which
    two channels say what went."""
    tokens, image, plain = nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.RMSNorm(8, elementwise_affine=False)
    copies = nn.LayerNorm(8)
    gone = torch.tensor([3.0, 2.0]).reshape(1, 2, 1, 1)  # numbers that differ are left as they are by the kit
    compensate(tokens, LayerNormForward, stat_axis=-1, stat_eps=1e-5, removed=3, removed_mean=0.2, removed_spread=0.7)
    compensate(image, GroupNormForward, stat_eps=1e-5, removed=gone, removed_mean=0.1 * gone, removed_spread=gone)
    compensate(plain, RMSNormForward, stat_axis=-1, stat_eps=1e-5, removed=3, removed_mean=0.0, removed_spread=0.7)
    lost = {"removed": 3, "removed_mean": 0.2, "removed_spread": 0.7}
    by = {"removed_by": torch.tensor([1, 4]), "removed_shares": torch.tensor([0.5, -2.0])}
    by["removed_rows"] = torch.tensor([[1.0, 0.5, 0.2], [0.0, 3.0, -1.0]])
    compensate(copies, LayerNormForward, stat_axis=-1, stat_eps=1e-5, **by, **lost)
    return tokens, image, plain, copies


class OffsetLayerNorm(nn.LayerNorm):
    """As in Nemotron: scaled by one more than the weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class OffsetNorm(nn.Module):
    """As in Gemma: scaled by one more than the weight."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(features)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (1 + self.weight) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class OtherGroupNorm(nn.GroupNorm):
    """With a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class GroupNormAct(OtherGroupNorm):
    """With an activation behind it."""

    def __init__(self, groups: int, features: int) -> None:
        super().__init__(groups, features)
        self.act = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.act(super().forward(x))
        return y


class ResponseNorm(nn.Module):
    """As in ConvNeXt V2, channels last."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.weight, self.bias = nn.Parameter(torch.zeros(features)), nn.Parameter(torch.zeros(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        g = x.norm(p=2, dim=(1, 2), keepdim=True)
        g = g / (g.mean(dim=-1, keepdim=True) + self.eps)
        return x + torch.addcmul(self.bias.view(1, 1, 1, -1), self.weight.view(1, 1, 1, -1), x * g)


class Evo(nn.Module):
    """EvoNorm S0."""

    def __init__(self, features: int, groups: int) -> None:
        super().__init__()
        self.groups, self.eps = groups, 1e-3
        self.weight, self.bias, self.v = (nn.Parameter(torch.ones(features)) for _ in "wbv")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias, v = (p.view(1, -1, 1, 1) for p in (self.weight, self.bias, self.v))
        grouped = x.unflatten(1, (self.groups, -1))
        spread = grouped.var((2, 3, 4), unbiased=False, keepdim=True).expand(grouped.shape).reshape(x.shape)
        return x * (x * v).sigmoid() / (spread + self.eps).sqrt() * weight + bias


class Simple(nn.Module):
    """Of timm, channels last."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(features)), 1e-3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.var(-1, keepdim=True) + self.eps) * self.weight


class Named(nn.Module):
    """A layer norm as people write it, with names and shapes of their own."""

    def __init__(self, names: tuple[str, str], shape: tuple[int, ...] = (8,), axis: int | tuple[int, ...] = -1) -> None:
        super().__init__()
        self.names, self.axis, self.eps = names, axis, 1e-5
        setattr(self, names[0], nn.Parameter(torch.ones(shape)))
        setattr(self, names[1], nn.Parameter(torch.zeros(shape)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centered = x - x.mean(self.axis, keepdim=True)
        deviation = (centered.pow(2).mean(self.axis, keepdim=True) + self.eps).sqrt()
        return getattr(self, self.names[0]) * centered / deviation + getattr(self, self.names[1])


def smaller(names: tuple[str, str]) -> nn.Module:
    """What an earlier round left of it."""
    lost = {"removed": 3, "removed_mean": 0.2, "removed_spread": 0.7}
    return compensate(Named(names), LayerNormForward, stat_axis=-1, stat_eps=1e-5, stat_names=names, **lost)


def smaller_groups(names: tuple[str, str]) -> nn.Module:
    """What an earlier round left of a group norm with such names."""
    module = Named(names, *WHOLE)
    module.num_groups = 2
    gone = torch.tensor([3.0, 2.0]).reshape(1, 2, 1, 1)
    lost = {"removed": gone, "removed_mean": 0.1 * gone, "removed_spread": gone}
    return compensate(module, GroupNormForward, stat_eps=1e-5, stat_names=names, **lost)


def mixed(m, x: torch.Tensor) -> torch.Tensor:
    """As in an MLP-Mixer, where a bias over the tokens makes the same of all channels that are 0."""
    norm, mix, last = m.layers
    return last(x + mix(norm(x).transpose(1, 2)).transpose(1, 2))


class TestConformance(RuleTests):
    plugins = ("norm",)
    # They say that entries are unused of which a length, or the size of a product, depends: `refit` makes up for them.
    unasked = ("weight_norm", "spectral_norm")

    def cases(self) -> list[Case]:
        return [
            chain(TOKENS, nn.LayerNorm(8), nn.RMSNorm(8), nn.LayerNorm((6, 8), elementwise_affine=False)),
            chain(MAP, nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(8, 8)),
            chain(MAP, nn.InstanceNorm2d(8, track_running_stats=True)),
            chain(TOKENS, OtherNorm(8, True), OtherNorm(8, False), OffsetNorm(8)),
            chain(TOKENS, OffsetLayerNorm(8), nn.RMSNorm(8, elementwise_affine=False)),
            chain(MAP, OtherGroupNorm(2, 8)),
            chain(MAP, Evo(8, 2)),
            chain(MAP, Evo(8, 1)),
            chain((2, 6, 7, 8), Simple(8)),
            chain(MAP, GroupNormAct(2, 8)),
            chain(MAP, nn.LocalResponseNorm(3, alpha=0.5)),
            around(lambda m, x: m.layers[0](x.permute(0, 2, 3, 1)), MAP, [ResponseNorm(8)]),
            chain(TOKENS, earlier()[0]),
            chain(MAP, earlier()[1]),
            chain(TOKENS, earlier()[2]),
            chain(TOKENS, earlier()[3]),
            around(mixed, TOKENS, [nn.LayerNorm(8), nn.Linear(6, 6), nn.LayerNorm(8)]),
            chain(MAP, Named(NAMES[0], (1, 8, 1, 1), 1)),
            *(chain(TOKENS, Named(names)) for names in NAMES),
            *(chain(TOKENS, smaller(names)) for names in NAMES),
            *(chain(MAP, Named(names, *WHOLE)) for names in NAMES),
            *(chain(MAP, smaller_groups(names)) for names in NAMES),
            around(lambda m, x: F.layer_norm(x, (8,), m.scale, m.scale) + F.rms_norm(x, (8,), m.scale), TOKENS),
            around(lambda m, x: calls.layer_norm(x, (8,), m.scale, m.scale, total=11, gone_mean=0.2), TOKENS),
            around(lambda m, x: calls.layer_norm(x, (8,), m.scale, None, 1e-6, total=8, gone_spread=0.7), TOKENS),
            around(lambda m, x: calls.rms_norm(x, (8,), m.scale, total=11, gone_squares=0.7), TOKENS),
            around(lambda m, x: calls.group_norm(x, 4, m.scale, m.scale, total=3), MAP),
            around(lambda m, x: calls.group_norm(x, 1, m.scale, m.scale, total=9, gone_mean=0.2), MAP),
            around(lambda m, x: F.group_norm(x, 4, m.scale, m.scale) + F.instance_norm(x, weight=m.scale), MAP),
        ]
