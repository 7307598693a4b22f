"""A checkpoint of safetensors: one file, or several with an index as Hugging Face libraries write it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speedup.errors import StorageError
from speedup.store.format import WEIGHTS
from speedup.store.shards import Entry, entries

_INDEX = ".safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """What is where. Only headers were read.

    Attributes:
        entries: the tensors by name.
        shards: the files in order, with their metadata.
        index: the name of the index file, and what it holds; None for a single file.
    """

    folder: Path
    entries: Mapping[str, Entry]
    shards: Mapping[str, Mapping[str, str]]
    index: tuple[str, dict[str, Any]] | None


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the index and the headers of a folder.

    Raises:
        StorageError: there is no checkpoint, it is damaged, or its files and the index do not agree.
    """
    if not folder.is_dir():
        raise StorageError(f"{str(folder)!r} is no folder")
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    indices = [n for n in names if n.endswith(_INDEX)]
    single = [n for n in names if n.endswith(".safetensors")]
    if len(indices) == 1:
        index = _read_index(folder / indices[0])
        files = list(dict.fromkeys(index["weight_map"].values()))
    elif indices or (len(single) != 1 and WEIGHTS not in single):
        raise StorageError(f"{str(folder)!r} holds {_what(names, indices, single)}")
    else:
        index, files = None, [WEIGHTS if WEIGHTS in single else single[0]]
    found: dict[str, Entry] = {}
    shards = {}
    for file in sorted(files):
        inside, shards[file] = entries(folder / file)
        if index is not None:
            _compare(indices[0], file, inside, index["weight_map"])
        found.update(inside)
    return Checkpoint(folder, found, shards, None if index is None else (indices[0], index))


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        weights = index["weight_map"]
        if not all(isinstance(n, str) and isinstance(f, str) for n, f in weights.items()):
            raise ValueError("names and files are texts")
        if any(Path(f).name != f or not f.endswith(".safetensors") for f in weights.values()):
            raise ValueError("a shard is a safetensors file beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{str(path)!r} is no index of a checkpoint: {error!r}") from error
    found: dict[str, Any] = index
    return found


def _compare(index: str, file: str, inside: Mapping[str, Entry], weights: Mapping[str, str]) -> None:
    said = {name for name, place in weights.items() if place == file}
    for name in sorted(said ^ set(inside)):
        there = "the index names it, and the file has it not" if name in said else "the index does not name it"
        raise StorageError(f"{index} and {file} do not belong together: {name}: {there}")


def _what(names: list[str], indices: list[str], single: list[str]) -> str:
    if indices:
        return f"several indices ({', '.join(indices)}): keep one checkpoint in a folder"
    if single:
        return (
            f"several safetensors files and no index ({', '.join(single[:3])} ...): an index says what belongs together"
        )
    pickled = [n for n in names if n.endswith((".bin", ".pt", ".pth"))]
    if pickled:
        return f"no safetensors file, but {pickled[0]}: write it as safetensors first (save_pretrained does)"
    return "no safetensors file"
