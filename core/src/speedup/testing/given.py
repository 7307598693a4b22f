"""Facts that are made up for one node: what a rule must answer to, though the model at hand may never show it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from speedup.arrays import Bools, Floats, everything, nothing
from speedup.facts import Affine, Constant, affine
from speedup.known import Facts
from speedup.node import Node, Value, rows_of_one


class Given(Facts):
    """Facts of which some are made up."""

    def __init__(self, real: Facts) -> None:
        super().__init__(real.graph, {})
        self.masked = real.masked
        self.idle: dict[Value, Bools] = {}

    def unused(self, value: Value) -> Bools:
        return self.idle.get(value, nothing(value.ndim))

    def snapshot(self) -> list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
        """Copies of all that was made up."""
        made: list[Bools | Floats] = list(self.idle.values())
        for constant in self.constants.values():
            made += [constant.mask, constant.value]
        for known in self.affine.values():
            made += [known.mask, known.offset, *known.terms]
        return [array.copy() for array in made]


class Maker:
    """Makes pairs of facts at a node, of which the second says at least what the first does."""

    def __init__(self, real: Facts, seed: int) -> None:
        self.real = real
        self.rng = np.random.default_rng(seed)

    def pair(self, node: Node, samples: dict[Value, torch.Tensor]) -> tuple[Given, Given]:
        """Random facts about the operands and the outputs of a node."""
        less, more = Given(self.real), Given(self.real)
        for value in dict.fromkeys(v for v in node.operands if v is not None):
            if value.tensor is None and not value.dtype.is_complex and value in samples:
                self._operand(value, samples[value], less, more)
        for value in dict.fromkeys(node.outputs):
            mask = self._mask(value)
            more.idle[value] = mask
            less.idle[value] = mask & self._some(mask)
        return less, more

    def _operand(self, value: Value, sample: torch.Tensor, less: Given, more: Given) -> None:
        draw = self.rng.random()
        if value not in self.real.graph.from_input or rows_of_one(value) is not None:
            draw = 1.0  # made of weights alone, or the weights of means: it is what it is
        known = self.real.affine.get(value)
        if known is None and draw < 0.15 and value.dtype.is_floating_point and value.ndim:
            known = self._affine(value)
        constant = self.real.constants.get(value) if draw > 0.8 else None
        if constant is None and draw < 1.0 and not (known is not None and draw < 0.5):
            mask = self._mask(value)
            constant = Constant(mask, self._value(mask.shape, sample))
        if known is not None and draw < 0.5:
            rest = known.mask & ~(constant.mask if constant is not None else nothing(value.ndim))
            for facts, mask in ((more, rest), (less, rest & self._some(rest))):
                fact = affine(known.axis, mask, known.terms, known.offset, known.one_hot)
                if fact is not None:
                    facts.affine[value] = fact
        if constant is not None:
            more.constants[value] = constant
            mask = constant.mask & self._some(constant.mask)
            less.constants[value] = Constant(mask, np.broadcast_to(constant.value, mask.shape).copy())

    def _affine(self, value: Value) -> Affine | None:
        axis = int(self.rng.integers(value.ndim))
        shape = tuple(s if a == axis else 1 for a, s in enumerate(value.shape))
        terms = [self.rng.normal(size=shape) for _ in range(self.rng.integers(1, 3))]
        mask, offset = self.rng.random(shape) < 0.6, self.rng.normal(size=shape)
        return affine(axis, mask, terms, offset, one_hot=bool(offset.flat[0] > 0.5))

    def _mask(self, value: Value) -> Bools:
        """Along one axis mostly, sometimes along more of them, or everywhere."""
        if self.rng.random() < 0.1:
            return everything(value.ndim)
        shape = self._shape(value.shape, lambda: self.rng.choice([1, 1, 1, 1, 2, value.ndim]))
        mask: Bools = self.rng.random(shape) < self.rng.choice([0.2, 0.5, 0.9])
        return mask

    def _some(self, mask: Bools) -> Bools:
        """Part of a mask: the same entries, none, or a share of what it writes out."""
        if self.rng.random() < 0.2:
            return mask if self.rng.random() < 0.5 else nothing(mask.ndim)
        some: Bools = np.less(self.rng.random(mask.shape), 0.6)
        return some

    def _shape(self, shape: tuple[int, ...], count: Callable[[], int]) -> tuple[int, ...]:
        if not shape:
            return ()
        # Channels are where facts mostly are: axis 1, or the last one.
        weights = np.array([1.0 + 3 * (a == 1) + 2 * (a == len(shape) - 1) for a in range(len(shape))])
        number = min(int(count()), len(shape))
        wide = self.rng.choice(len(shape), size=number, replace=False, p=weights / weights.sum())
        return tuple(s if a in wide else 1 for a, s in enumerate(shape))

    def _value(self, shape: tuple[int, ...], sample: torch.Tensor) -> Floats:
        """Zeros, one number, or other numbers; of what the tensor can hold."""
        if not sample.is_floating_point():
            seen = sample.flatten().to(torch.float64).numpy()
            return self.rng.choice(seen, size=shape) if seen.size else np.zeros(shape)
        value = self.rng.normal(size=shape)
        kind = self.rng.integers(4)
        if kind == 0:
            value = np.zeros(shape)
        elif kind == 1:
            value = np.full(shape, self.rng.normal())
        elif kind == 2:
            value = value * (self.rng.random(shape) < 0.5)
        held = torch.from_numpy(np.asarray(value, dtype=np.float64)).to(sample.dtype)
        return np.asarray(held.to(torch.float64).numpy())
