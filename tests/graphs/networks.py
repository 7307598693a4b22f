"""Whole networks: a stem for every input, random steps, heads, and masks."""

from __future__ import annotations

import random
from typing import Any

import torch

from tests.graphs import blocks, layers, moves, norms, pointwise, pools, sequences
from tests.graphs.case import Case, build, masked_copy, run
from tests.graphs.generator import STEPS, Generator, Rejected
from tests.graphs.masks import STYLES, random_masks
from tests.graphs.standalone import draw_inputs

_MODULES = (blocks, layers, moves, norms, pointwise, pools, sequences)  # each registers its steps


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
            shapes: list[tuple[Any, ...]] = [(2, rng.choice((1, 3, 4)), *[size] * g.dims)]
            if rng.random() < 0.15:
                shapes.append((2, 4, *[size] * g.dims))
            if rng.random() < 0.08:
                shapes.append(("tokens", 2, 5))
            first, *_, last = draw_inputs(shapes, number)
            g.values.update({f"i{k}": t for k, t in enumerate(first)})
            if g.twins is not None:
                g.twins.update({f"i{k}": t for k, t in enumerate(last)})
            names = list(g.values)
            _stem(g)
            _grow(g, steps)
            returned = _finish(g)
            if g.init:
                case = _complete(number, _source(g, names, returned), shapes, rng, tuple(g.steps))
                if case is not None:
                    return case
    raise AssertionError("no network found")


def _stem(g: Generator) -> None:
    for name in list(g.values):
        if not g.values[name].is_floating_point():
            g.emit(f"{g.module(f'nn.Embedding(7, {g.channels()})')}({name})", name)
            continue
        kernel, bias = g.rng.choice((1, 3)), g.rng.random() < 0.5
        m = g.module(f"nn.Conv{g.dims}d({g.shape(name)[1]}, {g.channels()}, {kernel}, padding=1, bias={bias})")
        g.emit(f"{m}({name})", name)


def _grow(g: Generator, steps: int) -> None:
    functions = [f for _, f in STEPS]
    weights = [w for w, _ in STEPS]
    for _ in range(steps * 6):
        if len(g.steps) >= steps:
            break
        g.attempt(g.rng.choices(functions, weights)[0])


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
            elif g.values[name].ndim == 3 and g.rng.random() < 0.7:
                name = g.emit(f"{name}.mean(1)", name)
                name = g.emit(f"{g.module(f'nn.Linear({g.shape(name)[1]}, 3)')}({name})", name)
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


def _complete(
    seed: int, source: str, shapes: list[tuple[Any, ...]], rng: random.Random, steps: tuple[str, ...]
) -> Case | None:
    """The case, with masks; None where the masked network cannot be run or gives no ordinary numbers."""
    model = build(source, seed)
    if not any(True for _ in model.parameters()):
        return None
    style = rng.choice(STYLES)
    first, *others = draw_inputs(shapes, seed)
    case = Case(seed, source, first, random_masks(model, rng, style), [], shapes, steps, style)
    reference = masked_copy(model, case.masks)
    for given in (first, *others):
        try:
            outs = run(reference, given)
        except (RuntimeError, IndexError, ValueError, AssertionError):
            outs = []
        fine = outs and all(torch.isfinite(o).all() and (not o.numel() or o.abs().max() <= 1e8) for o in outs)
        if not fine and given is first:
            return None
        if fine and given is not first:
            case.others.append(given)
    return case
