"""Random small networks with random masks, as Python source: what the property tests feed to speedup.

`random_case(seed)` gives a `Case`: the source of a module, an input, inputs of other sizes, and masks. The source is
ordinary code with one call per line, so a case that fails can be read, cut down by hand and kept.

    case = random_case(17, steps=6)
    print(case.source)
    problem = check_case(case)
"""

from __future__ import annotations

import copy
import linecache
import math
import random
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

import speedup

_CHANNELS = ((2, 3, 4, 4, 6, 6, 8, 8, 12), (4, 8), (6, 6, 12), (8,))
_LARGEST = 1e4
_MOST_ENTRIES = 20_000

Masks = dict[str, dict[str, "torch.Tensor | None"]]


class Rejected(Exception):
    """A random step that cannot be made; another one is tried."""


@dataclass
class Case:
    """A network, its input and its masks.

    Attributes:
        others: further inputs, of another batch size and another spatial size, that the original accepts.
    """

    seed: int
    source: str
    inputs: tuple[torch.Tensor, ...]
    masks: Masks
    others: list[tuple[torch.Tensor, ...]] = field(default_factory=list)

    def model(self) -> nn.Module:
        """The network, with random weights that depend on the seed only."""
        return build(self.source, self.seed)

    def script(self) -> str:
        """A script that shows the case without this file."""
        return _SCRIPT.format(
            source=self.source, seed=self.seed, masks=_masks_source(self.masks), inputs=_shapes(self.inputs)
        )


# -- networks and masks as such ---------------------------------------------------------------------------------------


