"""Pools, padding, resizing, and reductions over space or channels."""

from __future__ import annotations

from typing import Any

from tests.graphs.generator import Generator, step


@step(3)
def over_axis(g: Generator) -> str:
    x = g.pick(lambda v: v.ndim >= 2)
    dim = g.rng.randrange(1, g.values[x].ndim)
    forms = [
        "F.softmax({x}, dim={d})",
        "torch.log_softmax({x}, {d})",
        "F.normalize({x}, dim={d})",
        "torch.cumsum({x}, {d})",
    ]
    if g.shape(x)[dim] % 2 == 0:
        forms += ["F.glu({x}, dim={d})"] * 2
    return g.emit(g.rng.choice(forms).format(x=x, d=dim), x)


@step(6)
def pool(g: Generator) -> str:
    x = g.map()
    d, kernel = g.dims, g.rng.choice((2, 3))
    stride, padding, ceil = g.rng.choice((1, 2, 3)), g.rng.choice((0, 1)), g.rng.random() < 0.5
    forms = [
        f"F.avg_pool{d}d({x}, {kernel}, {stride}, {padding}, {ceil}, {g.rng.random() < 0.5})",
        f"F.max_pool{d}d({x}, {kernel}, {stride}, {padding}, 1, {ceil})",
        "F.max_pool{d}d({x}, 2)",
        "F.max_pool{d}d({x}, 3, stride=1, padding=1)",
        "F.max_pool{d}d({x}, 2, ceil_mode=True)",
        "F.avg_pool{d}d({x}, 2)",
        "F.avg_pool{d}d({x}, 3, 1, 1)",
        "F.avg_pool{d}d({x}, 3, 2, 1, count_include_pad=False)",
        "F.avg_pool{d}d({x}, 3, 2, 1, ceil_mode=True)",
        "F.adaptive_avg_pool{d}d({x}, 1)",
        "F.adaptive_max_pool{d}d({x}, 2)",
        "F.adaptive_avg_pool{d}d({x}, 2)",
        "F.interpolate({x}, scale_factor=2)",
        "F.pad({x}, (1, 1))",
        "F.pad({x}, (1, 0), value=0.5)",
        "F.pad({x}, (1, 1), mode='replicate')",
        "F.avg_pool{d}d({x}, 2, ceil_mode=True)",
    ]
    if d == 2:
        forms += [
            "F.interpolate({x}, scale_factor=2, mode='bilinear')",
            "F.avg_pool2d({x}, 2, divisor_override=3)",
            "F.lp_pool2d({x}, 2, 2)",
        ]
    if g.rng.random() < 0.25:
        kind = g.rng.choice(
            (
                f"nn.AvgPool{d}d({kernel}, {stride}, {padding}, ceil_mode={ceil})",
                f"nn.AvgPool{d}d({kernel}, {stride}, {padding}, ceil_mode={ceil}, count_include_pad=False)",
                f"nn.MaxPool{d}d({kernel}, {stride}, {padding}, ceil_mode={ceil})",
                f"nn.AdaptiveAvgPool{d}d(1)",
                f"nn.ZeroPad{d}d(1)",
                f"nn.ReplicationPad{d}d(1)",
                "nn.Upsample(scale_factor=2)",
            )
        )
        return g.emit(f"{g.module(kind)}({x})", x)
    return g.emit(g.rng.choice(forms).format(x=x, d=d), x)


@step(6)
def reduce(g: Generator) -> str:
    x = g.pick(lambda v: v.ndim >= 2)
    ndim = g.values[x].ndim
    if ndim == g.dims + 2 and g.rng.random() < 0.5:
        dim: Any = list(range(2, ndim))
    elif g.rng.random() < 0.5:
        dim = 1
    else:
        dim = g.rng.randrange(1, ndim)
    keep = g.rng.random() < 0.5
    forms = [
        "{x}.mean({d}, keepdim={k})",
        "torch.sum({x}, {d}, keepdim={k})",
        "torch.amax({x}, {d}, keepdim={k})",
        "torch.linalg.vector_norm({x}, dim={d}, keepdim={k})",
        "torch.logsumexp({x}, {d}, keepdim={k})",
        "{x}.var({d}, keepdim={k}, unbiased=False)",
        "{x}.amin({d}, keepdim={k})",
    ]
    y = g.emit(g.rng.choice(forms).format(x=x, d=dim, k=keep), x)
    if keep and g.rng.random() < 0.7:
        return g.emit(
            g.rng.choice(("{x} - {y}", "{x} * {y}", "{x} / ({y}.abs() + 1)", "{x} + {y}")).format(x=x, y=y), x, y
        )
    return y
