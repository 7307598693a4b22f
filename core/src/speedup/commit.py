"""Putting new tensors and modules into the model, and taking them out again.

Modules keep their identity: the contents of the new one move into the old one, which becomes one of its class where
that is a subclass of its own, so references, hooks and handles that the user holds stay good. Only a module of an
unrelated class takes the old one's place in its parents.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import filterfalse

import torch
from torch import nn

from speedup import caches, walk
from speedup.attributes import CONTAINERS, HOOKS, Saved, identical
from speedup.build import Parts
from speedup.errors import SpeedupError
from speedup.expand import Expanded


class Transaction:
    """The changes of one ``Parts`` to one model; ``undo`` takes them back, bit for bit.

    Attributes:
        substitutes: modules that are of another class now, by identity, with the type that they replace.
        saved: how the changed modules were before, in the order of the changes.
        placed: modules that another one has taken the place of, with that one.
        formats: tensors that hold their numbers in another order in memory now, with what they held before.
    """

    def __init__(self, model: nn.Module, parts: Parts) -> None:
        self.model = model
        self.parts = parts
        self.substitutes: dict[int, type[nn.Module]] = {}
        self.saved = Saved()
        self.placed: list[tuple[nn.Module, nn.Module]] = []
        self.formats: list[tuple[torch.Tensor, torch.Tensor]] = []

    def apply(self) -> None:
        """Swap everything in; on any error everything is put back before it is raised."""
        try:
            self.put(self.parts.modules)
            for path, repair in self.parts.repairs.items():
                module = self.model.get_submodule(path)
                self.saved.note(module)
                repair.apply(module)
        except BaseException:
            self.undo()
            raise
        caches.empty(walk.modules(self.model))

    def put(self, modules: Mapping[str, nn.Module]) -> None:
        """Swap modules in, by path; on an error some of them may be in."""
        known = dict(walk.all_paths(self.model))
        targets = [(path, known[path], made) for path, made in modules.items()]
        others: dict[int, nn.Module] = {}
        for path, old, made in targets:
            if isinstance(made, type(old)):
                self._move_into(old, made)
            else:
                self._prepare(path, old, made)
                others[id(old)] = made
        if others:
            self._put_in_place(others)
        walk.forget()

    def mark(self) -> tuple[int, int]:
        """This moment, for ``undo``."""
        return len(self.saved), len(self.placed)

    def undo(self, to: tuple[int, int] = (0, 0)) -> None:
        """Take back what was done since a moment, by default everything."""
        for tensor, data in self.formats:
            tensor.data = data
        self.formats.clear()
        self.saved.undo(to[0])
        del self.placed[to[1] :]
        walk.forget()
        caches.empty(walk.modules(self.model))

    def _move_into(self, old: nn.Module, made: nn.Module) -> None:
        self.saved.note(old)
        if type(made) is not type(old):
            if not isinstance(made, Expanded):
                self.substitutes[id(old)] = type(old)
            old.__class__ = type(made)
        held, new = old.__dict__, made.__dict__
        # The user may have added or removed hooks since the plan was made.
        for name in filterfalse(HOOKS.__contains__, new):
            current, value = held.get(name), new[name]
            if current is value or (type(current) is type(value) in CONTAINERS and not (current or value)):
                continue
            if isinstance(current, dict) and isinstance(value, dict):
                if not identical(current, value):
                    current.clear()
                    current.update(value)
            elif isinstance(current, list) and isinstance(value, list):
                current[:] = value
            elif name != "training":
                held[name] = value
        for name in filterfalse(new.__contains__, new["_parameters"]):
            held.pop(name, None)  # an attribute of the name (``self.bias = None``) would hide what it has gained

    def _prepare(self, path: str, old: nn.Module, made: nn.Module) -> None:
        """Before a module takes the place of one of another type."""
        if old is self.model:
            raise SpeedupError(f"the model itself cannot become a {type(made).__name__}; wrap it in a module")
        made.training = old.training
        self.placed.append((old, made))
        self.substitutes[id(made)] = type(old)

    def _put_in_place(self, others: Mapping[int, nn.Module]) -> None:
        """Exchange modules, by the identity of the old ones, wherever they stand."""
        for parent in self.model.modules():
            names = {n: others[id(child)] for n, child in parent._modules.items() if id(child) in others}
            if names:
                self.saved.note(parent)
                parent._modules.update(names)
