"""``speedup.load``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speedup.attributes import INTERNAL
from speedup.build import Parts
from speedup.collector import rarely_collected
from speedup.commit import Transaction
from speedup.errors import StorageError
from speedup.overlay import plain_class
from speedup.registry import Registry, default_registry
from speedup.shell import relinked, shell_of
from speedup.store.format import STRUCTURE, WEIGHTS, Change, Structure, Tensor, loads
from speedup.store.layers import remade
from speedup.store.plain import NotPlainError, from_json, to_json
from speedup.store.record import FIELD, empty, name_of, names_in, record_of, shape_of
from speedup.store.shards import Entry, entries, sha256

_LIMIT = 10
_ABSENT = "{} is not in the file"


@rarely_collected
def load(model: nn.Module, directory: str | os.PathLike[str], *, registry: Registry | None = None) -> nn.Module:
    """Make a freshly built original model the small one that ``speedup.save`` wrote, in place, and return it.

    No masks, no dummy input, no run of the model, and no code from the files: methods that were rewritten for smaller
    sizes are rewritten again in the source of ``model``, which must be as it was. The tensors come to the device of
    the model (to the CPU for one on the meta device), in the dtype in which they were saved.

    Args:
        model: built by the same code as the original; its weights are of no account.
        directory: what ``speedup.save`` was given.
        registry: the rules that made the model small; by default those of the installed plugins.

    Raises:
        StorageError: a file is missing, damaged, of a newer version, or the model is another one; the model is as it
            was then. Also if a plugin that the model needs is not installed.

    Example:
        >>> model = speedup.load(Net(), "small")
    """
    structure, stored = read(directory)
    rules = registry if registry is not None else default_registry()
    found = Replay(model, structure, stored, rules)
    Transaction(model, found.parts).apply()
    found.note(structure.provenance.get("rounds", []))
    return model


def read(directory: str | os.PathLike[str]) -> tuple[Structure, dict[str, Entry]]:
    """What is in the files: the description, and where each tensor lies.

    Raises:
        StorageError: one is missing or damaged, or they do not belong together.
    """
    folder = Path(directory)
    _there(folder / STRUCTURE)
    try:
        text = (folder / STRUCTURE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{str(folder)!r} cannot be read: {error}") from error
    structure = loads(text, str(folder / STRUCTURE))
    files = structure.files or {WEIGHTS: structure.sha256}
    stored: dict[str, Entry] = {}
    for name, digest in files.items():
        _there(folder / name)
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise StorageError(f"{str(folder)!r} cannot be read: {error}") from error
        if found != digest:
            raise StorageError(
                f"{str(folder / name)!r} is not the file that {STRUCTURE} belongs to: it is damaged, or was replaced"
            )
        stored.update(entries(folder / name)[0])
    return structure, stored


def _there(path: Path) -> None:
    if not path.is_file():
        raise StorageError(f"{str(path.parent)!r} holds no saved model: there is no {path.name}")


class Replay:
    """Changes of modules, made again on another model of the same source.

    Attributes:
        parts: to be put into the model.
        made_later: buffers that the code of the model makes when it is called, and that a new one has not.

    Raises:
        StorageError: the model is another one.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        stored: Mapping[str, Entry],
        registry: Registry,
    ) -> None:
        self.model = model
        self.structure = structure
        self.changes = structure.modules
        self.tied = structure.tied
        self.stored = {**stored, **{n: stored[t] for n, t in self.tied.items() if t in stored}}
        self.parts = Parts()
        modules = dict(model.named_modules())
        self.made_later = [n for n in structure.hidden if n in self.stored and _is_free(n, modules, self.changes)]
        self._check(modules)
        made: dict[str, torch.Tensor] = {}
        renewed: dict[int, torch.Tensor] = {}
        for path, module in modules.items():
            self.parts.modules[path] = self._remake(path, module, made, renewed, registry)
        for path, shell in self.parts.modules.items():
            for name, value in list(shell.__dict__.items()):
                if name not in INTERNAL:
                    shell.__dict__[name] = relinked(value, renewed)
            if (change := self.changes.get(path)) is not None:
                self._set_attributes(shell, change, path)

    def note(self, rounds: list[Any]) -> None:
        """Give the modules of the model, which have the parts in them, the record of what changed."""
        for path, change in self.changes.items():
            self.model.get_submodule(path).__dict__[FIELD] = {
                **empty(change.original),
                "tensors": {n: None if t.before is None else list(t.before) for n, t in change.tensors.items()},
                "attributes": {n: {k: v for k, v in a.items() if k == "before"} for n, a in change.attributes.items()},
            }
        record = record_of(self.model) or empty(name_of(plain_class(self.model)))
        self.model.__dict__[FIELD] = {**record, "rounds": rounds}

    def _remake(
        self,
        path: str,
        module: nn.Module,
        made: dict[str, torch.Tensor],
        renewed: dict[int, torch.Tensor],
        registry: Registry,
    ) -> nn.Module:
        """The module with everything new."""
        change = self.changes.get(path)
        shell = shell_of(module)
        if change is not None:
            shell = remade(shell, change.becomes, path, registry)
        own = {**module._parameters, **module._buffers}
        gained = {n: t for n, t in change.tensors.items() if own.get(n) is None} if change is not None else {}
        lost = {n for n, t in change.tensors.items() if t.after is None} if change is not None else set()
        for name in (*own, *gained):
            old = own.get(name)
            if name in lost or (old is None and name not in gained):
                continue
            full = _join(path, name)
            stored = self.tied.get(full, full)
            if stored not in made:
                if full not in self.stored:  # the code of the model made it, and it is as it was
                    assert old is not None
                    made[stored] = old
                else:
                    made[stored] = _made(self.stored[full], old, gained.get(name), self._device(module))
            _put(shell, name, made[stored], gained.get(name))
            if old is not None:
                renewed[id(old)] = made[stored]
        for full in self.made_later:
            owner, _, name = full.rpartition(".")
            if owner == path:
                stored = self.tied.get(full, full)
                if stored not in made:
                    made[stored] = _made(self.stored[full], None, None, self._device(module))
                shell._buffers[name] = made[stored]
                shell._non_persistent_buffers_set.add(name)
        for name in lost:
            for held in (shell._parameters, shell._buffers):
                if name in held:
                    held[name] = None
        return shell

    def _set_attributes(self, shell: nn.Module, change: Change, path: str) -> None:
        tensors = {n: t for n, t in (*shell._parameters.items(), *shell._buffers.items()) if t is not None}
        for name, values in change.attributes.items():
            if "after" not in values:
                shell.__dict__.pop(name, None)
                continue
            try:
                shell.__dict__[name] = from_json(values["after"], tensors)
            except NotPlainError as error:
                raise StorageError(f"{STRUCTURE} is damaged: {name} of {path or 'the model'}: {error}") from error

    def _device(self, module: nn.Module) -> torch.device:
        """Where a tensor goes that has no predecessor: to those of its module, or of the model."""
        for near in (module, self.model):
            for tensor in (*near.parameters(), *near.buffers()):
                return tensor.device
        return torch.device("cpu")

    # -- is it the same model? ----------------------------------------------------------------------------------------

    def _check(self, modules: Mapping[str, nn.Module]) -> None:
        wrong = [f"there is no module {path!r}" for path in self.changes if path not in modules]
        expected: dict[str, tuple[int, ...]] = {}
        for path, module in modules.items():
            change = self.changes.get(path)
            if change is not None:
                wrong += _differences(path, module, change)
            expected.update(_expected(path, module, change))
        besides = {*self.structure.besides, *self.made_later}
        missing = [n for n in expected if n not in self.stored]
        wrong += list(self._missing(modules, missing) if self.structure.files else map(_ABSENT.format, missing))
        wrong += [
            f"the file has {n}, and the model has not" for n in self.stored if n not in expected and n not in besides
        ]
        changed = {_join(path, name) for path, change in self.changes.items() for name in change.tensors}
        grown = set(self.structure.hidden) - changed  # in calls
        for name, shape in expected.items():
            if name in self.stored and self.stored[name].shape != shape and name not in grown:
                wrong.append(f"{name} should be {_text(shape)}, and is {_text(self.stored[name].shape)} in the file")
        if wrong:
            more = [f"  ... and {len(wrong) - _LIMIT} more"] if len(wrong) > _LIMIT else []
            lines = "\n".join([*(f"  {w}" for w in wrong[:_LIMIT]), *more])
            raise StorageError(
                f"this is not the model that was made small, or not built as it was (nothing was changed):\n{lines}"
            )

    def _missing(self, modules: Mapping[str, nn.Module], names: Iterable[str]) -> Iterable[str]:
        """What a checkpoint lacks, but for buffers outside of the state dict, which the code of the model makes."""
        for full in names:
            path, _, name = full.rpartition(".")
            change = self.changes.get(path)
            hidden = name in modules[path]._non_persistent_buffers_set
            if not hidden or (change is not None and name in change.tensors):
                yield _ABSENT.format(full)
            elif modules[path]._buffers[name].is_meta:  # type: ignore[union-attr]
                yield f"{full} is in no file, and on the meta device: build the module that makes it outside of that"