def build(source: str, seed: int) -> nn.Module:
    """Make the module that the source of a class ``Net`` describes, in float64 and eval mode."""
    name = f"<graph {seed} {zlib.crc32(source.encode())}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "__name__": "random_graph"}
    exec(compile(source, name, "exec"), space)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomize(space["Net"]().double().eval(), seed)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every norm random statistics, scales and shifts, and every bias random values."""
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == "running_mean":
                buffer.copy_(torch.randn(buffer.shape, generator=g) * 0.3)
            elif name == "running_var":
                buffer.copy_(torch.rand(buffer.shape, generator=g) + 0.5)
        norm = "Norm" in type(module).__name__
        for name, parameter in module.named_parameters(recurse=False):
            if norm and name == "weight":
                parameter.data.copy_(torch.rand(parameter.shape, generator=g) + 0.5)
            elif name == "bias":
                parameter.data.copy_(torch.randn(parameter.shape, generator=g) * 0.3)
    return model


def masked_copy(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy of the model with every masked entry set to 0: what the small model must agree with."""
    model = copy.deepcopy(model)
    for name, entry in masks.items():
        for parameter, mask in entry.items():
            if mask is not None:
                target = getattr(model.get_submodule(name), parameter).data
                target.mul_(mask.to(target))
    return model


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def run(model: nn.Module, inputs: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The output tensors; the model gets copies, as it may write into its inputs."""
    with torch.no_grad():
        return tensors(model(*[t.clone() for t in inputs]))


def filter_masks(
    model: nn.Module, p: float = 0.5, seed: int = 0, kinds: tuple[type, ...] = (nn.modules.conv._ConvNd, nn.Linear)
) -> Masks:
    """Masks on whole filters, independent of one another: nothing lines up."""
    g = torch.Generator().manual_seed(seed)
    masks: Masks = {}
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            keep = (torch.rand(weight.shape[0], generator=g) > p).double()
            masks[name] = {"weight": keep.reshape(-1, *[1] * (weight.ndim - 1)).expand_as(weight).clone(), "bias": None}
            if module.bias is not None and torch.rand(1, generator=g) < 0.5 and not _transposed(module):
                masks[name]["bias"] = keep.clone()
    return masks


def _transposed(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvTransposeNd)


def random_masks(model: nn.Module, rng: random.Random) -> Masks:
    """Masks of every kind: aligned and unaligned filters, columns, fine-grained, biases, norms, whole layers."""
    aligned = {n: _line(n, rng.choice((0.3, 0.5, 0.8)), rng) for n in range(1, 65)}
    style = rng.choice(("mixed", "mixed", "aligned", "unaligned"))
    masks: Masks = {}
    done: set[int] = set()
    for name, module in model.named_modules():
        entry: dict[str, torch.Tensor | None] = {}
        norm = "Norm" in type(module).__name__
        lines: torch.Tensor | None = None
        for parameter, tensor in module.named_parameters(recurse=False):
            if id(tensor) in done:
                continue
            done.add(id(tensor))
            kind = _mask_kind(style, norm, tensor.ndim, rng)
            if parameter == "bias" and lines is not None and rng.random() < 0.6 and lines.numel() == tensor.numel():
                entry["bias"] = lines.clone()
                continue
            mask = _mask(kind, tensor, aligned, rng, _transposed(module))
            if mask is not None:
                entry[parameter] = mask
            if mask is not None and parameter == "weight" and kind in ("filters", "aligned", "whole"):
                lines = (
                    (mask.transpose(0, 1) if _transposed(module) else mask).flatten(1).amax(1)
                    if mask.ndim > 1
                    else mask
                )
        if entry:
            masks[name] = entry
    if not any(m is not None for e in masks.values() for m in e.values()):
        for name, module in model.named_modules():
            for parameter, tensor in module.named_parameters(recurse=False):
                masks[name] = {parameter: _mask("filters", tensor, aligned, rng, False)}
                return masks
    return masks


def _mask_kind(style: str, norm: bool, ndim: int, rng: random.Random) -> str:
    if ndim < 2:
        kinds = ("none", "none", "filters", "aligned", "aligned", "whole" if rng.random() < 0.2 else "none")
    elif style == "aligned":
        kinds = ("aligned", "aligned", "aligned", "none")
    elif style == "unaligned":
        kinds = ("filters",)
    else:
        kinds = ("none", *["filters"] * 4, *["aligned"] * 4, "columns", "columns", "fine", "rows and columns", "whole")
        if rng.random() < 0.5:
            kinds = kinds[:-1]
    return rng.choice(kinds)


def _line(n: int, p: float, rng: random.Random) -> torch.Tensor:
    keep = torch.tensor([float(rng.random() > p) for _ in range(n)], dtype=torch.float64)
    if not keep.any() and rng.random() < 0.9:
        keep[rng.randrange(n)] = 1
    return keep


def _mask(
    kind: str, tensor: torch.Tensor, aligned: dict[int, torch.Tensor], rng: random.Random, transposed: bool
) -> torch.Tensor | None:
    if kind == "none" or tensor.numel() == 0:
        return None
    shape = tuple(tensor.shape)
    if not shape:
        return torch.tensor(float(rng.random() < 0.5), dtype=torch.float64)
    mask = torch.ones(shape, dtype=torch.float64)
    first, second = (1, 0) if transposed else (0, 1)

    def lines(axis: int, keep: torch.Tensor) -> None:
        mask.mul_(keep.reshape([-1 if a == axis else 1 for a in range(len(shape))]))

    if kind == "filters" or (kind != "aligned" and len(shape) < 2 and kind != "whole"):
        lines(first if len(shape) > 1 else 0, _line(shape[first if len(shape) > 1 else 0], rng.choice((0.3, 0.6)), rng))
    elif kind == "aligned":
        axis = first if len(shape) > 1 else 0
        lines(axis, aligned[shape[axis]] if shape[axis] in aligned else _line(shape[axis], 0.5, rng))
    elif kind == "columns":
        lines(second, _line(shape[second], 0.5, rng))
    elif kind == "rows and columns":
        lines(first, _line(shape[first], 0.4, rng))
        lines(second, _line(shape[second], 0.4, rng))
    elif kind == "fine":
        g = torch.Generator().manual_seed(rng.randrange(1 << 30))
        mask = (torch.rand(shape, generator=g) > rng.choice((0.3, 0.7))).double()
    elif kind == "whole":
        mask.zero_()
    return mask


# -- the generator ----------------------------------------------------------------------------------------------------


class Generator:
    """Writes a network line by line and runs each line at once, so that it always knows every shape."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.net: Any = nn.Module().double().eval()
        self.init: list[str] = []
        self.lines: list[str] = []
        self.values: dict[str, torch.Tensor] = {}
        self.used: set[str] = set()
        self.calls: list[tuple[str, int]] = []
        self.dims = rng.choice((2, 2, 2, 2, 1, 3))
        self.palette = rng.choice(_CHANNELS)  # a small one makes adds, shared modules and aligned masks meet often
        self._count = 0

    # what steps use

    def module(self, text: str) -> str:
        """Add a child module; the expression that names it."""
        name = f"m{len(self.init)}"
        module = eval(text, {"nn": nn, "torch": torch})
        setattr(self.net, name, module.double().eval())
        self.init.append(f"self.{name} = {text}")
        return f"self.{name}"

    def parameter(self, *shape: int) -> str:
        name = f"p{len(self.init)}"
        setattr(self.net, name, nn.Parameter(torch.randn(*shape, dtype=torch.float64)))
        self.init.append(f"self.{name} = nn.Parameter(torch.randn({', '.join(map(str, shape))}))")
        return f"self.{name}"

    def buffer(self, text: str) -> str:
        name = f"b{len(self.init)}"
        self.net.register_buffer(name, eval(text, {"torch": torch}))
        self.init.append(f"self.register_buffer('{name}', {text})")
        return f"self.{name}"

    def emit(self, text: str, *reads: str) -> str:
        """Add ``name = text`` to the forward and run it."""
        name = f"x{self._count}"
        value = self._run(text)
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.numel() > _MOST_ENTRIES:
            raise Rejected(text)
        if not torch.isfinite(value).all() or value.abs().max() > _LARGEST or 0 in value.shape:
            raise Rejected(text)
        self._count += 1
        self.lines.append(f"{name} = {text}")
        self.values[name] = value
        self.used.update(reads)
        return name

    def emit_several(self, text: str, count: int, *reads: str) -> list[str]:
        values = self._run(text)
        names = [f"x{self._count + i}" for i in range(count)]
        if len(values) != count:
            raise Rejected(text)
        self._count += count
        self.lines.append(f"{', '.join(names)}{',' if count == 1 else ''} = {text}")
        self.values.update(zip(names, values, strict=True))
        self.used.update(reads)
        return names

    def statement(self, text: str, *reads: str) -> None:
        """Add a line that changes a value in place."""
        with torch.no_grad():
            exec(text, self._space())
        self.lines.append(text)
        self.used.update(reads)

    def _run(self, text: str) -> Any:
        try:
            with torch.no_grad():
                return eval(text, self._space())
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise Rejected(f"{text}: {error}") from error

    def _space(self) -> dict[str, Any]:
        return {"torch": torch, "nn": nn, "F": F, "self": self.net, **self.values}

    def pick(self, test: Callable[[torch.Tensor], bool]) -> str:
        """A value that passes the test; newer and unread ones are likelier."""
        fit = [n for n, v in self.values.items() if test(v)]
        if not fit:
            raise Rejected("no such value")
        inner = [n for n in fit if not n.startswith("i")]
        if inner and self.rng.random() < 0.9:
            fit = inner
        unread = [n for n in fit if n not in self.used]
        if unread and self.rng.random() < 0.6:
            return self.rng.choice(unread)
        return self.rng.choice(fit[-4:])

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[name].shape)

    def map(self) -> str:
        """A feature map: batch, channels, and as many spatial axes as the network has."""
        return self.pick(lambda v: v.ndim == self.dims + 2)

    def vector(self) -> str:
        return self.pick(lambda v: v.ndim == 2)

    def same(self, name: str) -> str:
        """Another value of the same shape."""
        shape = self.values[name].shape
        fit = [n for n, v in self.values.items() if v.shape == shape and n != name]
        if not fit:
            raise Rejected("no other value of this shape")
        return self.rng.choice(fit)

    def channels(self) -> int:
        return self.rng.choice(self.palette)

    def divisor(self, *sizes: int) -> int:
        g = math.gcd(*sizes)
        return self.rng.choice([d for d in range(1, g + 1) if g % d == 0])


