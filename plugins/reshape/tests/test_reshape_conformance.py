"""Every rule of this plugin shows what speedup asks of a rule: see ``speedup.testing.RuleTests``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import Case, RuleTests, around, chain

MAP = (2, 8, 6, 6)


def assigned(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 2:4] = x[:, 4:6] * 2
    y[:, 0] += 1
    return y


class Order(nn.Module):
    """Holds an index as a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.order = torch.tensor([3, 0])
        self.rows = torch.arange(6).flip(0)[:, None].expand(2, 8, 6, 6).clone()


class Held(nn.Module):
    """Holds indices as buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.tensor([3, 0, 3, 7]))
        self.register_buffer("two", torch.tensor([1, 6]))


class Named(nn.Module):
    """A layer with a pattern, as einops has them."""

    def __init__(self) -> None:
        super().__init__()
        self.pattern, self.axes_lengths = "b (g c) y x -> b c y x g", {"g": 2}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, (self.axes_lengths["g"], -1)).movedim(1, -1)


class TestConformance(RuleTests):
    plugins = ("reshape",)
    unasked = ("masked_scatter", "masked_select", "nonzero")  # calls of the first are taken apart, others stay whole

    def cases(self) -> list[Case]:
        return [
            around(lambda m, x: x.permute(0, 2, 3, 1).transpose(1, 2).flip(0).roll(1, 1).repeat(1, 1, 1, 2), MAP),
            around(
                lambda m, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2).movedim(1, -1).unsqueeze(0).squeeze(0), MAP
            ),
            around(lambda m, x: x.view(2, 2, 4, 6, 6).flatten(1, 2).reshape(2, -1).unflatten(1, (8, 36)), MAP),
            around(
                lambda m, x: (*x.chunk(2, 1), *x.split(3, 1), *torch.split(x, [2, 6], 1), *torch.tensor_split(x, 3, 1)),
                MAP,
            ),
            around(lambda m, x: (*x.hsplit(2), *x.vsplit((1,)), *x.dsplit([2, 5])), MAP),
            around(lambda m, x: (x[:, 2:6], x[:, 1], x.select(1, 3), x.narrow(1, 2, 3), x[:, [1, 1, 0]]), MAP),
            around(
                lambda m, x: (
                    x.index_add(0, torch.tensor([1, 1]), x),
                    x.scatter_add(2, torch.zeros_like(x).long(), x),
                ),
                MAP,
            ),
            around(
                lambda m, x: (
                    x.index_select(1, m.layers[0].order),
                    x.gather(2, m.layers[0].rows),
                    x.take_along_dim(m.layers[0].rows, 2),
                    x.index_select(2, torch.tensor([3, 0])),
                    x[m.weight[:2] > 0],
                ),
                MAP,
                [Order()],
            ),
            around(
                lambda m, x: (
                    x[:, :, torch.tensor([1, 0])],
                    x[torch.arange(2), torch.tensor([5, 7])],
                    x[:, m.layers[0].order],
                ),
                MAP,
                [Order()],
            ),
            around(lambda m, x: (x[:, m.layers[0].one], x.index_select(1, m.layers[0].two)), MAP, [Held()]),
            around(
                lambda m, x: x.masked_scatter((x[..., :1] > 0).expand_as(x), x).index_fill(
                    0, x[0, 0, 0, :1].long() * 0, 0.0
                ),
                MAP,
            ),
            around(
                lambda m, x: (
                    x.gather(1, x.long().abs() % 8),
                    x.take_along_dim(x[:, :1].long().abs() % 6, 2),
                    x[:, :1].repeat(1, 3, 1, 1),
                    x.repeat_interleave(2, 1),
                ),
                MAP,
            ),
            around(lambda m, x: (*x.unbind(1), x.expand(3, -1, -1, -1, -1), x.tril()), MAP),
            chain(MAP, Named()),
            chain(MAP, nn.ChannelShuffle(2), nn.Flatten(2), nn.Unflatten(1, (2, 4))),
            around(lambda m, x: F.channel_shuffle(x, 4) + x.view_as(x) + x.flatten(1).reshape(x.shape), MAP),
            around(assigned, MAP),
            around(lambda m, x: F.fold(x.reshape(2, 8, 36)[:, :, :9], 4, 2), MAP),
        ]