def _is_free(full: str, modules: Mapping[str, nn.Module], changes: Mapping[str, Change]) -> bool:
    """Whether a module has no attribute of a buffer's name, nor gets one."""
    path, _, name = full.rpartition(".")
    change = changes.get(path)
    known = change is not None and (name in change.tensors or name in change.attributes)
    return path in modules and name.isidentifier() and not known and not hasattr(modules[path], name)


def _differences(path: str, module: nn.Module, change: Change) -> Iterable[str]:
    """Where a module is not what it was before it was made small."""
    where = path or "the model"
    if record_of(module) is not None:
        yield f"{where} is small already: build the original model anew"
        return
    kind, was = (name.rpartition(".")[2] for name in (plain_class(module).__qualname__, change.original))
    if kind != was:
        yield f"{where} is a {kind}, and was a {was}"
    own = {**module._parameters, **module._buffers}
    for name, tensor in change.tensors.items():
        shape = shape_of(own.get(name))
        if shape != tensor.before:
            yield f"{_join(path, name)} is {_text(shape)}, and was {_text(tensor.before)}"
    for name, values in change.attributes.items():
        is_method = callable(getattr(type(module), name, None))
        is_own = name in vars(module) and not callable(vars(module)[name])  # ``self.half = 8``
        if name in vars(nn.Module()) or (is_method and not is_own):
            yield f"{name} of {where} is no attribute that a saved model may set"
        elif "before" in values:
            try:
                now = to_json(module.__dict__[name], names_in(vars(module)))
            except (KeyError, NotPlainError):
                now = None
            if now != values["before"]:
                yield f"{name} of {where} is {now}, and was {values['before']}"


