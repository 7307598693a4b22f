"""Data movement: cat, split, views, shuffles, copies."""

from __future__ import annotations

import math
from typing import Any

from tests.graphs.generator import Generator, Rejected, step


@step(6)
def join(g: Generator) -> str:
    x = g.pick(lambda v: v.ndim >= 2)
    shape = g.shape(x)
    dim = 1 if g.rng.random() < 0.8 else g.rng.randrange(len(shape))
    fit = [
        n
        for n, v in g.values.items()
        if v.ndim == len(shape) and all(v.shape[a] == s for a, s in enumerate(shape) if a != dim)
    ]
    parts = [x] + [g.rng.choice(fit) for _ in range(g.rng.choice((1, 1, 2)))]
    if g.rng.random() < 0.15:
        parts = [x, x]
    if g.rng.random() < 0.2 and all(g.shape(p) == shape for p in parts):
        y = g.emit(f"torch.stack([{', '.join(parts)}], {dim})", *parts)
        return g.emit(f"{y}.{g.rng.choice(('sum', 'mean', 'amax'))}({dim})", y)
    return g.emit(f"torch.cat([{', '.join(parts)}], {dim})", *parts)


@step(3)
def gate(g: Generator) -> str:
    """Two halves of the channels, one of which gates the other."""
    x = g.pick(lambda v: v.ndim >= 2 and v.shape[1] % 2 == 0)
    n = g.shape(x)[1]
    split = g.rng.choice((f"{x}.chunk(2, dim=1)", f"torch.split({x}, {n // 2}, 1)", f"{x}.tensor_split(2, 1)"))
    a, b = g.emit_several(split, 2, x)
    forms = (f"{a} * torch.sigmoid({b})", f"{a} + {b}", f"torch.cat([{b}, {a}], 1)", f"torch.maximum({a}, {b})")
    return g.emit(g.rng.choice(forms), a, b)