Step = Callable[[Generator], Any]
_STEPS: list[tuple[int, Step]] = []


def _step(weight: int) -> Callable[[Step], Step]:
    def add(function: Step) -> Step:
        _STEPS.append((weight, function))
        return function

    return add


@_step(14)
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
    g.calls.append((m, channels))
    return g.emit(f"{m}({x})", x)


@_step(4)
def depthwise(g: Generator) -> str:
    x = g.map()
    channels = g.shape(x)[1]
    m = g.module(
        f"nn.Conv{g.dims}d({channels}, {channels * g.rng.choice((1, 1, 2))}, 3, padding=1, groups={channels}, "
        f"bias={g.rng.random() < 0.5})"
    )
    return g.emit(f"{m}({x})", x)


@_step(3)
def conv_transpose(g: Generator) -> str:
    x = g.map()
    channels, out = g.shape(x)[1], g.channels()
    groups = g.divisor(channels, out) if g.rng.random() < 0.4 else 1
    kernel = g.rng.choice((1, 2, 3))
    stride = g.rng.choice((1, 2))
    extra = g.rng.choice((0, stride - 1))
    m = g.module(
        f"nn.ConvTranspose{g.dims}d({channels}, {out}, {kernel}, stride={stride}, "
        f"padding={g.rng.choice((0, kernel // 2))}, output_padding={extra}, groups={groups}, "
        f"bias={g.rng.random() < 0.6})"
    )
    return g.emit(f"{m}({x})", x)