def _expected(path: str, module: nn.Module, change: Change | None) -> Iterable[tuple[str, tuple[int, ...]]]:
    """The names and shapes of the tensors that the file should have for a module."""
    changed = change.tensors if change is not None else {}
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        shape = shape_of(tensor)
        if shape is not None and name not in changed:
            yield _join(path, name), shape
    for name, new in changed.items():
        if new.after is not None:
            yield _join(path, name), new.after


def _text(shape: Iterable[int] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "scalar"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _made(entry: Entry, old: torch.Tensor | None, gained: Tensor | None, near: torch.device) -> torch.Tensor:
    """The new parameter or buffer, at the place of the old one and with its flags."""
    device = old.device if old is not None else near
    new = entry.read().to("cpu" if device.type == "meta" else device)
    if not (isinstance(old, nn.Parameter) or (old is None and gained is not None and gained.kind == "parameter")):
        return new
    grad = old.requires_grad if old is not None else gained is None or gained.requires_grad
    made = nn.Parameter(new, requires_grad=grad and (new.is_floating_point() or new.is_complex()))
    if old is not None:
        made.__dict__.update(old.__dict__)
    return made


def _put(shell: nn.Module, name: str, tensor: torch.Tensor, gained: Tensor | None) -> None:
    if isinstance(tensor, nn.Parameter):
        shell.__dict__.pop(name, None)
        shell._parameters[name] = tensor
    else:
        shell._buffers[name] = tensor
        if gained is not None and gained.kind == "hidden buffer":
            shell._non_persistent_buffers_set.add(name)
