"""Which value of the graph every tensor of a run is: the model's own, and those that calls have made."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterable
from itertools import filterfalse
from typing import Any

import torch
from torch import nn

from speedup import walk
from speedup.attributes import INTERNAL
from speedup.masking import Masking, are_apart, memory_of
from speedup.node import Node, Value
from speedup.trace.outputs import is_empty_of_tensors, tensors_in
from speedup.trees import PLAIN

_CONTAINERS = frozenset((dict, list, tuple, set, OrderedDict))
_MEMBERS = frozenset(("_parameters", "_buffers", "_modules"))
# What else torch keeps in every module, and most hold nothing in.
_HOOKS = tuple(n for n, v in vars(nn.Module()).items() if n not in _MEMBERS and type(v) not in PLAIN)


class Tensors:
    """The values of one run, by the identity of the tensors that are alive.

    Attributes:
        values: all of them, in the order in which they came up.
        paths: the first path of every module, by identity.
        sources: parameters, buffers, and tensors that modules hold as attributes, by identity.
    """

    def __init__(self, model: nn.Module, masking: Masking) -> None:
        self.values: list[Value] = []
        self.paths: dict[int, str] = {}
        self.sources: dict[int, Value] = {}
        self._masking = masking
        self._live: dict[int, tuple[Any, Value]] = {}
        self._held: list[torch.Tensor] = []
        self._places: dict[int, list[tuple[dict[str, Any], str]]] = {}  # where modules hold them
        self._stored: dict[int, list[Value]] | None = None
        self._stored_at = 0
        self._collect_sources(model)

    def _collect_sources(self, model: nn.Module) -> None:
        found = [(path + "." if path else "", module) for path, module in walk.all_paths(model)]
        for prefix, module in found:
            self.paths.setdefault(id(module), prefix[:-1])
            for kind, members in (("parameter", module._parameters), ("buffer", module._buffers)):
                for name, tensor in members.items():
                    if tensor is None or tensor.layout is not torch.strided:
                        continue  # nothing is known of what is sparse, as if it came from outside
                    known = self.sources.get(id(tensor))
                    if known is None:
                        known = self.sources[id(tensor)] = self.new(tensor, kind)
                        known.tensor, known.mask, known.names = tensor, self._masking.mask_of(tensor), (prefix + name,)
                        self._places[known.number] = [(members, name)]
                        continue
                    self._places[known.number].append((members, name))
                    if prefix + name not in known.names:
                        known.names += (prefix + name,)
        for prefix, module in found:  # a list of parameters, say, may stand in front of the module that they belong to
            there = module.__dict__
            names = list(filterfalse(INTERNAL.__contains__, there))
            if any(map(there.get, _HOOKS)):
                names = [n for n in _HOOKS if there.get(n)] + names
            for name, held in [(n, h) for n in names if type(h := there[n]) not in PLAIN]:
                if (type(held) in _CONTAINERS and not held) or is_empty_of_tensors(held):
                    continue
                for tensor in tensors_in(held, depth=2):
                    value = self.sources.get(id(tensor))
                    if tensor.layout is not torch.strided:
                        continue
                    if value is None:
                        value = self.sources[id(tensor)] = self.new(tensor, "attribute")
                        value.tensor, value.names = tensor, (prefix + name,)
                        self._held.append(tensor)
                        if held is tensor:
                            self._places[value.number] = [(module.__dict__, name)]
                    elif value.is_source and prefix + name not in value.aliases:
                        value.aliases += (prefix + name,)

    def new(self, tensor: torch.Tensor, kind: str, producer: Node | None = None) -> Value:
        """A value for what a tensor holds from now on; ``track`` says so."""
        shape = () if tensor.is_nested else tuple(tensor.shape)  # of a list of tensors of several sizes there is none
        value = Value(len(self.values), shape, tensor.dtype, kind, producer=producer)
        self.values.append(value)
        return value

    def made(self, tensor: torch.Tensor) -> Value | None:
        """The value of a tensor that is tracked; None for one that is not."""
        live = self._live.get(id(tensor))
        return live[1] if live is not None and live[0]() is tensor else None

    def value_of(self, tensor: torch.Tensor) -> Value:
        """The current value of a tensor; one from outside the model is noted as ``unknown``."""
        return self.values_of((tensor,))[0]

    def values_of(self, tensors: Iterable[torch.Tensor]) -> tuple[Value, ...]:
        """The ``value_of`` each."""
        found, live, sources = [], self._live, self.sources
        for tensor in tensors:
            key = id(tensor)
            if key in live and (known := live[key])[0]() is tensor:
                found.append(known[1])
            elif key in sources:
                found.append(sources[key])
            else:
                found.append(self.track(tensor, self.new(tensor, "unknown")))
        return tuple(found)

    def touched(self) -> list[Value]:
        """The tensors of the model that were written into, or in whose place another one stands."""
        found = []
        live, places = self._live, self._places
        for tensor_id, source in self.sources.items():
            if tensor_id in live:
                found.append(source)
                continue
            for members, name in places.get(source.number, ()):
                if name not in members or members[name] is not source.tensor:
                    found.append(source)
                    break
        return found

    def at_the_end(self, source: Value) -> Value:
        """What the model holds in the place of one of its tensors when the run is over."""
        tensor = source.tensor
        assert tensor is not None
        for members, name in self._places.get(source.number, ()):
            there = members[name] if name in members else None  # noqa: SIM401 (scripted: no dicts)
            if there is not tensor and isinstance(there, torch.Tensor):
                return self.value_of(there)
        return self.value_of(tensor) if id(tensor) in self._live else source

    def track(self, tensor: torch.Tensor, value: Value) -> Value:
        """From now on, as long as it lives, a tensor is this value."""
        key = id(tensor)

        def forget(ref: Any) -> None:
            held = self._live.get(key)
            if held is not None and held[0] is ref:
                del self._live[key]

        self._live[key] = (weakref.ref(tensor, forget), value)
        return value

    def alive(self) -> list[tuple[torch.Tensor, Value]]:
        """All tracked tensors that are alive, with their values."""
        found = [(ref(), value) for ref, value in list(self._live.values())]
        return [(tensor, value) for tensor, value in found if tensor is not None]

    @property
    def are_sources_changed(self) -> bool:
        """Whether a tensor of the model has been written into."""
        return not self._live.keys().isdisjoint(self.sources)

    def existing(self) -> frozenset[Value]:
        """The values of all tracked tensors that are alive."""
        return frozenset(v for ref, v in self._live.values() if ref() is not None)

    def sharing(self, changed: list[torch.Tensor]) -> list[tuple[torch.Tensor, Value]]:
        """Other live tensors in the memory of tensors that were changed, with their values."""
        memories, known = {memory_of(t) for t in changed}, {id(t) for t in changed}
        memories.discard(0)
        # Most of what is alive is what was changed, or stands somewhere else: it goes by first.
        near = [
            (tensor, value)
            for tensor, value in self.alive()
            if id(tensor) not in known and memory_of(tensor) in memories
        ]
        if not self.sources.keys().isdisjoint(known):
            self._stored = None  # ``x.data = y`` gives it another memory
        for memory in memories:
            near += [
                (v.tensor, v) for v in self._sources_in(memory) if v.tensor is not None and id(v.tensor) not in known
            ]
        return [
            (tensor, value)
            for tensor, value in near
            if memory_of(tensor) in memories
            and self._live.get(id(tensor), (None, value))[1] is value
            and not all(memory_of(t) != memory_of(tensor) or are_apart(t, tensor) for t in changed)
        ]

    def _sources_in(self, memory: int) -> list[Value]:
        if self._stored is None or self._stored_at != self._masking.lasting:
            self._stored, self._stored_at = {}, self._masking.lasting
            for value in self.sources.values():
                assert value.tensor is not None
                self._stored.setdefault(memory_of(value.tensor), []).append(value)
        return self._stored.get(memory, [])
