"""Convolutions, linear layers and products, as modules and with raw parameters."""

from __future__ import annotations

from typing import Any

from tests.graphs.generator import Generator, step


@step(14)
def conv(g: Generator) -> str:
    x = g.map()
    channels, out = g.shape(x)[1], g.channels()
    groups = g.divisor(channels, out) if g.rng.random() < 0.4 else 1
    kernel = g.rng.choice((1, 1, 2, 3, 3))
    padding: Any = g.rng.choice((0, kernel // 2, kernel // 2, "'same'", "'valid'", 2))
    stride = g.rng.choice((1, 1, 1, 2)) if padding != "'same'" else 1
    mode = g.rng.choice(("zeros", "zeros", "zeros", "reflect", "replicate", "circular"))
    dilation = g.rng.choice((1, 1, 1, 2))
    bias = g.rng.random() < 0.6
    m = g.module(
        f"nn.Conv{g.dims}d({channels}, {out}, {kernel}, stride={stride}, padding={padding}, dilation={dilation}, "
        f"groups={groups}, bias={bias}, padding_mode={mode!r})"
    )
    g.calls.append((m, 1, channels))
    return g.emit(f"{m}({x})", x)


@step(4)
def depthwise(g: Generator) -> str:
    x = g.map()
    channels = g.shape(x)[1]
    kind = g.rng.choice(("Conv", "Conv", "Conv", "ConvTranspose"))
    m = g.module(
        f"nn.{kind}{g.dims}d({channels}, {channels * g.rng.choice((1, 1, 2, 3))}, 3, padding=1, groups={channels}, "
        f"bias={g.rng.random() < 0.5})"
    )
    g.calls.append((m, 1, channels))
    return g.emit(f"{m}({x})", x)


@step(3)
def conv_transpose(g: Generator) -> str:
    x = g.map()
    channels, out = g.shape(x)[1], g.channels()
    groups = g.divisor(channels, out) if g.rng.random() < 0.4 else 1
    kernel = g.rng.choice((1, 2, 3))
    stride = g.rng.choice((1, 2, 3))
    extra = g.rng.choice((0, stride - 1))
    m = g.module(
        f"nn.ConvTranspose{g.dims}d({channels}, {out}, {kernel}, stride={stride}, "
        f"padding={g.rng.choice((0, kernel // 2))}, output_padding={extra}, groups={groups}, "
        f"bias={g.rng.random() < 0.6})"
    )
    return g.emit(f"{m}({x})", x)


@step(3)
def raw_conv(g: Generator) -> str:
    x = g.map()
    channels, out = g.shape(x)[1], g.channels()
    groups = g.divisor(channels, out) if g.rng.random() < 0.3 else 1
    w = g.parameter(out, channels // groups, *[3] * g.dims)
    b = g.parameter(out) if g.rng.random() < 0.5 else "None"
    return g.emit(f"F.conv{g.dims}d({x}, {w}, {b}, padding={g.rng.choice((0, 1))}, groups={groups})", x)


@step(8)
def linear(g: Generator) -> str:
    x = g.pick(lambda v: 2 <= v.ndim <= 4 and v.shape[-1] <= 64)
    m = g.module(f"nn.Linear({g.shape(x)[-1]}, {g.channels()}, bias={g.rng.random() < 0.7})")
    g.calls.append((m, -1, g.shape(x)[-1]))
    return g.emit(f"{m}({x})", x)


@step(3)
def tied(g: Generator) -> str:
    """Two layers that hold one Parameter, or a call that reads the weight of another layer."""
    x = g.pick(lambda v: 2 <= v.ndim <= 4 and v.shape[-1] <= 32)
    n, out = g.shape(x)[-1], g.channels()
    form = g.rng.randrange(3)
    if form == 0:
        m = g.module(f"nn.Linear({n}, {out})")
        y = g.emit(f"{g.rng.choice(('F.relu', 'torch.sigmoid'))}({m}({x}))", x)
        return g.emit(f"F.linear({y}, {m}.weight.t())", y)
    if form == 1:
        one, two = g.module(f"nn.Linear({n}, {n})"), g.module(f"nn.Linear({n}, {n}, bias={g.rng.random() < 0.5})")
        g.setup(f"{two}.weight = {one}.weight")
        y = g.emit(f"F.relu({one}({x}))", x)
        return g.emit(f"{two}({y})", y)
    x = g.map()
    n = g.shape(x)[1]
    one, two = (g.module(f"nn.Conv{g.dims}d({n}, {n}, 3, padding=1)") for _ in range(2))
    g.setup(f"{two}.weight = {one}.weight")
    y = g.emit(f"F.relu({one}({x}))", x)
    return g.emit(f"{two}({y})", y)


@step(3)
def raw_linear(g: Generator) -> str:
    x = g.pick(lambda v: 2 <= v.ndim <= 3 and v.shape[-1] <= 64)
    out = g.channels()
    w = g.parameter(out, g.shape(x)[-1])
    b = g.parameter(out)
    form = g.rng.choice(
        (f"F.linear({x}, {w}, {b})", f"F.linear({x}, {w})", f"{x} @ {w}.t() + {b}", f"torch.matmul({x}, {w}.T)")
    )
    return g.emit(form, x)


@step(3)
def channels_last_linear(g: Generator) -> str:
    x = g.map()
    channels, out = g.shape(x)[1], g.channels()
    m = g.module(f"nn.Linear({channels}, {out})")
    there = ", ".join(map(str, (0, *range(2, g.dims + 2), 1)))
    back = ", ".join(map(str, (0, g.dims + 1, *range(1, g.dims + 1))))
    y = g.emit(f"{x}.permute({there})", x)
    y = g.emit(f"{m}({y})", y)
    return g.emit(f"{y}.permute({back})" + g.rng.choice(("", ".contiguous()")), y)


@step(2)
def tokens(g: Generator) -> str:
    x = g.map()
    y = g.emit(f"{x}.flatten(2).transpose(1, 2)", x)
    m = g.module(f"nn.Linear({g.shape(x)[1]}, {g.channels()})")
    y = g.emit(f"{m}({y})", y)
    if g.rng.random() < 0.5:
        y = g.emit(f"{y}.mean(1)", y)
    return y


@step(3)
def products(g: Generator) -> str:
    """Contractions of a vector in other spellings."""
    x = g.vector()
    n, out = g.shape(x)[1], g.channels()
    w, b = g.parameter(n, out), g.parameter(out)
    forms = [
        f"torch.addmm({b}, {x}, {w})",
        f"torch.einsum('ni,io->no', {x}, {w})",
        f"torch.mm({x}, {w})",
        f"{x}.matmul({w}) * {b}",
        f"torch.baddbmm({b}, {x}[None], {w}[None]).squeeze(0)",
        f"({x}[:, :, None] * {w}).sum(1)",
    ]
    return g.emit(g.rng.choice(forms), x)
