"""The record of a run that may be interrupted: which shards are done, and how to tell that they are still right."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speedup.atomic import replacing
from speedup.errors import StorageError
from speedup.store.shards import sha256

PROGRESS = "speedup-progress.json"


class Progress:
    """Beside the result: the sha256 of every shard that is done, and of the shards of the source that it was made of.

    Args:
        plan: tells one plan from another.

    Raises:
        StorageError: the folder holds something else.
    """

    def __init__(self, target: Path, source: Path, plan: str) -> None:
        self._target, self._source, self._plan = target, source, plan
        self._shards: dict[str, Any] = {}
        self._hashes: dict[str, str] = {}
        if target.resolve() == source.resolve():
            raise StorageError(f"{str(target)!r} is the checkpoint itself: write to another folder, it stays as it is")
        if target.exists() and not target.is_dir():
            raise StorageError(f"{str(target)!r} is no folder")
        target.mkdir(parents=True, exist_ok=True)
        self._clean()
        there = sorted(p.name for p in target.iterdir())
        if PROGRESS in there:
            self._shards = self._read()
        elif there:
            raise StorageError(f"{str(target)!r} holds other files ({', '.join(there[:3])}): choose an empty folder")
        else:
            self._write()

    def is_noted(self, file: str) -> bool:
        """Whether a shard was done once."""
        return file in self._shards

    def done(self, file: str) -> str | None:
        """The digest of a shard that is done, right, and made of what is still there; None for one to be made."""
        known = self._shards.get(file)
        if known is None or not (self._target / file).is_file():
            return None
        if any(self._hash(name) != digest for name, digest in known["sources"].items()):
            return None
        digest: str = known["sha256"]
        return digest if sha256(self._target / file) == digest else None

    def note(self, file: str, digest: str, sources: Iterable[str]) -> None:
        """Note a shard that was written."""
        self._shards[file] = {"sha256": digest, "sources": {s: self._hash(s) for s in sorted(sources)}}
        self._write()

    def _hash(self, name: str) -> str | None:
        path = self._source / name
        if name not in self._hashes and path.is_file():
            self._hashes[name] = sha256(path)
        return self._hashes.get(name)

    def _clean(self) -> None:
        """Take away what a run that was killed left half written."""
        for path in self._target.glob(".*.partial"):
            path.unlink()

    def _read(self) -> dict[str, Any]:
        path = self._target / PROGRESS
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            plan, shards = data["plan"], data["shards"]
            right = all(isinstance(s["sha256"], str) and isinstance(s["sources"], dict) for s in shards.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"{str(path)!r} cannot be read: {error!r}. Delete the folder to begin anew") from error
        if not right or plan != self._plan:
            raise StorageError(
                f"{str(self._target)!r} holds what another plan made: choose another folder, or delete it to begin anew"
            )
        found: dict[str, Any] = shards
        return found

    def _write(self) -> None:
        data = {"format": "speedup progress", "plan": self._plan, "shards": self._shards}
        with replacing(self._target / PROGRESS) as (path,):
            path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
