"""The generator: writes a network line by line and runs each line at once, so that it always knows every shape."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_CHANNELS = ((2, 3, 4, 4, 6, 6, 8, 8, 12), (4, 8), (6, 6, 12), (8,))
_LARGEST = 1e4
_MOST_ENTRIES = 20_000


class Rejected(Exception):
    """A random step that cannot be made; another one is tried."""


class Generator:
    """A network that grows.

    Attributes:
        init, lines: the source of ``__init__`` and ``forward``.
        values: the tensors of the forward by name.
        twins: the same for inputs of another size, in networks that must not hold a size; None in others.
        used: names of values that something reads.
        calls: modules that may be called again: expression, which axis holds its channels (1 or -1), how many.
        dims: the number of spatial axes of the feature maps.
        steps: the names of the steps that were made.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.net: Any = nn.Module().double().eval()
        self.init: list[str] = []
        self.lines: list[str] = []
        self.values: dict[str, torch.Tensor] = {}
        self.twins: dict[str, torch.Tensor] | None = {} if rng.random() < 0.6 else None
        self.used: set[str] = set()
        self.calls: list[tuple[str, int, int]] = []
        self.steps: list[str] = []
        self.dims = rng.choice((2, 2, 2, 2, 1, 3))
        self.palette = rng.choice(_CHANNELS)  # a small one makes adds, shared modules and aligned masks meet often
        self._values = self._attributes = 0

    # -- what steps add ------------------------------------------------------------------------------------------

    def module(self, text: str) -> str:
        """Add a child module; the expression that names it."""
        name = self._attribute("m")
        setattr(self.net, name, eval(text, {"nn": nn, "torch": torch}).double().eval())
        self.init.append(f"self.{name} = {text}")
        return f"self.{name}"

    def parameter(self, *shape: int) -> str:
        name = self._attribute("p")
        setattr(self.net, name, nn.Parameter(torch.randn(*shape, dtype=torch.float64)))
        self.init.append(f"self.{name} = nn.Parameter(torch.randn({', '.join(map(str, shape))}))")
        return f"self.{name}"

    def buffer(self, text: str) -> str:
        name = self._attribute("b")
        self.net.register_buffer(name, eval(text, {"torch": torch}))
        self.init.append(f"self.register_buffer('{name}', {text})")
        return f"self.{name}"

    def setup(self, text: str) -> None:
        """Add a statement to ``__init__``."""
        exec(text, self._space())
        self.init.append(text)

    def emit(self, text: str, *reads: str) -> str:
        """Add ``name = text`` to the forward and run it."""
        name = self._name()
        value = self._run(text)
        self._accept(text, value)
        self._twin([name], text)
        self.lines.append(f"{name} = {text}")
        self.values[name] = value
        self.used.update(reads)
        return name

    def emit_several(self, text: str, count: int, *reads: str) -> list[str]:
        values = self._run(text)
        if len(values) != count:
            raise Rejected(text)
        names = [self._name() for _ in range(count)]
        self._twin(names, text)
        self.lines.append(f"{', '.join(names)}{',' if count == 1 else ''} = {text}")
        self.values.update(zip(names, values, strict=True))
        self.used.update(reads)
        return names

    def emit_choice(self, test: str, one: str, other: str, *reads: str) -> str:
        """A branch of Python that depends on data: ``if test: name = one`` ``else: name = other``."""
        name = self._name()
        values = [self._run(text) for text in (one, other)]
        for value in values:
            self._accept(one, value)
        if values[0].shape != values[1].shape:
            raise Rejected(one)
        self._twin([name], one)
        self.lines += [f"if {test}:", f"    {name} = {one}", "else:", f"    {name} = {other}"]
        self.values[name] = values[0] if self._run(test) else values[1]
        self.used.update(reads)
        return name

    def statement(self, text: str, *reads: str) -> None:
        """Add a line that changes a value in place."""
        try:
            with torch.no_grad():
                exec(text, self._space())
                if self.twins is not None:
                    exec(text, {**self._space(), **self.twins})
        except (RuntimeError, ValueError) as error:
            raise Rejected(str(error)) from error
        self.lines.append(text)
        self.used.update(reads)

    def _name(self) -> str:
        self._values += 1
        return f"x{self._values - 1}"

    def _attribute(self, kind: str) -> str:
        self._attributes += 1
        return f"{kind}{self._attributes - 1}"

    def _accept(self, text: str, value: Any) -> None:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.numel() > _MOST_ENTRIES:
            raise Rejected(text)
        if 0 in value.shape or not torch.isfinite(value).all() or value.abs().max() > _LARGEST:
            raise Rejected(text)

    def _twin(self, names: list[str], text: str) -> None:
        if self.twins is None:
            return
        made = self._run(text, self.twins)
        values = [made] if isinstance(made, torch.Tensor) else list(made)
        if len(values) != len(names):
            raise Rejected(text)
        self.twins.update(zip(names, values, strict=True))

    def _run(self, text: str, twins: dict[str, torch.Tensor] | None = None) -> Any:
        try:
            with torch.no_grad():
                return eval(text, {**self._space(), **(twins or {})})
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise Rejected(f"{text}: {error}") from error

    def _space(self) -> dict[str, Any]:
        return {"torch": torch, "nn": nn, "F": F, "self": self.net, **self.values}

    # -- what steps choose from ----------------------------------------------------------------------------------

    def pick(self, test: Callable[[torch.Tensor], bool]) -> str:
        """A value that passes the test; newer and unread ones are likelier."""
        fit = [n for n, v in self.values.items() if v.is_floating_point() and test(v)]
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

    def sequence(self) -> str:
        """Batch, positions, channels: one that is there, or a feature map turned into one."""
        if self.dims != 1 and self.rng.random() < 0.6:
            fit = [n for n, v in self.values.items() if v.ndim == 3 and v.is_floating_point()]
            if fit:
                return self.rng.choice(fit[-3:])
        x = self.map()
        return self.emit(f"{x}.flatten(2).transpose(1, 2)", x)

    def same(self, name: str) -> str:
        """Another value of the same shape."""
        shape = self.values[name].shape
        fit = [n for n, v in self.values.items() if v.shape == shape and n != name and v.is_floating_point()]
        if not fit:
            raise Rejected("no other value of this shape")
        return self.rng.choice(fit)

    def channels(self) -> int:
        return self.rng.choice(self.palette)

    def divisor(self, *sizes: int) -> int:
        g = math.gcd(*sizes)
        return self.rng.choice([d for d in range(1, g + 1) if g % d == 0])

    # -- steps ---------------------------------------------------------------------------------------------------

    def attempt(self, step: Step) -> bool:
        """Add a step, or leave the network as it was."""
        saved = dict(self.values), list(self.lines), set(self.used), list(self.init), list(self.calls)
        twins = None if self.twins is None else dict(self.twins)
        attributes = set(vars(self.net)), set(self.net._modules), set(self.net._parameters), set(self.net._buffers)
        try:
            step(self)
        except Rejected:
            self.values, self.lines, self.used, self.init, self.calls = saved
            self.twins = twins
            for held, before in zip(
                (self.net._modules, self.net._parameters, self.net._buffers), attributes[1:], strict=True
            ):
                for name in set(held) - before:
                    del held[name]
            return False
        self.steps.append(step.__name__)
        return True


Step = Callable[[Generator], Any]
STEPS: list[tuple[int, Step]] = []


def step(weight: int) -> Callable[[Step], Step]:
    """Register a step of the generator; a larger weight makes it likelier."""

    def add(function: Step) -> Step:
        STEPS.append((weight, function))
        return function

    return add
