"""Entry by entry: activations, arithmetic, scales, changes in place."""

from __future__ import annotations

from tests.graphs.generator import Generator, step


@step(10)
def activation(g: Generator) -> str:
    x = g.pick(lambda v: True)
    forms = [
        "F.relu({x})",
        "torch.sigmoid({x})",
        "{x}.tanh()",
        "F.leaky_relu({x}, 0.2)",
        "F.gelu({x})",
        "F.silu({x})",
        "F.hardtanh({x}, -0.5, 2.0)",
        "torch.clamp({x}, -1, 1)",
        "{x}.abs()",
        "({x} * 0.3).exp().clamp(max=5)",
        "F.softplus({x})",
        "F.elu({x})",
        "F.hardswish({x})",
        "F.dropout({x}, 0.5, self.training)",
        "-{x}",
        "{x} * 2 + 1",
        "1 - {x}",
        "{x} ** 2",
        "torch.cos({x})",
        "{x} / 3",
        "3 / ({x}.abs() + 1)",
        "torch.where({x} > 0.1, {x}, {x} * 0.1)",
        "{x}.masked_fill({x} > 0.3, 0.7)",
        "{x}.square().add(1e-3).sqrt()",
    ]
    modules = [
        "nn.ReLU()",
        "nn.ReLU6()",
        "nn.Sigmoid()",
        "nn.Hardswish()",
        "nn.SiLU()",
        "nn.Dropout()",
        "nn.Identity()",
        "nn.PReLU()",
    ]
    if g.rng.random() < 0.4:
        return g.emit(f"{g.module(g.rng.choice(modules))}({x})", x)
    return g.emit(g.rng.choice(forms).format(x=x), x)


@step(2)
def prelu(g: Generator) -> str:
    x = g.map()
    return g.emit(f"{g.module(f'nn.PReLU({g.shape(x)[1]})')}({x})", x)


@step(4)
def in_place(g: Generator) -> str:
    x = g.pick(lambda v: v.ndim >= 2)
    y = g.emit(f"{x}.clone()" if g.rng.random() < 0.5 else f"{x} + 0.5", x)
    k = max(1, g.shape(y)[1] // 2)
    forms = [
        f"{y}.mul_(0.5)",
        f"{y} += 1",
        f"{y}.relu_()",
        f"F.relu({y}, inplace=True)",
        f"{y} *= {y}",
        f"{y}[:, :{k}] = 0",
        f"{y}[:, {k - 1}:] += 1",
        f"{y}[:, 0].mul_(2)",
        f"{y}[:, :{k}] = {y}[:, -{k}:].clone()",
        f"{y}.clamp_(-1, 1)",
        f"{y}.view({y}.size(0), -1).add_(0.25)",
        f"{y}.transpose(0, 1)[0].fill_(0.3)",
    ]
    g.statement(g.rng.choice(forms))
    if g.rng.random() < 0.3:
        other = g.same(y)
        g.statement(g.rng.choice((f"{y} += {other}", f"{y}.mul_({other})", f"{y}.copy_({other} * 0.5)")), other)
    return y


@step(10)
def binary(g: Generator) -> str:
    x = g.pick(lambda v: True)
    y = g.same(x)
    forms = (
        "{x} + {y}",
        "{x} + {y}",
        "{x} + {y}",
        "{x} * {y}",
        "{x} - {y}",
        "torch.maximum({x}, {y})",
        "{x} / ({y}.abs() + 1)",
        "torch.add({x}, {y}, alpha=0.5)",
        "torch.lerp({x}, {y}, 0.3)",
        "({x} + {y}).relu()",
    )
    return g.emit(g.rng.choice(forms).format(x=x, y=y), x, y)


@step(4)
def scale(g: Generator) -> str:
    x = g.map()
    channels = g.shape(x)[1]
    ones = ", 1" * g.dims
    if g.rng.random() < 0.4:
        flat = g.parameter(channels)
        forms = [
            f"{x} * {flat}.view(1, -1{ones})",
            f"{x} + {flat}.reshape(-1{ones})",
            f"{x} * {flat}.view(1, {channels}{ones})",
        ]
    else:
        wide = g.parameter(1, channels, *[1] * g.dims)
        forms = [f"{x} * {wide}", f"{x} + {wide}", f"{wide} * {x}", f"torch.mul({x}, {wide}.abs())"]
    return g.emit(g.rng.choice(forms), x)


@step(3)
def positions(g: Generator) -> str:
    """A parameter that varies over positions: a positional embedding, a template, a bias per pixel."""
    x = g.map() if g.rng.random() < 0.5 else g.sequence()
    shape = g.shape(x)
    if len(shape) == 3 and g.rng.random() < 0.5 and shape[1] < 65:
        # More positions than are there, of which the first are taken: other lengths go too.
        p = g.parameter(1, 128, shape[2]) if g.rng.random() < 0.7 else g.parameter(128, shape[2])
        cut = f"{p}[:, :{x}.shape[1]]" if g.net.get_parameter(p[5:]).ndim == 3 else f"{p}[:{x}.shape[1]]"
        return g.emit(f"{x} + {cut}", x)
    p = g.parameter(1, *shape[1:]) if g.rng.random() < 0.6 else g.parameter(1, 1, *shape[2:])
    return g.emit(g.rng.choice((f"{x} + {p}", f"{x} * {p}", f"{p} + {x}")), x)


@step(1)
def branch(g: Generator) -> str:
    """Python that reads data."""
    x = g.pick(lambda v: v.ndim >= 2)
    y = x if g.rng.random() < 0.5 else g.same(x)
    test = g.rng.choice((f"{x}.mean() > 0.01", f"{x}.sum().item() < 1", f"bool(({x} > 0.5).any())"))
    forms = ["{x} * 0.5", "F.relu({x})", "{y} + 1", "-{y}", "{x}"]
    one, other = (f.format(x=x, y=y) for f in g.rng.sample(forms, 2))
    return g.emit_choice(test, one, other, x, y)


@step(1)
def unknown(g: Generator) -> str:
    """Ops that no rule knows."""
    x = g.pick(lambda v: v.ndim >= 2)
    forms = (
        "torch.special.bessel_j0({x})",
        "torch.einsum('nc...,nc...->nc...', {x}, {x})",
        "torch.linalg.vector_norm({x}, 3, 1)",
    )
    return g.emit(g.rng.choice(forms).format(x=x), x)
