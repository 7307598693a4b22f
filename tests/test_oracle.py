"""What could go went: of chains of layers just those channels are left that a run of the masked model finds alive.

Nothing here asks the engine. A channel of a layer is alive if it differs from input to input and the outputs change
with it: their gradient is not 0. In a chain nothing else holds a channel, but for the one that carries constants to a
convolution under zero padding. Networks with joins have their optimum worked out by hand in `tests/minimal`.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

import speedup
from speedup.testing import Masks, masked_copy, randomize

ACTIVATIONS = (nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softsign)  # of no channel these make 0 by chance


def chain(rng: random.Random) -> tuple[nn.Sequential, dict[str, int]]:
    """Convolutions with what stands between them; and by name how many constants each may make for those behind."""
    layers: list[nn.Module] = []
    names: list[str] = []
    padded: list[bool | None] = []  # None of a depthwise one, to which a carrier comes from the one before
    width, halved = 3, 0
    for _ in range(rng.randint(2, 5)):
        names.append(str(len(layers)))
        if layers and rng.random() < 0.25:
            layers.append(nn.Conv2d(width, width, 3, groups=width, bias=rng.random() < 0.5))
            padded.append(None)
        else:
            kernel, out = rng.choice((1, 3)), rng.randint(4, 12)
            padded.append(kernel == 3 and rng.random() < 0.6)
            stride, bias = rng.choice((1, 1, 2)) if halved < 2 else 1, rng.random() < 0.6
            halved += stride - 1
            layers.append(nn.Conv2d(width, out, kernel, stride, int(padded[-1]), bias=bias))
            width = out
        if rng.random() < 0.5:
            layers.append(nn.BatchNorm2d(width))
        layers.append(rng.choice(ACTIVATIONS)())
        if len(names) == 1 and rng.random() < 0.5:
            layers.append(nn.MaxPool2d(2, 1))
    carriers, behind = {}, 0
    for name, own in zip(reversed(names), reversed(padded), strict=True):
        carriers[name] = behind
        behind = behind if own is None else int(own)
    names.append(str(len(layers) + 2))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 7), nn.Tanh(), nn.Linear(7, 3)]
    carriers[names[-1]] = 0
    return nn.Sequential(*layers), carriers


def drawn(model: nn.Module, rng: random.Random) -> Masks:
    """Filters, columns and biases, each for itself; of no layer all filters."""
    masks: Masks = {}
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        for parameter, tensor in own.items():
            if rng.random() < 0.3:
                continue
            mask = torch.ones_like(tensor)
            for axis in range(min(tensor.ndim, 2)):
                size = tensor.shape[axis]
                gone = [i for i in range(1, size) if rng.random() < (0.4 if axis == 0 else 0.2)]
                mask.index_fill_(axis, torch.tensor(gone, dtype=torch.long), 0)
            masks.setdefault(name, {})[parameter] = mask
    return masks


def alive(model: nn.Module, names: list[str]) -> dict[str, int]:
    """How many channels of these layers differ from input to input, and matter."""
    made: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(n).register_forward_hook(lambda _, __, y, n=n: (y.retain_grad(), made.update({n: y}))[0])
        for n in names
    ]
    seen: list[dict[str, torch.Tensor]] = []
    matters = {n: torch.zeros(1, dtype=torch.bool) for n in names}
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        y = model(torch.randn(2, 3, 40, 37, generator=g, dtype=torch.float64))
        (y * torch.randn(y.shape, generator=g, dtype=torch.float64)).sum().backward()
        seen.append({n: t.detach() for n, t in made.items()})
        for n, t in made.items():
            assert t.grad is not None
            matters[n] = matters[n] | (t.grad != 0).transpose(0, 1).flatten(1).any(1)
    for hook in hooks:
        hook.remove()
    found = {}
    for n in names:
        stack = torch.stack([s[n] for s in seen])
        differs = (stack.amax(0) - stack.amin(0) > 1e-12 * stack.abs().max()).transpose(0, 1).flatten(1).any(1)
        found[n] = int((differs & matters[n]).sum())
    return found


def check(seed: int) -> tuple[int, int]:
    """How many channels are left, and how many there were."""
    rng = random.Random(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, carriers = chain(rng)
        model = randomize(model, seed).double().eval()
    masks = drawn(model, rng)
    if not masks:
        return 0, 0
    names = list(carriers)
    wanted = alive(masked_copy(model, masks), names)
    before = sum(model.get_parameter(f"{n}.weight").shape[0] for n in names)
    small = speedup.plan(model, torch.zeros(1, 3, 40, 37, dtype=torch.float64), masks).apply()
    if not all(wanted.values()):
        return 0, 0  # a layer of which nothing is alive keeps one channel, and all behind it are constants
    left = {n: small.get_parameter(f"{n}.weight").shape[0] for n in names}
    for n in names:
        assert wanted[n] <= left[n] <= wanted[n] + carriers[n], f"case {seed}, layer {n}: {left}, alive are {wanted}"
    return sum(left.values()), before


@pytest.mark.parametrize("seeds", [range(150), pytest.param(range(1_000, 4_000), marks=pytest.mark.slow)])
def test_what_is_left_of_a_chain_is_alive(seeds: range) -> None:
    left, before = map(sum, zip(*map(check, seeds), strict=True))
    assert before > 10 * len(seeds) and left < 0.8 * before, "most cases are looked at, and lose something"