@_step(3)
def raw_conv(g: Generator) -> str:
    x = g.map()
    channels, out = g.shape(x)[1], g.channels()
    groups = g.divisor(channels, out) if g.rng.random() < 0.3 else 1
    w = g.parameter(out, channels // groups, *[3] * g.dims)
    b = g.parameter(out) if g.rng.random() < 0.5 else "None"
    return g.emit(f"F.conv{g.dims}d({x}, {w}, {b}, padding={g.rng.choice((0, 1))}, groups={groups})", x)


@_step(8)
def linear(g: Generator) -> str:
    x = g.pick(lambda v: 2 <= v.ndim <= 4 and v.shape[-1] <= 64)
    m = g.module(f"nn.Linear({g.shape(x)[-1]}, {g.channels()}, bias={g.rng.random() < 0.7})")
    return g.emit(f"{m}({x})", x)


@_step(2)
def raw_linear(g: Generator) -> str:
    x = g.pick(lambda v: 2 <= v.ndim <= 3 and v.shape[-1] <= 64)
    out = g.channels()
    w = g.parameter(out, g.shape(x)[-1])
    b = g.parameter(out)
    form = g.rng.choice(
        (f"F.linear({x}, {w}, {b})", f"F.linear({x}, {w})", f"{x} @ {w}.t() + {b}", f"torch.matmul({x}, {w}.T)")
    )
    return g.emit(form, x)


@_step(3)
def channels_last_linear(g: Generator) -> str:
    x = g.map()
    channels, out = g.shape(x)[1], g.channels()
    m = g.module(f"nn.Linear({channels}, {out})")
    there = ", ".join(map(str, (0, *range(2, g.dims + 2), 1)))
    back = ", ".join(map(str, (0, g.dims + 1, *range(1, g.dims + 1))))
    y = g.emit(f"{x}.permute({there})", x)
    y = g.emit(f"{m}({y})", y)
    return g.emit(f"{y}.permute({back})" + g.rng.choice(("", ".contiguous()")), y)


@_step(2)
def tokens(g: Generator) -> str:
    x = g.map()
    y = g.emit(f"{x}.flatten(2).transpose(1, 2)", x)
    m = g.module(f"nn.Linear({g.shape(x)[1]}, {g.channels()})")
    y = g.emit(f"{m}({y})", y)
    if g.rng.random() < 0.5:
        y = g.emit(f"{y}.mean(1)", y)
    return y


@_step(8)
def batch_norm(g: Generator) -> str:
    x = g.pick(lambda v: v.ndim in (2, g.dims + 2))
    channels, d = g.shape(x)[1], 1 if g.values[x].ndim == 2 else g.dims
    if g.rng.random() < 0.15:
        mean, var = g.buffer(f"torch.linspace(-0.5, 0.5, {channels})"), g.buffer(f"torch.linspace(0.5, 2, {channels})")
        w, b = g.parameter(channels), g.parameter(channels)
        return g.emit(f"F.batch_norm({x}, {mean}.to({x}.dtype), {var}.to({x}.dtype), {w}, {b})", x)
    m = g.module(f"nn.BatchNorm{d}d({channels}, affine={g.rng.random() < 0.9})")
    g.calls.append((m, channels))
    return g.emit(f"{m}({x})", x)


@_step(2)
def other_norm(g: Generator) -> str:
    x = g.map()
    channels = g.shape(x)[1]
    kind = g.rng.choice(
        (f"nn.GroupNorm({g.divisor(channels)}, {channels})", f"nn.InstanceNorm{g.dims}d({channels}, affine=True)")
    )
    return g.emit(f"{g.module(kind)}({x})", x)


@_step(10)
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


@_step(2)
def prelu(g: Generator) -> str:
    x = g.map()
    return g.emit(f"{g.module(f'nn.PReLU({g.shape(x)[1]})')}({x})", x)


@_step(3)
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


@_step(4)
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
    try:
        g.statement(g.rng.choice(forms))
        if g.rng.random() < 0.3:
            other = g.same(y)
            g.statement(g.rng.choice((f"{y} += {other}", f"{y}.mul_({other})", f"{y}.copy_({other} * 0.5)")), other)
    except (RuntimeError, ValueError) as error:
        raise Rejected(str(error)) from error
    return y


@_step(6)
def pool(g: Generator) -> str:
    x = g.map()
    d = g.dims
    forms = [
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
    return g.emit(g.rng.choice(forms).format(x=x, d=d), x)


@_step(10)
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


@_step(6)
def residual(g: Generator) -> str:
    """A conv back to the shape of its input, and the sum of both."""
    x = g.map()
    channels = g.shape(x)[1]
    groups = g.divisor(channels) if g.rng.random() < 0.3 else 1
    m = g.module(
        f"nn.Conv{g.dims}d({channels}, {channels}, 3, padding=1, groups={groups}, bias={g.rng.random() < 0.5})"
    )
    g.calls.append((m, channels))
    y = g.emit(f"{m}({x})", x)
    if g.rng.random() < 0.6:
        y = g.emit(f"{g.module(f'nn.BatchNorm{g.dims}d({channels})')}({y})", y)
    if g.rng.random() < 0.6:
        y = g.emit(f"F.relu({y})", y)
    return g.emit(g.rng.choice((f"{x} + {y}", f"{y} + {x}", f"torch.add({x}, {y})", f"{x} * {y}")), x, y)


@_step(6)
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


@_step(5)
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
    ]
    if g.rng.random() < 0.5:
        return g.emit(g.rng.choice(single), x)
    text, count = g.rng.choice(halves)
    return g.emit_several(text, count, x)


@_step(4)
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


@_step(4)
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


@_step(3)
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


@_step(6)
def reduce(g: Generator) -> str:
    x = g.pick(lambda v: v.ndim >= 2)
    ndim = g.values[x].ndim
    if ndim == g.dims + 2 and g.rng.random() < 0.6:
        dim: Any = list(range(2, ndim))
    else:
        dim = g.rng.randrange(1, ndim)
    keep = g.rng.random() < 0.5
    forms = [
        "{x}.mean({d}, keepdim={k})",
        "torch.sum({x}, {d}, keepdim={k})",
        "torch.amax({x}, {d}, keepdim={k})",
        "torch.linalg.vector_norm({x}, dim={d}, keepdim={k})",
        "torch.logsumexp({x}, {d}, keepdim={k})",
    ]
    y = g.emit(g.rng.choice(forms).format(x=x, d=dim, k=keep), x)
    if keep and g.rng.random() < 0.7:
        return g.emit(
            g.rng.choice(("{x} - {y}", "{x} * {y}", "{x} / ({y}.abs() + 1)", "{x} + {y}")).format(x=x, y=y), x, y
        )
    return y


@_step(4)
def squeeze_excite(g: Generator) -> str:
    x = g.map()
    channels, mid = g.shape(x)[1], g.rng.choice((2, 3, 4))
    one, two = g.module(f"nn.Conv{g.dims}d({channels}, {mid}, 1)"), g.module(f"nn.Conv{g.dims}d({mid}, {channels}, 1)")
    y = g.emit(f"F.adaptive_avg_pool{g.dims}d({x}, 1)", x)
    y = g.emit(f"F.relu({one}({y}))", y)
    y = g.emit(f"torch.sigmoid({two}({y}))", y)
    return g.emit(g.rng.choice((f"{x} * {y}", f"{y} * {x}")), x, y)


@_step(4)
def scale(g: Generator) -> str:
    x = g.map()
    channels = g.shape(x)[1]
    ones = ", 1" * g.dims
    wide = g.parameter(1, channels, *[1] * g.dims)
    forms = [f"{x} * {wide}", f"{x} + {wide}", f"{wide} * {x}", f"torch.mul({x}, {wide}.abs())"]
    if g.rng.random() < 0.4:
        g.init.pop()
        flat = g.parameter(channels)
        forms = [
            f"{x} * {flat}.view(1, -1{ones})",
            f"{x} + {flat}.reshape(-1{ones})",
            f"{x} * {flat}.view(1, {channels}{ones})",
        ]
    return g.emit(g.rng.choice(forms), x)


@_step(5)
def again(g: Generator) -> str:
    """A module that was called before, called again."""
    if not g.calls:
        raise Rejected("nothing was called yet")
    m, channels = g.rng.choice(g.calls)
    x = g.pick(lambda v: v.ndim == g.dims + 2 and v.shape[1] == channels)
    return g.emit(f"{m}({x})", x)


@_step(3)
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
    g.calls.append((m, channels))
    y = g.emit(f"{m}({x})", x)
    return g.emit(f"{x} + {y}", x, y) if g.rng.random() < 0.5 else y


@_step(2)
def attend(g: Generator) -> str:
    """A product of two activations with a softmax between."""
    x = g.map()
    y = g.emit(f"{x}.flatten(2)", x)
    z = g.emit(f"torch.softmax({y}.transpose(1, 2) @ {y} * 0.2, -1)", y)
    return g.emit(
        f"({y} @ {z}).view_as({x})" if g.rng.random() < 0.5 else f"torch.bmm({y}, {z}).reshape({x}.shape)", y, z, x
    )


@_step(2)
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


@_step(3)
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


@_step(2)
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
    ]
    return g.emit(g.rng.choice(forms), x)


