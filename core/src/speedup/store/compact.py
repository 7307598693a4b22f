"""``plan.apply_checkpoint``: a checkpoint goes through a plan, a tensor at a time, into a smaller checkpoint.

Everything is checked before anything is written. Each shard is written under another name and then renamed, and a
record of what is done lies beside it, so that a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from torch import nn

from speedup.atomic import replacing
from speedup.errors import StorageError
from speedup.keep import KeepSets
from speedup.node import Value
from speedup.store.checkpoint import Checkpoint
from speedup.store.compaction import Compaction, shape_text
from speedup.store.format import STRUCTURE, Structure, dumps
from speedup.store.outcome import Final, Outcome
from speedup.store.progress import PROGRESS, Progress
from speedup.store.shards import Entry, Slot, kind_of, sha256, slot, write
from speedup.stream import Stream

BUFFERS = "speedup-buffers.safetensors"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".index.json")
_LIMIT = 10


@dataclass
class _Layout:
    """Which tensors go into which file.

    Attributes:
        finals: of the names that are written, the tensors of the small model.
        besides: tensors of the checkpoint that the model has not.
    """

    slots: dict[str, list[Slot]] = field(default_factory=dict)
    finals: dict[str, Final] = field(default_factory=dict)
    besides: list[str] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)


class Compactor:
    """One checkpoint and one plan.

    Args:
        model: the model that was planned, as it was.
        sources: its parameters and buffers.

    Raises:
        StorageError: the checkpoint does not fit.
    """

    def __init__(
        self, model: nn.Module, sources: list[Value], keeps: KeepSets, outcome: Outcome, checkpoint: Checkpoint
    ) -> None:
        self.model, self.sources, self.keeps = model, sources, keeps
        self.outcome, self.checkpoint = outcome, checkpoint
        self.stream = Stream(keeps.graph, keeps, model, self._contents)
        self._names = {name: value for value in sources for name in value.names}
        self._hidden = {
            f"{path}.{name}" if path else name
            for path, module in model.named_modules()
            for name in module._non_persistent_buffers_set
        }
        self._made: tuple[str, nn.Module] | None = None
        self.touched: set[str] = set()
        self._check()
        self.layout = self._lay_out()

    # -- does it fit? -------------------------------------------------------------------------------------------------

    def _entry(self, value: Value) -> Entry | None:
        return next((self.checkpoint.entries[n] for n in value.names if n in self.checkpoint.entries), None)

    def _check(self) -> None:
        wrong = list(self._differences())
        if wrong:
            more = [f"  ... and {len(wrong) - _LIMIT} more"] if len(wrong) > _LIMIT else []
            text = "\n".join([*(f"  {w}" for w in wrong[:_LIMIT]), *more])
            where = str(self.checkpoint.folder)
            raise StorageError(f"the checkpoint in {where!r} does not fit the plan (nothing was written):\n{text}")

    def _differences(self) -> Iterator[str]:
        for value in self.sources:
            for name in value.names:
                entry = self.checkpoint.entries.get(name)
                if entry is not None and entry.shape != value.shape:
                    yield f"{name} is {shape_text(entry.shape)}, and {shape_text(value.shape)} in the model"
            if self._entry(value) is None and not value.is_known and not set(value.names) <= self._hidden:
                yield f"{value.names[0]} is missing"
        changing = {final.names[0].rpartition(".")[0] for final in self.outcome.finals if final.made}
        for name in self.checkpoint.entries:
            if name not in self._names and name.rpartition(".")[0] in changing:
                yield f"{name} is no tensor of the model, and stands beside some that change: what becomes of it?"
        for path in changing:
            for value in self.stream.reads(path):
                entry = self._entry(value)
                if entry is None and not value.is_known:
                    if set(value.names) <= self._hidden:
                        yield f"{value.names[0]} changes, and is neither in the checkpoint nor in the model: {_BUILD}"
                elif entry is not None and entry.dtype is None:
                    yield f"{entry.name} changes, and is of type {entry.kind}, which torch cannot hold"
            for value in self.stream.writes(path):
                entry = self._entry(value)
                if entry is not None and entry.dtype is not None and not _takes_numbers(entry.dtype):
                    yield f"{entry.name} would take up constants, and is stored as {entry.kind}, too coarse for it"

    def _contents(self, value: Value) -> torch.Tensor:
        entry = self._entry(value)
        if entry is not None:
            self.touched.add(entry.file.name)
            return entry.read()
        assert value.tensor is not None and not value.tensor.is_meta
        return value.tensor.detach()

    # -- what goes where ----------------------------------------------------------------------------------------------

    def _lay_out(self) -> _Layout:
        layout, entries = _Layout(), self.checkpoint.entries
        first = next(iter(self.checkpoint.shards))
        layout.slots = {file: [] for file in self.checkpoint.shards}
        for final in self.outcome.finals:
            kept = [n for n in final.names if n in entries]
            for name in kept:
                entry = entries[name]
                like = slot(name, entry.kind, final.shape) if final.made else None
                source = Slot(name, entry.kind, entry.shape, entry.size, entry) if like is None else like
                layout.slots[entry.file.name].append(source)
                layout.finals[name] = final
            if not kept:
                kept = self._place_new(final, layout, first)
            layout.tied.update({n: kept[0] for n in final.names if kept and n not in kept})
        for name, entry in entries.items():
            if name not in self._names:
                layout.slots[entry.file.name].append(Slot(name, entry.kind, entry.shape, entry.size, entry))
                layout.besides.append(name)
        layout.slots = {file: slots for file, slots in layout.slots.items() if slots or file in self.checkpoint.shards}
        return layout

    def _place_new(self, final: Final, layout: _Layout, first: str) -> list[str]:
        """Place a tensor that the checkpoint has not: beside its module's, or where only we look."""
        name = final.names[0]
        value = self._names.get(name)
        if value is not None and not final.made and not value.is_known:
            return []  # the code of the model makes it
        path = name.rpartition(".")[0]
        beside = [e for n, e in self.checkpoint.entries.items() if n.rpartition(".")[0] == path]
        floating = [e for e in beside if e.dtype is not None and _takes_numbers(e.dtype)]
        inside = value is None and not final.hidden
        if inside and floating:
            file, kind = floating[0].file.name, floating[0].kind
        else:
            file, kind = (first if inside else BUFFERS), kind_of(self.tensor(final).dtype)
        layout.slots.setdefault(file, []).append(slot(name, kind, final.shape))
        layout.finals[name] = final
        return [name]

    def tensor(self, final: Final) -> torch.Tensor:
        """A tensor of the small model that is not copied from the checkpoint."""
        name = final.names[0]
        if not final.made:
            tensor = self._names[name].tensor
            assert tensor is not None
            return tensor.detach()
        path, _, attribute = name.rpartition(".")
        if self._made is None or self._made[0] != path:
            self._made = None  # the old one makes room first
            module = self.stream.module(path)
            assert module is not None
            self._made = path, module
        module = self._made[1]
        found: torch.Tensor | None = {**module._parameters, **module._buffers}[attribute]
        assert found is not None
        return found.detach()

    # -- writing ------------------------------------------------------------------------------------------------------

    def run(self, target: Path, structure: Structure, tell: Callable[[str], None]) -> Compaction:
        """Write everything that is not there already.

        Raises:
            StorageError: the folder holds something else.
            OSError: it cannot be written to.
        """
        progress = Progress(target, self.checkpoint.folder, self._digest(structure))
        self._check_room(target, progress)
        written, skipped, digests = [], [], {}
        for file, slots in self.layout.slots.items():
            known = progress.done(file)
            if known is not None:
                skipped.append(file)
                digests[file] = known
                continue
            self.touched = {file} & set(self.checkpoint.shards)
            with replacing(target / file) as (path,):
                metadata = dict(self.checkpoint.shards.get(file, {"format": "pt"}))
                digests[file] = write(path, slots, metadata, lambda n: self.tensor(self.layout.finals[n]))
                if sha256(path) != digests[file]:
                    raise StorageError(
                        f"{file} came out of the disk as something else than was written: is it damaged?"
                    )
            self._made = None
            progress.note(file, digests[file], self.touched)
            written.append(file)
            tell(f"{file}: done ({len(written) + len(skipped)} of {len(self.layout.slots)})")
        self._write_index(target)
        self._copy_others(target)
        self._write_structure(target, structure, digests)
        before = sum(e.size for e in self.checkpoint.entries.values())
        after = sum(s.size for slots in self.layout.slots.values() for s in slots)
        return Compaction(target, tuple(written), tuple(skipped), self._changed(), (before, after))

    def _check_room(self, target: Path, progress: Progress) -> None:
        left = [slots for file, slots in self.layout.slots.items() if not progress.is_noted(file)]
        need = sum(s.size for slots in left for s in slots)
        free = shutil.disk_usage(target).free
        if need > free:
            raise StorageError(
                f"{need / 1e9:.1f} GB are to be written to {str(target)!r}, and {free / 1e9:.1f} are free"
            )

    def _write_index(self, target: Path) -> None:
        if self.checkpoint.index is None:
            return
        name, old = self.checkpoint.index
        shards = {f: s for f, s in self.layout.slots.items() if f in self.checkpoint.shards}
        metadata = dict(old.get("metadata") or {})
        metadata["total_size"] = sum(s.size for slots in shards.values() for s in slots)
        if "total_parameters" in metadata:
            metadata["total_parameters"] = sum(prod(s.shape) for slots in shards.values() for s in slots)
        weights = {s.name: file for file, slots in shards.items() for s in slots}
        index = {**old, "metadata": metadata, "weight_map": dict(sorted(weights.items()))}
        with replacing(target / name) as (path,):
            path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _copy_others(self, target: Path) -> None:
        """What is no weights: config, tokenizer, licence."""
        for path in sorted(self.checkpoint.folder.iterdir()):
            if path.is_file() and not path.name.endswith(_WEIGHTS) and path.name not in (STRUCTURE, PROGRESS):
                with replacing(target / path.name) as (copy,):
                    shutil.copyfile(path, copy)

    def _write_structure(self, target: Path, structure: Structure, digests: Mapping[str, str]) -> None:
        whole = Structure(
            "", structure.modules, self.layout.tied, structure.provenance, digests, tuple(self.layout.besides)
        )
        with replacing(target / STRUCTURE) as (path,):
            path.write_text(dumps(whole), encoding="utf-8")

    def _changed(self) -> dict[str, tuple[tuple[int, ...] | None, tuple[int, ...] | None]]:
        return {
            f"{path}.{name}" if path else name: (tensor.before, tensor.after)
            for path, change in self.outcome.changes.items()
            for name, tensor in change.tensors.items()
        }

    def _digest(self, structure: Structure) -> str:
        """Tells this plan from others: what becomes of every tensor."""
        plan = hashlib.sha256(dumps(Structure("", structure.modules)).encode())
        for value in self.sources:
            plan.update(repr((value.names, value.shape)).encode())
            arrays = [*self.keeps.lines(value).values(), *self.keeps.orders.get(value, {}).values()]
            arrays += [self.keeps.facts.masked[value]] if value in self.keeps.facts.masked else []
            if value not in self.keeps.sets.lines:
                arrays.append(self.keeps.sets[value])
            for array in arrays:
                plan.update(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
        return plan.hexdigest()


_BUILD = "build the module that makes it outside of torch.device('meta'), or keep it whole"


def _takes_numbers(dtype: torch.dtype) -> bool:
    """Whether a type is exact enough to take up a sum: floating point of more than one byte."""
    return dtype.is_floating_point and dtype.itemsize > 1