@step(5)
def divide(g: Generator) -> Any:
    x = g.pick(lambda v: v.ndim >= 2 and v.shape[1] >= 2)
    n = g.shape(x)[1]
    first = g.rng.randrange(1, n)
    halves = [
        (f"{x}.chunk(2, 1)", len(g.values[x].chunk(2, 1))),
        (f"torch.split({x}, [{first}, {n - first}], 1)", 2),
        (f"torch.tensor_split({x}, 2, dim=1)", 2),
        (f"{x}.split({n // 2}, dim=1)", -(-n // (n // 2))),
        (f"{x}.split({x}.shape[1] // 2, dim=1)", -(-n // (n // 2))),
    ]
    single = [
        f"{x}[:, {first}:]",
        f"{x}[:, :{first}]",
        f"{x}[:, ::2]",
        f"{x}.narrow(1, {first - 1}, 1)",
        f"{x}.flip(1)",
        f"torch.roll({x}, {first}, 1)",
        f"{x}[:, -{first}:]",
        f"{x}.unbind(1)[{first}].unsqueeze(1)",
        f"{x}.index_select(1, torch.tensor([{first}, 0]))",
        f"{x}[:, [{first}, 0, {first}]]",
        f"{x}[:, {first}:{first + 1}]",
        f"torch.cat([{x}[:, {first}:], {x}[:, :{first}]], 1)",
    ]
    if g.rng.random() < 0.5:
        return g.emit(g.rng.choice(single), x)
    text, count = g.rng.choice(halves)
    return g.emit_several(text, count, x)


@step(4)
def shuffle(g: Generator) -> str:
    x = g.map()
    shape = g.shape(x)
    groups = g.divisor(shape[1])
    rest = ", ".join(map(str, shape[2:]))
    sizes = ", ".join(f"{x}.shape[{a}]" for a in range(2, len(shape)))
    form = g.rng.randrange(4)
    if form == 0:
        y = g.emit(f"{x}.view({x}.shape[0], {groups}, {x}.shape[1] // {groups}, {sizes})", x)
        y = g.emit(f"{y}.transpose(1, 2).contiguous()", y)
        return g.emit(f"{y}.view({x}.shape[0], -1, {sizes})", y)
    if form == 1:
        y = g.emit(f"{x}.reshape(-1, {groups}, {shape[1] // groups}, {rest})", x)
        y = g.emit(f"{y}.transpose(1, 2)", y)
        return g.emit(f"{y}.reshape(-1, {shape[1]}, {rest})", y)
    if form == 2:
        return g.emit(f"{g.module(f'nn.ChannelShuffle({groups})')}({x})", x)
    if g.dims == 2 and shape[1] % 4 == 0 and g.rng.random() < 0.6:
        return g.emit(f"F.pixel_shuffle({x}, 2)", x)
    if g.dims == 2:
        return g.emit(f"F.pixel_unshuffle({x}, 2)", x)
    raise Rejected("shuffle")


@step(4)
def flatten(g: Generator) -> str:
    x = g.map()
    shape = g.shape(x)
    if math.prod(shape[1:]) > 200:
        x = g.emit(f"F.adaptive_avg_pool{g.dims}d({x}, {g.rng.choice((1, 2))})", x)
        shape = g.shape(x)
    forms = (
        "torch.flatten({x}, 1)",
        "{x}.view({x}.size(0), -1)",
        "{x}.reshape(-1, {n})",
        "{x}.flatten(1)",
        "{x}.reshape({x}.shape[0], {n})",
    )
    return g.emit(g.rng.choice(forms).format(x=x, n=math.prod(shape[1:])), x)


@step(4)
def regroup(g: Generator) -> str:
    """A vector as a small matrix or as a map, and back."""
    x = g.vector()
    n = g.shape(x)[1]
    k = g.divisor(n)
    form = g.rng.randrange(4)
    if form == 0:
        y = g.emit(f"{x}.view({x}.shape[0], {k}, -1)", x)
        return g.emit(
            f"{y}.{g.rng.choice(('sum(1)', 'mean(2)', 'amax(1)', 'flatten(1)', 'transpose(1, 2).flatten(1)'))}", y
        )
    if form == 1:
        return g.emit(f"{x}[:, :{''.join(', None' for _ in range(g.dims))}]", x)
    if form == 2:
        return g.emit(f"{x}.reshape(-1, {n}{', 1' * g.dims})", x)
    return g.emit(f"{x}.unflatten(1, ({k}, {n // k}))", x)


@step(3)
def spread(g: Generator) -> str:
    """Copies of entries, and other moves."""
    x = g.pick(lambda v: v.ndim >= 2)
    n, ndim = g.shape(x)[1], g.values[x].ndim
    forms = [
        "{x}.repeat_interleave(2, 1)",
        "{x}.repeat(1, 2{ones})",
        "torch.roll({x}, 1, -1)",
        "{x}.flip(-1)",
        "{x}[..., :2]",
        "{x}.unsqueeze(1).expand(-1, 2, *[-1] * {rest}).flatten(1, 2)",
        "{x}.tile((1, 2{ones}))",
        "{x}[:, :, None].sum(2)",
        "{x}.movedim(1, -1).movedim(-1, 1)",
        "{x}.transpose(0, 1).transpose(1, 0)",
        "torch.stack({x}.unbind(1), -1).movedim(-1, 1)",
        "{x}.unsqueeze(0).squeeze(0)",
        "{x}.sort(dim=1).values",
        "torch.topk({x}, 2, dim=1).values",
        "{x}.contiguous()",
        "torch.cat([{x}, torch.zeros_like({x})], 1)",
        "torch.cat([{x}, torch.ones_like({x}[:, :1])], 1)",
        "{x}.new_ones(()) * {x}",
        "{x}.max(dim=1, keepdim=True).values + {x}",
        "{x}.std(1, keepdim=True) + {x}",
        "torch.diff({x}, dim=1)",
        "{x} * torch.arange({n}).view(1, -1{ones})",
        "{x} + torch.linspace(0, 1, {x}.shape[1]).view(1, -1{ones})",
    ]
    return g.emit(g.rng.choice(forms).format(x=x, n=n, ones=", 1" * (ndim - 2), rest=ndim - 1), x)