@_step(1)
def unknown(g: Generator) -> str:
    """Ops that no rule knows."""
    x = g.pick(lambda v: v.ndim >= 2)
    forms = (
        "torch.special.bessel_j0({x})",
        "torch.einsum('nc...,nc...->nc...', {x}, {x})",
        "torch.linalg.vector_norm({x}, 3, 1)",
    )
    return g.emit(g.rng.choice(forms).format(x=x), x)


# -- cases ------------------------------------------------------------------------------------------------------------


def random_case(seed: int | random.Random, steps: int | None = None) -> Case:
    """A network of ``steps`` random steps (by default 2 to 14), with an input and masks."""
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    number = seed if isinstance(seed, int) else 0
    steps = rng.choice((2, 3, 4, 6, 8, 10, 14)) if steps is None else steps
    with torch.random.fork_rng():
        torch.manual_seed(number)
        for _ in range(50):
            g = Generator(rng)
            size = {1: 10, 2: 7, 3: 4}[g.dims]
            inputs = [(2, g.rng.choice((1, 3, 4)), *[size] * g.dims)]
            if g.rng.random() < 0.15:
                inputs.append((2, 4, *[size] * g.dims))
            for shape in inputs:
                g.values[f"i{len(g.values)}"] = torch.randn(*shape, dtype=torch.float64)
            names = list(g.values)
            stem(g)
            _grow(g, steps)
            returned = _finish(g)
            if g.init:
                source = _source(g, names, returned)
                case = _complete(number, source, inputs, rng)
                if case is not None:
                    return case
    raise AssertionError("no network found")


