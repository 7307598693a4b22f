"""Safetensors files, read and written a tensor at a time, of which the largest takes the memory.

The format: 8 bytes with the length of the header, a header in JSON (``{name: {dtype, shape, data_offsets}}``), and the
bytes of the tensors behind it without gaps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from speedup.errors import StorageError

_CHUNK = 1 << 24
_LONGEST_HEADER = 100_000_000  # as the library has it

# Types that the format knows and this torch does not are copied, and cannot be cut.
_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "C64": "complex64", "U64": "uint64", "U32": "uint32",
    "U16": "uint16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
_KNOWN = {short: kind for short, name in _TYPES.items() if isinstance(kind := getattr(torch, name, None), torch.dtype)}
_SHORT = {kind: short for short, kind in _KNOWN.items()}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        kind: its type as the format calls it.
        start, stop: bytes of the file.
    """

    file: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return self.stop - self.start

    @property
    def dtype(self) -> torch.dtype | None:
        """Its type, None for one that torch does not have."""
        return _KNOWN.get(self.kind)

    def read(self) -> torch.Tensor:
        """The tensor, on the CPU.

        Raises:
            StorageError: it is of a type that torch does not have, or the file was cut off.
        """
        if self.dtype is None:
            raise StorageError(f"{self.name} in {str(self.file)!r} is of type {self.kind}, which torch cannot hold")
        buffer = torch.empty(self.size, dtype=torch.uint8)
        with self.file.open("rb") as file:
            file.seek(self.start)
            if self.size and file.readinto(buffer.numpy().data) != self.size:
                raise StorageError(f"{str(self.file)!r} ends in the middle of {self.name}")
        return buffer.view(self.dtype).reshape(self.shape)

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, some at a time."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            left = self.size
            while left:
                piece = file.read(min(left, _CHUNK))
                if not piece:
                    raise StorageError(f"{str(self.file)!r} ends in the middle of {self.name}")
                left -= len(piece)
                yield piece


def entries(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """What is in a file, by name, and its metadata. Only the header is read.

    Raises:
        StorageError: the file is missing or damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise ValueError("it is cut off, or no safetensors file")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", None) or {}
        found = {name: _entry(path, name, given, 8 + length) for name, given in header.items()}
        end = 8 + length
        for entry in sorted(found.values(), key=lambda e: (e.start, e.stop)):
            if entry.start != end:
                raise ValueError(f"there is a gap, or an overlap, in front of {entry.name}")
            end = entry.stop
        if end != size:
            raise ValueError(f"it has {size} bytes, and its header says {end}")
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(f"{str(path)!r} is no whole safetensors file: {error}") from error
    return found, {str(k): str(v) for k, v in metadata.items()}


def _entry(path: Path, name: str, given: Mapping[str, Any], base: int) -> Entry:
    kind, shape, offsets = given["dtype"], given["shape"], given["data_offsets"]
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not isinstance(kind, str) or not lists or not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
        raise ValueError(f"the header does not say what {name} is")
    entry = Entry(path, name, kind, tuple(shape), base + offsets[0], base + offsets[1])
    if entry.dtype is not None and entry.size != prod(entry.shape) * entry.dtype.itemsize:
        raise ValueError(f"{name} has {entry.size} bytes for a shape of {entry.shape}")
    return entry


@dataclass(frozen=True)
class Slot:
    """A tensor that is to be written.

    Attributes:
        source: where it is copied from as it is; None for one that is made.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    size: int
    source: Entry | None = None


def slot(name: str, kind: str, shape: tuple[int, ...]) -> Slot:
    """A place for a tensor that is made.

    Raises:
        StorageError: torch has no such type.
    """
    if kind not in _KNOWN:
        raise StorageError(f"{name} is of type {kind}, which torch cannot hold")
    return Slot(name, kind, shape, prod(shape) * _KNOWN[kind].itemsize)


def kind_of(dtype: torch.dtype) -> str:
    """What the format calls a type.

    Raises:
        StorageError: the format has no such type.
    """
    if dtype not in _SHORT:
        raise StorageError(f"safetensors files hold no {dtype}")
    return _SHORT[dtype]


def write(path: Path, slots: list[Slot], metadata: Mapping[str, str], make: Callable[[str], torch.Tensor]) -> str:
    """Write a file, tensor by tensor; its sha256.

    Args:
        make: gives the tensors that are made, by name, in the order of the file.

    Raises:
        StorageError: a tensor of another shape was made.
    """
    ordered = sorted(slots, key=lambda s: (-(s.size // max(1, prod(s.shape))), s.name))  # aligned, as the library does
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for each in ordered:
        header[each.name] = {"dtype": each.kind, "shape": list(each.shape), "data_offsets": [at, at + each.size]}
        at += each.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def put(data: bytes | memoryview) -> None:
            digest.update(data)
            file.write(data)

        put(len(text).to_bytes(8, "little") + text)
        for each in ordered:
            if each.source is not None:
                for piece in each.source.pieces():
                    put(piece)
                continue
            tensor = make(each.name)
            if tuple(tensor.shape) != each.shape:
                raise StorageError(f"{each.name} came out as {tuple(tensor.shape)}, and was planned as {each.shape}")
            flat = tensor.detach().to("cpu", _KNOWN[each.kind]).contiguous().reshape(-1)
            if flat.numel():
                put(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """The digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
