"""A Llama in plain torch, of any size, and masks for it that take no memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    vocabulary: int = 128
    width: int = 48
    layers: int = 2
    heads: int = 4
    groups: int = 2  # heads of keys and values
    hidden: int = 80
    tied: bool = False

    @property
    def size(self) -> int:
        return self.width // self.heads


SEVEN_BILLION = Shape(32000, 4096, 32, 32, 32, 11008)


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = 1e-6

    def forward(self, x):
        wide = x if x.dtype == torch.float64 else x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.size, self.ratio = shape.size, shape.heads // shape.groups
        self.q_proj = nn.Linear(shape.width, shape.heads * shape.size, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.groups * shape.size, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.groups * shape.size, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.size, shape.width, bias=False)

    def forward(self, x, cos, sin):
        q, k, v = (p(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (t * cos + _turned(t) * sin for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.ratio > 1)
        return self.o_proj(y.transpose(1, 2).flatten(2))


def _turned(x):
    left, right = x.chunk(2, dim=-1)
    return torch.cat((-right, left), dim=-1)


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down_proj = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(shape), MLP(shape)
        self.input_layernorm, self.post_attention_layernorm = Norm(shape.width), Norm(shape.width)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


def frequencies(shape: Shape) -> torch.Tensor:
    """Of the rotary embedding."""
    return 1.0 / 10000 ** (torch.arange(0, shape.size, 2) / shape.size)


class Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.width)
        self.register_buffer("frequencies", frequencies(shape), persistent=False)

    def forward(self, ids):
        x = self.embed_tokens(ids)
        angles = torch.arange(ids.shape[1], device=ids.device)[:, None] * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class Llama(nn.Module):
    """Names of parameters are those of transformers."""

    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        if shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids):
        return self.lm_head(self.model(ids))


def build(shape: Shape = Shape(), dtype: torch.dtype = torch.float64, seed: int = 0) -> Llama:
    """With random weights, scales of norms among them."""
    torch.manual_seed(seed)
    model = Llama(shape).to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return model


def build_on_meta(shape: Shape = Shape(), dtype: torch.dtype = torch.float64) -> Llama:
    """Without weights; what the code computes (the frequencies) is there, as it is in no checkpoint."""
    with torch.device("meta"):
        model = Llama(shape).to(dtype).eval()
    model.model.frequencies = frequencies(shape).to(dtype)
    return model


def masks_for(model: nn.Module, shape: Shape, *, heads: bool = True, width: bool = False) -> dict[str, torch.Tensor]:
    """A third of the hidden units and of the groups of heads goes; with ``width`` a quarter of the stream too.

    Every mask is expanded from one line: it takes no memory.
    """
    sizes = {name: parameter.shape for name, parameter in model.named_parameters()}
    units = torch.arange(shape.hidden) % 3 != 1
    groups = torch.arange(shape.groups) >= (shape.groups // 2 if heads else 0)
    kept = groups.repeat_interleave(shape.size)
    queries = groups.repeat_interleave(shape.heads // shape.groups * shape.size)
    stream = torch.arange(shape.width) % 4 != 2 if width else torch.ones(shape.width, dtype=torch.bool)
    rows = {"gate_proj": units, "up_proj": units, "q_proj": queries, "k_proj": kept, "v_proj": kept}
    rows |= {"o_proj": stream, "down_proj": stream} if width else {}
    columns = {"embed_tokens": stream} if width else {"o_proj": queries, "down_proj": units}
    masks = {}
    for name, size in sizes.items():
        layer = name.split(".")[-2]
        if layer in rows:
            masks[name] = rows[layer][:, None].expand(size)
        elif layer in columns:
            masks[name] = columns[layer][None].expand(size)
    return masks