def stem(g: Generator) -> None:
    for name in list(g.values):
        channels = g.shape(name)[1]
        m = g.module(
            f"nn.Conv{g.dims}d({channels}, {g.channels()}, {g.rng.choice((1, 3))}, padding=1, "
            f"bias={g.rng.random() < 0.5})"
        )
        g.emit(f"{m}({name})", name)


def _grow(g: Generator, steps: int) -> None:
    functions = [f for _, f in _STEPS]
    weights = [w for w, _ in _STEPS]
    made = 0
    for _ in range(steps * 6):
        if made == steps:
            break
        saved = (dict(g.values), list(g.lines), set(g.used), len(g.init), list(g.calls))
        try:
            g.rng.choices(functions, weights)[0](g)
            made += 1
        except Rejected:
            g.values, g.lines, g.used, g.calls = saved[0], saved[1], saved[2], saved[4]
            for line in g.init[saved[3] :]:
                name = line.removeprefix("self.register_buffer('").removeprefix("self.").split(" ")[0].split("'")[0]
                delattr(g.net, name)
            del g.init[saved[3] :]


def _finish(g: Generator) -> str:
    """Heads on what nobody has read yet, and what the network returns."""
    ends = [n for n in g.values if n not in g.used and not n.startswith("i")] or [next(reversed(g.values))]
    g.rng.shuffle(ends)
    outputs = []
    for name in ends[:3]:
        try:
            if g.values[name].ndim == g.dims + 2 and g.rng.random() < 0.6:
                name = g.emit(f"{name}.mean({list(range(2, g.dims + 2))})", name)
            if g.values[name].ndim == 2 and g.rng.random() < 0.9:
                name = g.emit(f"{g.module(f'nn.Linear({g.shape(name)[1]}, 3)')}({name})", name)
            elif g.values[name].ndim == g.dims + 2 and g.rng.random() < 0.9:
                name = g.emit(f"{g.module(f'nn.Conv{g.dims}d({g.shape(name)[1]}, 2, 1)')}({name})", name)
        except Rejected:
            pass
        outputs.append(name)
    if len(outputs) == 1:
        return g.rng.choice(("{0}", "{0}", "({0},)", "{{'out': {0}}}")).format(outputs[0])
    form = g.rng.randrange(3)
    if form == 0:
        return f"({', '.join(outputs)})"
    if form == 1:
        return "{" + ", ".join(f"'o{i}': {n}" for i, n in enumerate(outputs)) + "}"
    return f"{{'first': {outputs[0]}, 'rest': [{', '.join(outputs[1:])}]}}"


