"""Networks whose code holds sizes, for ``test_repair``. A file of its own, so that they can be unpickled elsewhere."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Module):
    """A convolution whose maps a linear layer reads: 8 channels of 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.fc = nn.Linear(128, 2)


class View(Conv):
    def forward(self, x: Tensor) -> Any:
        return self.fc(self.conv(x).view(-1, 128))


class Reshape(Conv):
    def forward(self, x: Tensor) -> Any:
        return self.fc(torch.reshape(self.conv(x), (x.shape[0], 8 * 16)))


class Merged(Conv):
    """A size that holds the batch too."""

    def forward(self, x: Tensor) -> Any:
        b, _, h, w = x.shape
        y = self.conv(x).reshape(b * 8, h * w).tanh()
        return self.fc(y.reshape(b, 8 * h * w))


class Mixed(nn.Module):
    """``C`` of the input is read where the size of another tensor is meant, in a product with positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        B, C, H, W = x.shape
        y = torch.relu(self.second(x))
        return self.last(y.reshape(B, C * H * W).reshape(B, C, H, W))


class Decorated(Conv):
    @staticmethod
    def times(factor: float) -> Callable[[Any], Any]:
        def decorate(forward: Any) -> Any:
            @functools.wraps(forward)
            def wrapper(self: Any, x: Tensor) -> Any:
                return forward(self, x) * factor

            return wrapper

        return decorate

    @times(2.0)
    def forward(self, x: Tensor) -> Any:
        return self.fc(self.conv(x).view(x.shape[0], 128))


def flat(x: Tensor, size: int) -> Tensor:
    return x.reshape(x.shape[0], size)


class Helped(Conv):
    """The size is an argument of a helper function."""

    def forward(self, x: Tensor) -> Any:
        return self.fc(flat(self.conv(x), 128))


class Inside(Conv):
    """The size is inside a function that the method calls."""

    def forward(self, x: Tensor) -> Any:
        return self.fc(_flat_128(self.conv(x)))


def _flat_128(x: Tensor) -> Tensor:
    return x.reshape(-1, 128)


class Deeper(Conv):
    """The size is inside a function that a function calls: out of reach."""

    def forward(self, x: Tensor) -> Any:
        return self.fc(_called_again(self.conv(x)))


def _called_again(x: Tensor) -> Tensor:
    return _flat_128(x)


class Chosen(Conv):
    """Which function is called is known at run time only: out of reach."""

    def forward(self, x: Tensor) -> Any:
        flatten = _flat_128 if self.conv.bias is None else _called_again
        return self.fc(flatten(self.conv(x)))


def doubled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        return 2 * function(*args, **kwargs)

    return wrapper


@doubled
def attend(x: Tensor, weight: Tensor, *, heads: int, out: nn.Module) -> Tensor:
    """Sizes from a shape, from a parameter, and a number made of one; as in torchvision's shifted windows."""
    B, N, C = x.shape
    q, k, v = F.linear(x, weight).reshape(B, N, 3, heads, C // heads).permute(2, 0, 3, 1, 4)
    q = q * (C // heads) ** -0.5
    y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
    result: Tensor = out(y.transpose(1, 2).reshape(B, N, C))
    return result


class InFunction(nn.Module):
    """All of the attention is in a function, and the method holds a size as well."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.embed = nn.Linear(3, 16)
        self.weight = nn.Parameter(torch.randn(48, 16))
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        y = attend(x, self.weight, heads=self.heads, out=self.out)
        return self.head((x + y).view(-1, x.shape[1], 16))


class Features(nn.Module):
    """Two linear layers with something in between."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 16, bias=False)
        self.two = nn.Linear(16, 3)


class Halves(Features):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 3), nn.Linear(8, 3)


class Split(Halves):
    def forward(self, x: Tensor) -> Any:
        a, b = self.one(x).split([8, 8], dim=1)
        return self.left(a) + self.right(b)


class EqualParts(nn.Module):
    """Parts of a size: of fewer channels that size would make fewer parts."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 24), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.one(x).split(8, -1)
        return self.two(q * k + v)


class SplitAttribute(Halves):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = [8, 8]

    def forward(self, x: Tensor) -> Any:
        a, b = torch.split(self.one(x), self.sizes, dim=-1)
        return self.left(a) + self.right(b)


class Slices(Halves):
    def forward(self, x: Tensor) -> Any:
        y = self.one(x)
        return self.left(y[:, :8]) + self.right(y[..., 8:])


class Gates(nn.Module):
    """Layers that read their parts of one condition, as in vocoders."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 8
        self.condition, self.one, self.two = nn.Linear(6, 32), nn.Linear(6, 8), nn.Linear(8, 2)
        self.layers = nn.ModuleList(nn.Linear(8, 16) for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        condition, y = self.condition(x), self.one(x)
        for i, layer in enumerate(self.layers):
            offset = i * 2 * self.size
            z = layer(y) + condition[:, offset : offset + 2 * self.size]
            y = y + torch.tanh(z[:, : self.size]) * torch.sigmoid(z[:, self.size :])
        return self.two(y)


class Cell(nn.Module):
    """A recurrent cell of convolutions, which says itself what its first state is."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Conv2d(inputs + size, 3 * size, 3, padding=1)

    def start(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), self.size, *x.shape[-2:], dtype=x.dtype)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        gate, out, new = torch.split(self.conv(torch.cat([x, state], 1)), self.size, dim=1)
        return torch.sigmoid(gate) * state + torch.sigmoid(out) * torch.tanh(new)


class Cells(nn.Module):
    """Cells of several sizes in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([Cell(3, 8), Cell(8, 6)])
        self.out = nn.Conv2d(6, 2, 1)

    def start(self, cell: Any, x: Tensor) -> Tensor:
        return torch.zeros(len(x), cell.size, *x.shape[-2:], dtype=x.dtype)

    def forward(self, x: Tensor) -> Any:
        frames = list(x.unbind(1))
        for cell in self.cells:
            state = self.start(cell, x)
            for i, frame in enumerate(frames):
                state = frames[i] = cell(frame, state)
        return self.out(frames[-1])


class StartingCells(Cells):
    def start(self, cell: Any, x: Tensor) -> Tensor:
        start: Tensor = cell.start(x)
        return start


class Zeros(Features):
    def forward(self, x: Tensor) -> Any:
        state = torch.zeros(x.shape[0], 16, dtype=x.dtype)
        return self.two(torch.tanh(self.one(x) + state))


class Full(Features):
    def forward(self, x: Tensor) -> Any:
        half = torch.full((len(x), 16), 0.5, dtype=x.dtype)
        return self.two(torch.tanh(self.one(x) + half + x.new_zeros(len(x), 16)))


class Assigned(Halves):
    def forward(self, x: Tensor) -> Any:
        y = torch.zeros(len(x), 16, dtype=x.dtype)
        y[:, :8] = self.one(x)[:, :8]
        y[:, 8:] = self.one(x)[:, 8:]
        return self.two(y)


class Starred(Features):
    def forward(self, x: Tensor) -> Any:
        y = self.one(x)
        y = y.view(*y.shape[:-1], 4, 4).tanh()
        shape = (*y.shape[:-2], 16)
        return self.two(y.reshape(shape))


class Compared(Features):
    def __init__(self) -> None:
        super().__init__()
        self.size = 16

    def forward(self, x: Tensor) -> Any:
        y = self.one(x)
        if y.shape[-1] != self.size:
            raise ValueError(f"expected {self.size}")
        return self.two(y.tanh())


class ComparedInside(Features):
    """As ``Compared``: the size is that of a layer in it."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Tanh()
        self.act.size = 16  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        y = self.one(x)
        size: int = self.act.size  # type: ignore[assignment]
        if y.shape[-1] - size < 0:
            raise ValueError(f"expected {size}")
        return self.two(self.act(y[..., :size]))


class Scales(nn.Module):
    """One factor per channel, which another module asks for by a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.factors = nn.Buffer(torch.linspace(1, 2, 4))

    def get(self) -> torch.Tensor:
        half = self.width // 2
        assert self.factors.numel() == half
        return torch.cat([self.factors, self.factors])


class Scaled(nn.Module):
    """A size is compared in another module than the one whose forward runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.scales = Scales()
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.conv(x).mean((2, 3)) * self.scales.get())
        return y


class Mean(Features):
    """Numbers made of a size keep what they meant."""

    def forward(self, x: Tensor) -> Any:
        y = self.one(x).tanh()
        size = y.shape[-1]
        return self.two(y) / size + self.two(y).tanh() * math.log(size)


class Gate(nn.Module):
    """A squeeze-and-excitation block with literal sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.gate = nn.Linear(16, 16)
        self.two = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.one(x)
        g = torch.sigmoid(self.gate(y.mean((2, 3)))).view(len(x), 16, 1, 1)
        return self.two(y * g.expand(len(x), 16, y.shape[2], y.shape[3]))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3, bias=False)
        self.weight = nn.Parameter(torch.zeros(16, 2, 3, 3))
        self.two = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Any:
        return self.two(F.conv2d(self.one(x), self.weight, groups=8))


class Shared(nn.Module):
    """One line of code for two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 8, 3, padding=1, bias=False) for _ in range(2))
        self.fcs = nn.ModuleList(nn.Linear(128, 2) for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        total = x.new_zeros(())
        for conv, fc in zip(self.convs, self.fcs, strict=True):
            total = total + fc(conv(x).view(-1, 128))
        return total


class Twice(nn.Module):
    """One module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = View()

    def forward(self, x: Tensor) -> Any:
        return self.body(x) + self.body(x.tanh())


class Pair(nn.Module):
    """Two modules of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = View(), View(), View()

    def forward(self, x: Tensor) -> Any:
        return self.first(x) + self.second(x) + self.third(x)


class Attention(nn.Module):
    """As in timm: fused projection, sizes from the input and from attributes."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = dim // heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.drop = nn.Dropout(0.5)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Any:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(self.mix(q * self.scale, k, v).transpose(1, 2).reshape(B, N, C))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result: Tensor = self.drop((q @ k.transpose(-2, -1)).softmax(-1)) @ v
        return result


class OldAttention(Attention):
    """As in older code: head sizes and scale computed in the forward."""

    def forward(self, x: Tensor) -> Any:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        q = q * (q.shape[-1] ** -0.5)
        y = self.mix(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(B, N, C))


class SplitAttention(nn.Module):
    """As in transformers: a method that splits the heads, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_size, self.all_head_size = 4, 4, 16
        self.q, self.k, self.v = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 16)
        self.out = nn.Linear(16, 8)

    def split_heads(self, x: Tensor) -> Tensor:
        new_shape = x.size()[:-1] + (self.heads, self.head_size)  # noqa: RUF005
        return x.view(new_shape).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.split_heads(self.q(x)), self.split_heads(self.k(x)), self.split_heads(self.v(x))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(self.head_size)).softmax(-1)
        y = (weights @ v).permute(0, 2, 1, 3).contiguous()
        return self.out(y.view(y.size()[:-2] + (self.all_head_size,)))  # noqa: RUF005


class Processor:
    """As in diffusers: an object that makes the calls of an attention, with one size of the keys for all."""

    def __call__(self, attention: ProcessedAttention, x: Tensor) -> Tensor:
        size = attention.k(x).shape[-1] // attention.heads

        def split(y: Tensor) -> Tensor:
            return y.view(x.shape[0], -1, attention.heads, size).transpose(1, 2)

        q, k, v = split(attention.q(x)), split(attention.k(x)), split(attention.v(x))
        y = (q @ k.transpose(-1, -2) * 0.25).softmax(-1) @ v
        return attention.out(y.transpose(1, 2).reshape(x.shape[0], -1, attention.heads * size))


class ProcessedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.q, self.k, self.v = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(8, 32)
        self.out = nn.Linear(32, 8)
        self.processor = Processor()

    def forward(self, x: Tensor) -> Any:
        return x + self.processor(self, x)


class OpenSplitAttention(SplitAttention):
    """One size of the heads is left open already."""

    def split_heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.heads, self.head_size).transpose(1, 2)


class Blocks(nn.Module):
    def __init__(self, block: type[nn.Module] = Attention, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))


class Stations(nn.Module):
    """Several lines of their own, each with a size; of what comes out numbers are made of sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.a(x).view(-1, 8))
        x = torch.relu(self.b(x * x.shape[1] ** -0.5).view(-1, 8))
        x = torch.relu(self.c(x * x.shape[1] ** -0.5).view(-1, 8))
        return self.d(x * x.shape[1] ** -0.5)


class CutFlat(nn.Module):
    """A position in an axis that holds channels and places at once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.conv(x).flatten(1)[:, 23:]


def scaled_in_pieces(x: Tensor, net: Any) -> Any:
    """Long inputs piece by piece: a function that calls itself, where no input of the tests is as long."""
    if len(x) > 500:
        return torch.cat([scaled_in_pieces(piece, net) for piece in x.split(500)])
    y = net.one(x)
    return net.two(y * (y.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt())


class InPieces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 10, bias=False), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Any:
        return scaled_in_pieces(x, self)
