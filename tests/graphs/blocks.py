"""Blocks of several layers."""

from __future__ import annotations

from tests.graphs.generator import Generator, Rejected, step


@step(6)
def residual(g: Generator) -> str:
    """A conv back to the shape of its input, and the sum of both."""
    x = g.map()
    channels = g.shape(x)[1]
    groups = g.divisor(channels) if g.rng.random() < 0.3 else 1
    m = g.module(
        f"nn.Conv{g.dims}d({channels}, {channels}, 3, padding=1, groups={groups}, bias={g.rng.random() < 0.5})"
    )
    g.calls.append((m, 1, channels))
    y = g.emit(f"{m}({x})", x)
    if g.rng.random() < 0.6:
        y = g.emit(f"{g.module(f'nn.BatchNorm{g.dims}d({channels})')}({y})", y)
    if g.rng.random() < 0.6:
        y = g.emit(f"F.relu({y})", y)
    return g.emit(g.rng.choice((f"{x} + {y}", f"{y} + {x}", f"torch.add({x}, {y})", f"{x} * {y}")), x, y)


@step(4)
def squeeze_excite(g: Generator) -> str:
    x = g.map()
    channels, mid = g.shape(x)[1], g.rng.choice((2, 3, 4))
    one, two = g.module(f"nn.Conv{g.dims}d({channels}, {mid}, 1)"), g.module(f"nn.Conv{g.dims}d({mid}, {channels}, 1)")
    y = g.emit(f"F.adaptive_avg_pool{g.dims}d({x}, 1)", x)
    y = g.emit(f"F.relu({one}({y}))", y)
    y = g.emit(f"torch.sigmoid({two}({y}))", y)
    return g.emit(g.rng.choice((f"{x} * {y}", f"{y} * {x}")), x, y)


@step(5)
def again(g: Generator) -> str:
    """A module that was called before, called again."""
    if not g.calls:
        raise Rejected("nothing was called yet")
    m, axis, channels = g.rng.choice(g.calls)
    x = g.pick(lambda v: v.ndim >= 2 and v.shape[axis] == channels and (axis < 0 or v.ndim == g.dims + 2))
    y = g.emit(f"{m}({x})", x)
    if g.values[y].shape == g.values[x].shape and g.rng.random() < 0.3:
        return g.emit(f"{m}({y})", y)
    return y


@step(3)
def block(g: Generator) -> str:
    """A Sequential, which may be called again later."""
    x = g.map()
    channels, mid = g.shape(x)[1], g.channels()
    act = g.rng.choice(("nn.ReLU(inplace=True)", "nn.SiLU()", "nn.Sigmoid()"))
    d = g.dims
    m = g.module(
        f"nn.Sequential(nn.Conv{d}d({channels}, {mid}, 3, padding=1, bias=False), nn.BatchNorm{d}d({mid}), {act}, "
        f"nn.Conv{d}d({mid}, {channels}, 1))"
    )
    g.calls.append((m, 1, channels))
    y = g.emit(f"{m}({x})", x)
    return g.emit(f"{x} + {y}", x, y) if g.rng.random() < 0.5 else y