def _source(g: Generator, names: list[str], returned: str) -> str:
    lines = ["class Net(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        {line}" for line in g.init]
    lines += ["", f"    def forward(self, {', '.join(names)}):"]
    lines += [f"        {line}" for line in g.lines]
    lines += [f"        return {returned}", ""]
    return "\n".join(lines)


def _complete(seed: int, source: str, shapes: list[tuple[int, ...]], rng: random.Random) -> Case | None:
    model = build(source, seed)
    if not any(True for _ in model.parameters()):
        return None
    g = torch.Generator().manual_seed(seed)

    def inputs(batch: int, more: int) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.randn(batch, s[1], *[n + more for n in s[2:]], generator=g, dtype=torch.float64) for s in shapes
        )

    case = Case(seed, source, inputs(2, 0), random_masks(model, rng))
    reference = masked_copy(model, case.masks)
    for batch, more in ((2, 0), (3, 0), (1, 2), (2, 3)):
        try:
            given = inputs(batch, more)
            outs = run(reference, given)
        except (RuntimeError, IndexError, ValueError):
            if more == 0 and batch == 2:
                return None
            continue
        if any(not torch.isfinite(o).all() or (o.numel() and o.abs().max() > 1e8) for o in outs):
            if more == 0 and batch == 2:
                return None
            continue
        if (batch, more) != (2, 0):
            case.others.append(given)
    return case


# -- what must hold ---------------------------------------------------------------------------------------------------


