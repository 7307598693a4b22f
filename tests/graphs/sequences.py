"""Attention and other sequence layers."""

from __future__ import annotations

from tests.graphs.generator import Generator, Rejected, step


@step(2)
def attend(g: Generator) -> str:
    """A product of two activations with a softmax between."""
    x = g.map()
    y = g.emit(f"{x}.flatten(2)", x)
    z = g.emit(f"torch.softmax({y}.transpose(1, 2) @ {y} * 0.2, -1)", y)
    return g.emit(
        f"({y} @ {z}).view_as({x})" if g.rng.random() < 0.5 else f"torch.bmm({y}, {z}).reshape({x}.shape)", y, z, x
    )


@step(2)
def heads(g: Generator) -> str:
    """Attention with several heads, from one projection."""
    x = g.pick(lambda v: v.ndim == g.dims + 2 and v.shape[1] in (4, 6, 8, 12))
    channels = g.shape(x)[1]
    n = g.rng.choice([h for h in (1, 2, 3, 4) if channels % h == 0])
    y = g.emit(f"{x}.flatten(2).transpose(1, 2)", x)
    m = g.module(f"nn.Linear({channels}, {3 * channels})")
    y = g.emit(f"{m}({y})", y)
    y = g.emit(f"{y}.reshape({y}.shape[0], -1, 3, {n}, {channels // n}).permute(2, 0, 3, 1, 4)", y)
    q, k, v = g.emit_several(f"{y}.unbind(0)", 3, y)
    z = g.emit(f"torch.softmax({q} @ {k}.transpose(-2, -1) * {channels**-0.5:.3f}, -1) @ {v}", q, k, v)
    z = g.emit(f"{z}.transpose(1, 2).reshape({z}.shape[0], -1, {channels})", z)
    m = g.module(f"nn.Linear({channels}, {channels})")
    z = g.emit(f"{m}({z})", z)
    return g.emit(f"{z}.transpose(1, 2).reshape({x}.shape) + {x}", z, x)


@step(2)
def attention(g: Generator) -> str:
    """nn.MultiheadAttention, and the fused function with projections of its own."""
    x = g.sequence()
    n, length = g.shape(x)[-1], g.shape(x)[1]
    if n > 16 or length > 60:
        raise Rejected("too large")
    h = g.divisor(n)
    form = g.rng.randrange(3)
    if form == 0:
        m = g.module(f"nn.MultiheadAttention({n}, {h}, batch_first=True, bias={g.rng.random() < 0.8})")
        weights = g.rng.choice(("", ", need_weights=False"))
        y = g.emit(f"{m}({x}, {x}, {x}{weights})[0]", x)
    elif form == 1:
        m = g.module(f"nn.MultiheadAttention({n}, {h}, kdim={n}, vdim={n})")
        y = g.emit(f"{m}({x}, {x}, {x}, need_weights=False)[0]", x)
    else:
        parts = []
        for _ in range(3):
            m = g.module(f"nn.Linear({n}, {n}, bias={g.rng.random() < 0.7})")
            parts.append(g.emit(f"{m}({x}).view({x}.shape[0], -1, {h}, {n // h}).transpose(1, 2)", x))
        causal = g.rng.random() < 0.3
        q, k, v = parts
        y = g.emit(f"F.scaled_dot_product_attention({q}, {k}, {v}, is_causal={causal})", q, k, v)
        y = g.emit(f"{y}.transpose(1, 2).flatten(2)", y)
        y = g.emit(f"{g.module(f'nn.Linear({n}, {n})')}({y})", y)
    return g.emit(f"{x} + {y}", x, y) if g.rng.random() < 0.6 else y


@step(1)
def encoder(g: Generator) -> str:
    """A transformer layer."""
    x = g.sequence()
    n = g.shape(x)[-1]
    if n > 12 or g.shape(x)[1] > 60:
        raise Rejected("too large")
    m = g.module(
        f"nn.TransformerEncoderLayer({n}, {g.divisor(n)}, {g.channels()}, batch_first=True, "
        f"norm_first={g.rng.random() < 0.5}, activation={g.rng.choice(('relu', 'gelu'))!r})"
    )
    return g.emit(f"{m}({x})", x)


@step(2)
def recurrent(g: Generator) -> str:
    x = g.sequence()
    n, out = g.shape(x)[-1], g.channels()
    if n > 16 or g.shape(x)[1] > 60:
        raise Rejected("too large")
    kind = g.rng.choice(("LSTM", "LSTM", "GRU", "RNN"))
    m = g.module(
        f"nn.{kind}({n}, {out}, num_layers={g.rng.choice((1, 1, 2))}, batch_first=True, "
        f"bidirectional={g.rng.random() < 0.3}, bias={g.rng.random() < 0.8})"
    )
    y = g.emit(f"{m}({x})[0]", x)
    if g.rng.random() < 0.5:
        y = g.emit(g.rng.choice((f"{y}[:, -1]", f"{y}.mean(1)", f"{y}.transpose(1, 2)")), y)
    return y


@step(2)
def embedding(g: Generator) -> str:
    """Rows of a table, taken by indices that come in."""
    fit = [n for n, v in g.values.items() if n.startswith("i") and not v.is_floating_point()]
    if not fit:
        raise Rejected("no indices come in")
    i, out = g.rng.choice(fit), g.channels()
    table = g.parameter(7, out) if g.rng.random() < 0.4 else ""
    if table:
        y = g.emit(g.rng.choice((f"F.embedding({i}, {table})", f"{table}[{i}]")), i)
    else:
        more = g.rng.choice(("", ", padding_idx=0"))
        kind = g.rng.choice(("Embedding", "Embedding", "EmbeddingBag"))
        y = g.emit(f"{g.module(f'nn.{kind}(7, {out}{more})')}({i})", i)
        if g.values[y].ndim == 2:
            return y
    end = g.rng.choice(("{y}", "{y}.mean(1)", "{y}.transpose(1, 2)", "{y}.sum(1)"))
    return y if end == "{y}" else g.emit(end.format(y=y), y)
