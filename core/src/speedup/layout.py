"""A signature bound to the shapes of one call: the names behind every axis, and arrays that have an axis per name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakValueDictionary

import numpy as np

from speedup.arrays import all_of, any_of
from speedup.cached import cached_property

Shape = tuple[int, ...]
Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

if TYPE_CHECKING:
    of_form = cached_property
else:

    class of_form(cached_property):
        """A cached property for which no size matters but whether it is 1: the form has it for all its layouts."""

        def __get__(self, layout: Layout | None, owner: type | None = None) -> Any:
            if layout is None:
                return self
            form = layout.form
            found = self.func(layout) if form is layout else getattr(form, self.attrname)
            layout.__dict__[self.attrname] = found
            return found


@dataclass(frozen=True)
class Layout:
    """A signature bound to shapes: for every operand (inputs, then outputs) the names behind each of its axes.

    The engine computes in *named space*: arrays with one axis per name, in the order of ``names``, of size 1 where
    they do not vary. ``to_named`` and ``from_named`` go there and back.
    """

    names: tuple[str, ...]
    sizes: dict[str, int]
    operands: tuple[tuple[tuple[str, ...], ...] | None, ...]
    n_inputs: int
    mixed: frozenset[str]
    contracted: frozenset[str] = field(default=frozenset())
    _found: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    _to: dict[tuple[int, Shape], Any] = field(default_factory=dict, repr=False, compare=False)
    _from: dict[tuple[int, Shape], Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def form(self) -> Layout:
        """The first layout with the same names in the same places, of which the same have size 1: a model has many
        calls that are alike but for their sizes. What no size matters for but whether it is 1, is found by its
        ``once``."""
        sizes = tuple([min(size, 2) for size in self.sizes.values()])
        key = self.names, sizes, self.operands, self.n_inputs, self.mixed, self.contracted
        return _FORMS.setdefault(key, self)

    @property
    def n_outputs(self) -> int:
        return len(self.operands) - self.n_inputs

    def present(self, k: int) -> bool:
        return self.operands[k] is not None

    def ndim(self, k: int) -> int:
        """How many axes operand ``k`` has."""
        return len(self.operands[k] or ())

    def names_of(self, k: int) -> frozenset[str]:
        """The names that operand ``k`` varies along."""
        return self._names_by_operand[k]

    def varying(self, k: int, shape: Shape) -> list[str]:
        """The names that an array of this shape, which broadcasts to operand ``k``, is written out along."""
        dims = self.operands[k] or ()
        return [n for size, dim in zip(shape, dims, strict=True) if size > 1 for n in dim]

    def shared(self, k: int) -> frozenset[str]:
        """The names of operand ``k`` that are not private to it (mixed axes are)."""
        return self._shared_by_operand[k]

    def private(self, k: int) -> tuple[int, ...]:
        """The axes in named space that are no shared names of operand ``k``."""
        return self._private_by_operand[k]

    @of_form
    def factors(self) -> tuple[int, ...]:
        """The inputs that are multiplied: those with contracted names."""
        return tuple([k for k in range(self.n_inputs) if self.names_of(k) & self.contracted])

    @of_form
    def addends(self) -> tuple[int, ...]:
        """The other inputs that are there, which are added where some are multiplied."""
        return tuple([k for k in self.inputs if k not in self.factors])

    @of_form
    def inputs(self) -> tuple[int, ...]:
        """The inputs that are there."""
        return tuple([k for k in range(self.n_inputs) if self.operands[k] is not None])

    @of_form
    def passing(self) -> frozenset[int]:
        """The inputs that have the axes of the only output, none of them mixed: entry for entry one belongs to one."""
        if self.n_outputs != 1 or self.mixed:
            return frozenset()
        return frozenset(k for k in range(self.n_inputs) if self.operands[k] == self.operands[-1])

    @of_form
    def contracted_axes(self) -> tuple[int, ...]:
        """The positions of contracted names in named space."""
        return self.axes(self.contracted)

    @of_form
    def mixed_axes(self) -> tuple[int, ...]:
        """The positions of mixed names in named space."""
        return self.axes(self.mixed)

    @of_form
    def _names_by_operand(self) -> list[frozenset[str]]:
        return [frozenset(n for dim in dims or () for n in dim) for dims in self.operands]

    @of_form
    def _shared_by_operand(self) -> list[frozenset[str]]:
        return [names - self.mixed for names in self._names_by_operand]

    @of_form
    def _private_by_operand(self) -> list[tuple[int, ...]]:
        return [self.axes(set(self.names) - shared) for shared in self._shared_by_operand]

    def to_named(self, k: int, array: Array) -> Array:
        """Bring an array that broadcasts to operand ``k`` into named space."""
        way = self._to.get((k, array.shape))
        if way is None:
            way = self._to[k, array.shape] = self._way_to(k, array.shape)
        factored, order, named = way
        if order is None:
            return array if array.shape == named else array.reshape(named)
        return array.reshape(factored).transpose(order).reshape(named)

    def all_to_named(self, k: int, arrays: Array) -> Array:
        """As ``to_named``, of several arrays that are stacked along a first axis."""
        way = self._to.get((k, arrays.shape[1:]))
        if way is None:
            way = self._to[k, arrays.shape[1:]] = self._way_to(k, arrays.shape[1:])
        factored, order, named = way
        if order is not None:
            arrays = arrays.reshape(-1, *factored).transpose(0, *(axis + 1 for axis in order))
        return arrays.reshape(len(arrays), *named)

    def is_even(self, k: int, shape: Shape) -> bool:
        """Whether an array of this shape, which broadcasts to operand ``k``, has size 1 along all that is mixed."""
        return not self.mixed or bool(
            self.once("even", (k, shape), lambda: self.mixed.isdisjoint(self.varying(k, shape)))
        )

    def from_named(self, k: int, array: Array) -> Array:
        """Bring a named array that varies only along names of operand ``k`` back to its own axes."""
        way = self._from.get((k, array.shape))
        if way is None:
            way = self._from[k, array.shape] = self._way_from(k, array.shape)
        order, factored, wide, shape = way
        if order is None:
            return array.reshape(shape)
        array = array.transpose(order).reshape(factored)
        return (array if wide == factored else np.broadcast_to(array, wide)).reshape(shape)

    def axes(self, names: frozenset[str] | set[str]) -> tuple[int, ...]:
        """Positions of ``names`` in named space."""
        return tuple([p for p, n in enumerate(self.names) if n in names])

    def project_any(self, k: int, array: Array) -> Array:
        """Reduce a named bool array to the shared names of operand ``k``: true where any entry is."""
        return any_of(array, self._private_by_operand[k])

    def project_all(self, k: int, array: Array) -> Array:
        """Reduce a named bool array to the shared names of operand ``k``: true where every entry is."""
        return all_of(array, self._private_by_operand[k])

    def once(self, kind: str, key: Any, find: Callable[[], Any]) -> Any:
        """What follows from the layout and a key alone, found once for all calls of this layout."""
        try:
            return self._found[kind, key]
        except KeyError:
            found = self._found[kind, key] = find()
            return found

    def _way_to(self, k: int, sizes: Shape) -> tuple[list[int], list[int] | None, Shape]:
        """The shape in which each name has an axis, how to transpose it (None: not at all), and that in named space."""
        dims = self.operands[k]
        assert dims is not None
        shape: list[int] = []
        order: list[str] = []
        for size, dim in zip(sizes, dims, strict=True):
            shape += [1] * len(dim) if size == 1 else [self.sizes[n] for n in dim]
            order += dim
        by_name = dict(zip(order, range(len(order)), strict=True))
        here = [n for n in self.names if n in by_name]
        named = [shape[by_name[n]] if n in by_name else 1 for n in self.names]
        order_of = [by_name[n] for n in here]
        return shape, None if _in_place(order_of, shape) else order_of, tuple(named)

    def _way_from(self, k: int, sizes: Shape) -> tuple[list[int] | None, list[int], list[int], list[int]]:
        """How to transpose (None: not at all), the shape in which each name has an axis, the same written out, and the
        operand's own."""
        dims = self.operands[k]
        assert dims is not None
        flat = [n for dim in dims for n in dim]
        order = [self.names.index(n) for n in flat] + [p for p, n in enumerate(self.names) if n not in flat]
        factored = [sizes[self.names.index(n)] for n in flat]
        shape: list[int] = []
        wide: list[int] = []
        at = 0
        for dim in dims:
            full = any(s != 1 for s in factored[at : at + len(dim)])
            wide += [self.sizes[n] if full else 1 for n in dim]
            shape.append(prod(self.sizes[n] for n in dim) if full else 1)
            at += len(dim)
        plain = wide == factored and _in_place(order, sizes)
        return None if plain else order, factored, wide, shape


_FORMS: WeakValueDictionary[Any, Layout] = WeakValueDictionary()


def _in_place(order: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether a transposition leaves the axes that are longer than 1 in their order."""
    long = [a for a in order if sizes[a] > 1]
    return long == sorted(long)