@dataclass
class Result:
    small: nn.Module
    plan: speedup.Plan
    error: float
    parameters: tuple[int, int]


def difference(wanted: list[torch.Tensor], got: list[torch.Tensor]) -> float:
    """The largest difference of two lists of outputs, relative to the largest entry; inf where shapes differ."""
    if [(t.shape, t.dtype) for t in wanted] != [(t.shape, t.dtype) for t in got]:
        return math.inf
    worst = 0.0
    for a, b in zip(wanted, got, strict=True):
        if a.numel():
            if bool(torch.isnan(b).any()) or bool(torch.isinf(b).any()):
                return math.inf
            worst = max(worst, float((a - b).abs().max()) / (float(a.abs().max()) + 1e-3))
    return worst


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def check_case(case: Case, tolerance: float = 1e-9) -> Result:
    """Speed the network up and compare it with the masked one on every input.

    Raises:
        AssertionError: they differ, or the small one is larger; the message holds the source.
        speedup.SpeedupError: speedup refused.
    """
    model = case.model()
    reference = masked_copy(model, case.masks)
    before = count(model)
    plan = speedup.plan(model, case.inputs, case.masks)
    small = plan.apply()
    worst = 0.0
    for given in (case.inputs, *case.others):
        error = difference(run(reference, given), run(small, given))
        assert error <= tolerance, f"differs by {error:.2g} at {_shapes(given)}\n{case.source}"
        worst = max(worst, error)
    assert count(small) <= before, f"{before} parameters became {count(small)}\n{case.source}"
    macs = plan.report.macs
    assert macs[1] <= macs[0], f"MACs grew from {macs[0]} to {macs[1]}\n{case.source}"
    return Result(small, plan, worst, (before, count(small)))


def kept(plan: speedup.Plan) -> dict[str, Any]:
    """What a plan keeps of every tensor, as data that can be compared."""
    found: dict[str, Any] = plan.to_dict()
    return found


# -- scripts ----------------------------------------------------------------------------------------------------------


def _shapes(inputs: Iterable[torch.Tensor]) -> str:
    return "[" + ", ".join(str(tuple(t.shape)) for t in inputs) + "]"


def _masks_source(masks: Masks) -> str:
    lines = ["masks = {"]
    for name, entry in masks.items():
        inner = ", ".join(f"{k!r}: {_mask_source(m)}" for k, m in entry.items() if m is not None)
        lines.append(f"    {name!r}: {{{inner}}},")
    return "\n".join([*lines, "}"])


def _mask_source(mask: torch.Tensor) -> str:
    shape = tuple(mask.shape)
    for axis in range(mask.ndim):
        line = mask.amax([a for a in range(mask.ndim) if a != axis]) if mask.ndim > 1 else mask
        view = [-1 if a == axis else 1 for a in range(mask.ndim)]
        if torch.equal(line.reshape(view).expand(shape), mask):
            return f"torch.tensor({[int(i) for i in line]}).reshape({view}).expand({shape})"
    return f"torch.tensor({mask.int().tolist()})"


_SCRIPT = """\
import copy, torch, speedup
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves


{source}

torch.manual_seed({seed})
model = Net().double().eval()
for m in model.modules():
    for n, b in m.named_buffers(recurse=False):
        if n == "running_mean": b.normal_().mul_(0.3)
        elif n == "running_var": b.uniform_().add_(0.5)
    for n, p in m.named_parameters(recurse=False):
        if n == "bias": p.data.normal_().mul_(0.3)
{masks}
inputs = [torch.randn(*s, dtype=torch.float64) for s in {inputs}]
masked = copy.deepcopy(model)
for name, entry in masks.items():
    for parameter, mask in entry.items():
        getattr(masked.get_submodule(name), parameter).data.mul_(mask)
small = speedup.ModelSpeedup(model, tuple(inputs), masks).speedup_model()
with torch.no_grad():
    for a, b in zip(tree_leaves(masked(*inputs)), tree_leaves(small(*inputs))):
        print(a.shape, b.shape, float((a - b).abs().max()), float(a.abs().max()))
"""
