"""Norms."""

from __future__ import annotations

from tests.graphs.generator import Generator, step


@step(8)
def batch_norm(g: Generator) -> str:
    x = g.pick(lambda v: v.ndim in (2, g.dims + 2))
    channels, d = g.shape(x)[1], 1 if g.values[x].ndim == 2 else g.dims
    if g.rng.random() < 0.15:
        mean, var = g.buffer(f"torch.linspace(-0.5, 0.5, {channels})"), g.buffer(f"torch.linspace(0.5, 2, {channels})")
        w, b = g.parameter(channels), g.parameter(channels)
        return g.emit(f"F.batch_norm({x}, {mean}.to({x}.dtype), {var}.to({x}.dtype), {w}, {b})", x)
    m = g.module(f"nn.BatchNorm{d}d({channels}, affine={g.rng.random() < 0.9})")
    g.calls.append((m, 1, channels))
    return g.emit(f"{m}({x})", x)


@step(4)
def map_norm(g: Generator) -> str:
    """Norms of feature maps, as modules and as functions."""
    x = g.map()
    channels, groups = g.shape(x)[1], g.divisor(g.shape(x)[1])
    if g.rng.random() < 0.3:
        w, b = g.parameter(channels), g.parameter(channels)
        form = g.rng.choice(
            (
                f"F.group_norm({x}, {groups}, {w}, {b})",
                f"F.group_norm({x}, {groups})",
                f"F.instance_norm({x}, weight={w}, bias={b})",
                f"F.instance_norm({x})",
                f"F.layer_norm({x}, {x}.shape[1:])",
            )
        )
        return g.emit(form, x)
    affine = g.rng.random() < 0.7
    kind = g.rng.choice(
        (
            f"nn.GroupNorm({groups}, {channels}, affine={affine})",
            f"nn.GroupNorm({groups}, {channels})",
            f"nn.InstanceNorm{g.dims}d({channels}, affine={affine})",
            f"nn.InstanceNorm{g.dims}d({channels}, affine={affine}, track_running_stats=True)",
            f"nn.LayerNorm({list(g.shape(x)[1:])})",
        )
    )
    m = g.module(kind)
    if "LayerNorm" not in kind:
        g.calls.append((m, 1, channels))
    return g.emit(f"{m}({x})", x)


@step(5)
def last_axis_norm(g: Generator) -> str:
    """Norms of the last axis: of vectors, of tokens, of feature maps with channels last."""
    if g.rng.random() < 0.4:
        x = g.map()
        there = ", ".join(map(str, (0, *range(2, g.dims + 2), 1)))
        back = ", ".join(map(str, (0, g.dims + 1, *range(1, g.dims + 1))))
        y = g.emit(f"{x}.permute({there})", x)
        y = _last_axis_norm(g, y)
        return g.emit(f"{y}.permute({back})", y)
    return _last_axis_norm(g, g.vector() if g.rng.random() < 0.4 else g.sequence())


def _last_axis_norm(g: Generator, x: str) -> str:
    n = g.shape(x)[-1]
    form = g.rng.randrange(4)
    if form == 0:
        w, b = g.parameter(n), g.parameter(n)
        text = g.rng.choice(
            (
                f"F.layer_norm({x}, ({n},), {w}, {b})",
                f"F.layer_norm({x}, {x}.shape[-1:], {w})",
                f"F.rms_norm({x}, ({n},), {w})",
                f"F.rms_norm({x}, {x}.shape[-1:])",
            )
        )
        return g.emit(text, x)
    if form == 1:
        w = g.parameter(n)
        return g.emit(f"{x} * ({x}.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * {w}", x)
    kind = g.rng.choice(
        (
            f"nn.LayerNorm({n})",
            f"nn.LayerNorm({n})",
            f"nn.LayerNorm({n}, bias=False)",
            f"nn.LayerNorm({n}, elementwise_affine=False)",
            f"nn.RMSNorm({n})",
            f"nn.RMSNorm({n}, eps=1e-3)",
        )
    )
    m = g.module(kind)
    g.calls.append((m, -1, n))
    return g.emit(f"{m}({x})", x)
