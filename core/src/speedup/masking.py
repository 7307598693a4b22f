"""The masked model, of which no more stands in memory than what one call reads.

A parameter is masked when a call reads it, and is itself again after the call. It stays masked until the end of the run
where the run may notice: when something is left that shares its memory (a view), when a call wrote into it, or when it
is read for the second time, which is likely to go on. Who asks for the numbers of a parameter (``Value.contents``) gets
a masked copy of his own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from speedup import walk
from speedup.arrays import Bools, Indices, along, compact_axes, equal
from speedup.cutting import taken
from speedup.masks import compact

# Below, slices cost more time than they save memory; and so many of them that the largest does not count.
_LEAST, _SHARE = 2**20, 32

# Entries of a call's parameters times those of its input, below which to find out what is alike takes longer than that.
_WORTH = 2**33

# By the bytes of a number with a point, the integers that have as many.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FEW = 2**11  # entries, up to which fewer calls of torch are faster than faster ones

State = tuple[int | None, int]  # of a tensor: its version and where it lies


class MaskingInterruptedError(Exception):
    """A run in which parameters cannot be masked call by call; it is to be made again with all of them masked."""


class Masking:
    """The masks of a model's parameters, for runs of it.

    Attributes:
        interrupted: whether a run turned out to need all of them.
        limit: how many bytes of parameters one call may have masked, if it can be made in slices.
        worth: how much a call is to read for it to be of use that indices which are masked alike are made once.

    Args:
        masks: bool tensors by qualified parameter name, True = keep.
        whole: whether all parameters are masked from the start of a run to its end.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, torch.Tensor] | None = None, whole: bool = False) -> None:
        self._parameters: dict[int, nn.Parameter] = {}  # those that a run sees changed
        self._masks: dict[int, torch.Tensor] = {}
        self._bytes: dict[int, int] = {}
        self._own: dict[int, torch.Tensor] = {}  # what those that are masked now are without masks
        self._read: set[int] = set()
        self.whole, self.interrupted = whole, False
        modules = dict(walk.all_paths(model)) if masks else {}
        for name, mask in (masks or {}).items():
            path, _, attribute = name.rpartition(".")
            parameter = modules[path].get_parameter(attribute)
            key = id(parameter)
            self._parameters[key] = parameter
            small = compact(mask)
            self._masks[key] = self._masks[key] & small if key in self._masks else small
            self._bytes[key] = 0 if parameter.is_meta else parameter.nbytes
        self.limit = max(_LEAST, sum(p.nbytes for p in self._parameters.values()) // _SHARE)
        self.worth = _WORTH

    @property
    def lasting(self) -> int:
        """How many parameters are masked between calls."""
        return len(self._own)

    def mask_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The mask of a parameter, which broadcasts to it; None where it has none."""
        return self._masks.get(id(tensor))

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """A run of the model: at its end all parameters are themselves again."""
        try:
            if self.whole:
                self.mask(self._parameters.values())
            yield
        finally:
            self._put_back(list(self._own))
            self._read.clear()

    def mask(self, tensors: Iterable[torch.Tensor], module: nn.Module | None = None) -> dict[int, State]:
        """Mask the parameters among these tensors and those of a module; what ``unmask`` needs to know."""
        states: dict[int, State] = {}
        if not self._masks:
            return states
        for tensor in tensors if module is None else (*tensors, *walk.parameters(module)):
            key = id(tensor)
            if key in self._masks and key not in self._own:
                parameter = self._parameters[key]
                data = self._own[key] = parameter.data
                parameter.data = self._changed(key, data)
                states[key] = _state(parameter)
        return states

    def _changed(self, key: int, data: torch.Tensor) -> torch.Tensor:
        """What a run sees of a parameter."""
        return masked(data, self._masks[key])

    def may_slice(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether a call that reads these may be better made in slices: much of them is masked, for the first time."""
        bytes_of = self._bytes
        own = [t for t in tensors if bytes_of.get(id(t))]
        if not own:
            return False
        masked_bytes = sum([bytes_of[id(t)] for t in own])
        entries = sum([t.numel() for t in own])
        if masked_bytes <= self.limit and entries * (sum([t.numel() for t in tensors]) - entries) < self.worth:
            return False
        return all(id(t) not in self._own and id(t) not in self._read and type(t.data) is torch.Tensor for t in own)

    def are_large(self, parameters: Iterable[torch.Tensor]) -> bool:
        """Whether too much would stand masked with all of these."""
        return sum([self._bytes.get(id(p), 0) for p in parameters]) > self.limit

    def alike(self, axes: Mapping[torch.Tensor, int]) -> tuple[Indices, Indices] | None:
        """Indices of which each parameter is 0, and the others; None where it is not the same of all, or one at most.

        Args:
            axes: along which axis of each parameter.
        """
        lines = [self._line(parameter, axis) for parameter, axis in axes.items()]
        first = lines[0]
        if first is None or any(line is None or not equal(line, first) for line in lines):
            return None
        gone = np.flatnonzero(~first)
        return (gone, np.flatnonzero(first)) if 1 < len(gone) < len(first) else None

    def _line(self, parameter: torch.Tensor, axis: int) -> Bools | None:
        """By indices of an axis, whether the mask of a parameter keeps anything there; None where it has none."""
        mask = self.mask_of(parameter)
        if mask is None or parameter.layout is not torch.strided:
            return None
        return along(mask.cpu().numpy(), axis)

    @contextlib.contextmanager
    def sparing(self) -> Iterator[None]:
        """While this is open, half as much stands masked: the new tensors stand in memory as well."""
        limit, self.limit = self.limit, max(_LEAST, self.limit // 2)
        try:
            yield
        finally:
            self.limit = limit

    @contextlib.contextmanager
    def part(self, axes: Mapping[torch.Tensor, int], start: int, count: int) -> Iterator[None]:
        """While this is open, parameters are some indices of theirs, masked.

        Args:
            axes: along which axis.
            start, count: which indices.
        """

        def some(parameter: torch.Tensor, axis: int) -> torch.Tensor:
            found, mask = parameter.data.narrow(axis, start, count), self.mask_of(parameter)
            if mask is None:
                return found
            return masked(found, mask.narrow(axis, start, count) if mask.shape[axis] > 1 else mask)

        with self._standing_in(axes, some):
            yield

    @contextlib.contextmanager
    def chosen(self, axes: Mapping[torch.Tensor, int], indices: Indices, gone: int) -> Iterator[None]:
        """While this is open, parameters are those indices of theirs, masked, of which the first ones are 0.

        Args:
            axes: along which axis.
            gone: how many are masked as a whole.
        """

        def some(parameter: torch.Tensor, axis: int) -> torch.Tensor:
            found, mask = taken(parameter.data, axis, indices), self._masks[id(parameter)]
            found.narrow(axis, 0, gone).zero_()
            if mask.numel() > mask.shape[axis]:
                rest = found.narrow(axis, gone, len(indices) - gone)
                entries = mask.cpu().numpy().take(indices[gone:], axis)
                (entries,) = compact_axes(entries, axes=(axis,))  # mostly: the same of all of them
                masked(rest, torch.from_numpy(entries), out=rest)
            return found

        with self._standing_in(axes, some):
            yield

    @contextlib.contextmanager
    def _standing_in(
        self, axes: Mapping[torch.Tensor, int], some: Callable[[torch.Tensor, int], torch.Tensor]
    ) -> Iterator[None]:
        """While this is open, parameters are what is made of them and their axes."""
        own = {p: p.data for p in axes}
        try:
            for parameter, axis in axes.items():
                self._read.add(id(parameter))
                parameter.data = some(parameter, axis)
            yield
        finally:
            for parameter, data in own.items():
                parameter.data = data

    def interrupt(self) -> None:
        """Parameters cannot be masked from here on.

        Raises:
            MaskingInterruptedError: there are masks, and not all parameters are masked now.
        """
        if self._masks and not self.whole:
            self.interrupted = True
            raise MaskingInterruptedError

    def unmask(self, states: Mapping[int, State], left: Iterable[torch.Tensor] = ()) -> None:
        """The call is over that parameters were masked for; ``left`` are the tensors that it gave."""
        if not states:
            return
        again = self._read.intersection(states)
        self._read.update(states)
        shared = {memory_of(t) for t in left}
        self._put_back(
            [
                key
                for key, state in states.items()
                if key not in again and _state(self._parameters[key]) == state and state[1] not in shared
            ]
        )

    def _put_back(self, keys: Iterable[int]) -> None:
        for key in keys:
            self._parameters[key].data = self._own.pop(key)


def masked(tensor: torch.Tensor, mask: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """A tensor with 0 where the mask is False.

    Args:
        mask: bool, broadcasts to the tensor.
        out: where to put it; by default a new tensor with the strides that the given one has.
    """
    made = torch.empty_like(tensor) if out is None else out
    mask = mask.to(tensor.device)
    if tensor.numel() <= _FEW or not tensor.is_floating_point():
        return torch.where(mask, tensor, tensor.new_zeros(()), out=made)
    # All bits of what is kept, none of what is masked: an infinite number times 0 is no 0.
    bits, kind = mask.view(torch.int8).neg(), _INTEGERS[tensor.itemsize]
    if out is None and mask.numel() == tensor.numel():  # no third tensor of this size meanwhile
        made.view(kind).copy_(bits).bitwise_and_(tensor.view(kind))
    else:
        torch.bitwise_and(tensor.view(kind), bits.to(kind), out=made.view(kind))
    return made


def _state(tensor: torch.Tensor) -> State:
    """Changes when the tensor is written to."""
    return walk.version_of(tensor), memory_of(tensor)


def memory_of(tensor: torch.Tensor) -> int:
    """Where the numbers of a tensor stand; the same for its views. On the meta device, which object stands for it."""
    try:
        storage = tensor.untyped_storage()
        return storage._cdata if tensor.is_meta else storage.data_ptr()
    except (RuntimeError, NotImplementedError):  # a type of tensor without memory of its own
        return 0


def are_apart(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one memory have no number in common, as the halves of a tensor; False where not known."""
    both = (one, other)
    if one.dtype != other.dtype or any(t.layout is not torch.strided or t.numel() == 0 for t in both):
        return False
    starts = [int(t.storage_offset()) for t in both]
    ends = [
        s + 1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True))
        for s, t in zip(starts, both, strict=True)
    ]
    first = min(starts)
    if max(starts) >= min(ends):
        return True
    line = np.zeros(max(ends) - first, np.bool_)
    views = [
        np.lib.stride_tricks.as_strided(line[s - first :], t.shape, t.stride())
        for s, t in zip(starts, both, strict=True)
    ]
    views[0][...] = True
    return not views[1].any()
